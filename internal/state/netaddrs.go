package state

import (
	"math/bits"
	"net/netip"

	"github.com/skep-swarm/skep/internal/model"
)

// chunk says of 64 neighbouring addresses of a network which are in use and which rest. A network's chunks lie
// together in one tree, so that a free address is found without a look at every one that is taken.
type chunk struct{ used, rest uint64 }

const (
	chunkBits = 6
	// maxPruned bounds the rests that one change ends, so that no change takes long.
	maxPruned = 64
)

// chunkKey orders chunks by network and address; numbers of networks fit (putNetwork).
func chunkKey(id model.NetworkID, addr uint32) uint64 {
	return uint64(id)<<(32-chunkBits) | uint64(addr>>chunkBits)
}

// netUse is what the state remembers of a network's addresses beside the chunks.
type netUse struct {
	next uint32 // where to look first: behind the one that was given last
	used int
}

// storedNetUse is a netUse as it is stored; what is used is derived.
type storedNetUse struct {
	Network model.NetworkID `cbor:"1,keyasint"`
	Next    uint32          `cbor:"2,keyasint"`
}

// netRest is a freed address of a network.
type netRest struct {
	Network model.NetworkID `cbor:"1,keyasint"`
	At      model.Time      `cbor:"2,keyasint"`
	Addr    uint32          `cbor:"3,keyasint"`
}

func (r netRest) less(o netRest) bool {
	if r.Network != o.Network {
		return r.Network < o.Network
	}
	if r.At != o.At {
		return r.At < o.At
	}
	return r.Addr < o.Addr
}

// NetAddrInUse reports whether a task or a service has this address (IPv4) of a network.
func (s *Snapshot) NetAddrInUse(id model.NetworkID, a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	n := addrKey(a)
	c, _ := s.netAddrs.Get(chunkKey(id, n))
	return c.used&(1<<(n%64)) != 0
}

// NetAddrs counts a network's addresses in use; next is where the search for another begins.
func (s *Snapshot) NetAddrs(id model.NetworkID) (used int, next netip.Addr) {
	u, _ := s.netUses.Get(id)
	return u.used, model.Addr4(u.next)
}

func (s *Snapshot) netUsed(id model.NetworkID) int {
	u, _ := s.netUses.Get(id)
	return u.used
}

// FreeNetAddr is the lowest address of a network from first to last that is neither in use nor at rest; false when
// there is none. It takes one step for 64 addresses.
func (s *Snapshot) FreeNetAddr(id model.NetworkID, first, last netip.Addr) (netip.Addr, bool) {
	from, to := uint64(addrKey(first)), uint64(addrKey(last))
	at := from // all before it are taken
	s.netAddrs.Ascend(chunkKey(id, uint32(from)), func(k uint64, c chunk) bool {
		base := k << chunkBits & (1<<32 - 1)
		if model.NetworkID(k>>(32-chunkBits)) != id || base > at {
			return false // nothing is known of the address at, so it is free
		}
		free := ^(c.used | c.rest) &^ (1<<(at-base) - 1)
		if free != 0 {
			at = base + uint64(bits.TrailingZeros64(free))
			return false
		}
		at = base + 64
		return at <= to
	})
	if at > to {
		return netip.Addr{}, false
	}
	return model.Addr4(uint32(at)), true
}

// NetRest is a freed address that rests: until then someone may still send to whoever had it.
type NetRest struct {
	At   model.Time // when it was freed
	Addr netip.Addr
}

// NextNetRest is the address of a network that rests longest of those behind one; the zero NetRest begins. ok is false
// at the end.
func (s *Snapshot) NextNetRest(id model.NetworkID, behind NetRest) (next NetRest, ok bool) {
	from := netRest{Network: id, At: behind.At}
	if behind.Addr.Is4() {
		from.Addr = addrKey(behind.Addr)
	}
	s.netRests.Ascend(from, func(r netRest) bool {
		if r == from && behind.Addr.IsValid() {
			return true
		}
		next, ok = NetRest{r.At, model.Addr4(r.Addr)}, r.Network == id
		return false
	})
	return next, ok
}

