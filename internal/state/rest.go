package state

import (
	"net/netip"
	"time"

	"github.com/skep-swarm/skep/internal/model"
)

// restTime is how long a freed address is remembered: until then someone may still send to whoever had it,
// so it is given again only when no other is free.
const restTime = model.Time(time.Minute)

// rest is a freed address.
type rest struct {
	At   model.Time `cbor:"1,keyasint"`
	Addr uint32     `cbor:"2,keyasint"`
}

func (r rest) less(o rest) bool {
	if r.At != o.At {
		return r.At < o.At
	}
	return r.Addr < o.Addr
}

// Resting reports whether a gateway address (IPv4) was given up so lately that it should not be given
// again yet. now is cluster time. What a working copy gives up counts as given up now.
func (s *Snapshot) Resting(a netip.Addr, now model.Time) bool {
	if !a.Is4() {
		return false
	}
	at, ok := s.rests.Get(addrKey(a))
	return ok && (now-at < restTime || at >= s.time)
}

// freeAddr takes an address from a task and lets it rest.
func (w *writer) freeAddr(t *model.Task) {
	if !t.Gateway4.IsValid() {
		return
	}
	k := addrKey(t.Gateway4)
	if !w.s.addrs.remove(k) {
		return
	}
	w.s.setRest(rest{w.now, k})
	for {
		first, ok := w.s.restAt.Min()
		if !ok || w.now-first.At < restTime {
			return
		}
		w.s.restAt.Delete(first)
		if at, _ := w.s.rests.Get(first.Addr); at == first.At {
			w.s.rests.Delete(first.Addr)
		}
	}
}

func (s *Snapshot) setRest(r rest) {
	if old, ok := s.rests.Set(r.Addr, r.At); ok {
		s.restAt.Delete(rest{old, r.Addr})
	}
	s.restAt.Set(r)
}
