package state

import (
	"math/bits"
	"net/netip"

	"github.com/tidwall/btree"
)

// addrBits are the addresses in use of a run of 256, one bit each.
type addrBits [4]uint64

// addrSet is a set of gateway addresses (IPv4) in runs of 256, which is how nodes get them: a swarm of a million tasks
// needs a tree of some thousand runs, and a batch that gives each node one address copies no more than that.
type addrSet struct {
	runs btree.Map[uint32, addrBits]
}

func (s *addrSet) has(k uint32) bool {
	run, _ := s.runs.Get(k >> 8)
	return run[k>>6&3]&(1<<(k&63)) != 0
}

// add reports whether the address was not in the set.
func (s *addrSet) add(k uint32) bool {
	run, _ := s.runs.Get(k >> 8)
	bit := uint64(1) << (k & 63)
	if run[k>>6&3]&bit != 0 {
		return false
	}
	run[k>>6&3] |= bit
	s.runs.Set(k>>8, run)
	return true
}

// remove reports whether the address was in the set.
func (s *addrSet) remove(k uint32) bool {
	run, _ := s.runs.Get(k >> 8)
	bit := uint64(1) << (k & 63)
	if run[k>>6&3]&bit == 0 {
		return false
	}
	if run[k>>6&3] &^= bit; run == (addrBits{}) {
		s.runs.Delete(k >> 8)
	} else {
		s.runs.Set(k>>8, run)
	}
	return true
}

// count is how many addresses from first to last are in the set.
func (s *addrSet) count(first, last uint32) (n int) {
	s.runs.Ascend(first>>8, func(high uint32, run addrBits) bool {
		if high > last>>8 {
			return false
		}
		for i, word := range run {
			at := high<<8 | uint32(i)<<6 // of the word's lowest bit
			if at < first {
				word &= ^uint64(0) << (first - at)
			}
			switch {
			case at > last:
				word = 0
			case at+63 > last:
				word &= 1<<(last-at+1) - 1
			}
			n += bits.OnesCount64(word)
		}
		return true
	})
	return n
}

func (s *addrSet) copy() *addrSet { return &addrSet{*s.runs.Copy()} }

// AddrInUse reports whether a task that is not dead has this gateway address (IPv4).
func (s *Snapshot) AddrInUse(a netip.Addr) bool { return a.Is4() && s.addrs.has(addrKey(a)) }

// AddrsInUse counts the gateway addresses of a block (IPv4) that tasks have that are not dead.
func (s *Snapshot) AddrsInUse(b netip.Prefix) int {
	if !b.Addr().Is4() {
		return 0
	}
	first := addrKey(b.Masked().Addr())
	return s.addrs.count(first, first|uint32(1<<(32-b.Bits())-1))
}