// claimAddr books an address of a network.
func (w *writer) claimAddr(id model.NetworkID, a netip.Addr) {
	n := addrKey(a)
	c, _ := w.s.netAddrs.Get(chunkKey(id, n))
	if bit := uint64(1) << (n % 64); c.rest&bit != 0 {
		w.s.endRest(id, n)
	}
	w.s.bookAddr(id, a)
	u, _ := w.s.netUses.Get(id)
	u.next = n + 1
	w.s.netUses.Set(id, u)
	w.pruneRests(id)
}

// bookAddr notes an address as in use.
func (s *Snapshot) bookAddr(id model.NetworkID, a netip.Addr) {
	n := addrKey(a)
	k, bit := chunkKey(id, n), uint64(1)<<(n%64)
	c, _ := s.netAddrs.Get(k)
	if c.used&bit != 0 {
		return
	}
	c.used, c.rest = c.used|bit, c.rest&^bit
	s.netAddrs.Set(k, c)
	u, _ := s.netUses.Get(id)
	u.used++
	s.netUses.Set(id, u)
}

// endRest forgets that an address rests. The one that is given although it rests is the oldest, so it is found at once.
func (s *Snapshot) endRest(id model.NetworkID, addr uint32) {
	var r netRest
	found := false
	s.netRests.Ascend(netRest{Network: id}, func(o netRest) bool {
		r, found = o, o.Network == id && o.Addr == addr
		return o.Network == id && !found
	})
	if found {
		s.netRests.Delete(r)
	}
}

// freeNetAddr gives an address of a network back and lets it rest.
func (w *writer) freeNetAddr(id model.NetworkID, a netip.Addr) {
	if !a.Is4() {
		return
	}
	n := addrKey(a)
	k, bit := chunkKey(id, n), uint64(1)<<(n%64)
	c, _ := w.s.netAddrs.Get(k)
	if c.used&bit == 0 {
		return
	}
	c.used, c.rest = c.used&^bit, c.rest|bit
	w.s.netAddrs.Set(k, c)
	u, _ := w.s.netUses.Get(id)
	u.used--
	w.s.netUses.Set(id, u)
	w.s.netRests.Set(netRest{id, w.now, n})
	w.pruneRests(id)
}

// pruneRests ends the rests of a network that have lasted long enough.
func (w *writer) pruneRests(id model.NetworkID) {
	for range maxPruned {
		var first netRest
		w.s.netRests.Ascend(netRest{Network: id}, func(r netRest) bool { first = r; return false })
		if first.Network != id || w.now-first.At < restTime {
			return
		}
		w.s.netRests.Delete(first)
		k := chunkKey(id, first.Addr)
		c, _ := w.s.netAddrs.Get(k)
		if c.rest &^= 1 << (first.Addr % 64); c == (chunk{}) {
			w.s.netAddrs.Delete(k)
		} else {
			w.s.netAddrs.Set(k, c)
		}
	}
}

// dropAddrs forgets all about the addresses of a network that is gone.
func (s *Snapshot) dropAddrs(id model.NetworkID) {
	s.netUses.Delete(id)
	for {
		k, found := uint64(0), false
		s.netAddrs.Ascend(chunkKey(id, 0), func(c uint64, _ chunk) bool { k, found = c, c < chunkKey(id+1, 0); return false })
		if !found {
			break
		}
		s.netAddrs.Delete(k)
	}
	for {
		var r netRest
		s.netRests.Ascend(netRest{Network: id}, func(o netRest) bool { r = o; return false })
		if r.Network != id {
			return
		}
		s.netRests.Delete(r)
	}
}

// setNetRest restores a stored rest.
func (s *Snapshot) setNetRest(r netRest) {
	k := chunkKey(r.Network, r.Addr)
	c, _ := s.netAddrs.Get(k)
	c.rest |= 1 << (r.Addr % 64)
	s.netAddrs.Set(k, c)
	s.netRests.Set(r)
}
