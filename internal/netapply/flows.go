package netapply

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// vipFlows are the virtual addresses for which a task's namespace may remember flows wrongly, with the backends that
// they have now: flows that lead elsewhere are forgotten.
type vipFlows map[netip.Addr]map[netip.Addr]bool

// touchedVIPs lists the addresses among those that change that were new or without a backend, lost one, or were taken
// away, which are in before and not in now.
func touchedVIPs(before, now map[netip.Addr]netplan.VIP) []netip.Addr {
	var out []netip.Addr
	for a, v := range now {
		to := make(map[netip.Addr]bool, len(v.Backends))
		for _, b := range v.Backends {
			to[b] = true
		}
		old := before[a]
		lost := len(old.Backends) == 0
		for _, b := range old.Backends {
			lost = lost || !to[b]
		}
		if lost {
			out = append(out, a)
		}
	}
	for a := range before {
		if _, kept := now[a]; !kept {
			out = append(out, a)
		}
	}
	return out
}

// owe notes virtual addresses whose flows are to be forgotten as soon as the rules of the task's namespace are right: before,
// the next packet would lead a flow back. st.mu is held, or Network.state for writing.
func (st *taskState) owe(vips []netip.Addr) {
	if len(vips) > 0 && st.owed == nil {
		st.owed = map[netip.Addr]bool{}
	}
	for _, a := range vips {
		st.owed[a] = true
	}
}

// forgetFlows deletes the tracked flows of a task that are owed: those to some virtual addresses that lead elsewhere than
// to one of their backends. Connections that end by themselves are left: they drain. st.mu is held.
func (n *Network) forgetFlows(st *taskState) error {
	if len(st.owed) == 0 {
		return nil
	}
	err := n.withRules(st, func(s *nfSocket) error {
		count, err := s.countFlows()
		if count == 0 || err != nil {
			return err // to look through the kernel's table costs milliseconds
		}
		lost, err := n.backendsOf(st)
		if err != nil {
			return err
		}
		families := map[uint8]bool{}
		for a := range lost {
			families[family(a)] = true
		}
		var wrong [][]byte
		for f := range families {
			if err := s.flows(f, func(body []byte) {
				if tuple := wrongFlow(body, lost); tuple != nil {
					wrong = append(wrong, append([]byte{f}, tuple...))
				}
			}); err != nil {
				return err
			}
		}
		for _, w := range wrong {
			if err := s.deleteFlow(w[0], w[1:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		st.bad = true
		return err
	}
	st.owed = nil
	return nil
}

// backendsOf are the addresses whose flows a task is owed to forget, with the backends that they have now. st.mu is held.
func (n *Network) backendsOf(st *taskState) (vipFlows, error) {
	lost := vipFlows{}
	for a := range st.owed {
		lost[a] = map[netip.Addr]bool{}
	}
	for _, a := range st.task.Nets {
		ov, err := n.overlay(a.Network)
		if err != nil {
			return nil, err
		}
		ov.mu.Lock()
		for a, to := range lost {
			for _, b := range ov.vips[a].Backends {
				to[b] = true
			}
		}
		ov.mu.Unlock()
	}
	return lost, nil
}

const (
	ctStatsEntries = 1 // CTA_STATS_GLOBAL_ENTRIES
	ctGet          = 1 // IPCTNL_MSG_CT_GET
	ctDelete       = 2 // IPCTNL_MSG_CT_DELETE
	ctGetStats     = 5 // IPCTNL_MSG_CT_GET_STATS
	ctTupleOrig    = 1 // CTA_TUPLE_ORIG
	ctTupleReply   = 2 // CTA_TUPLE_REPLY
	ctTupleIP      = 1 // CTA_TUPLE_IP
	ctTupleProto   = 2 // CTA_TUPLE_PROTO
	ctProtoNum     = 1 // CTA_PROTO_NUM
)

// countFlows is how many flows a namespace tracks.
func (s *nfSocket) countFlows() (count uint32, err error) {
	var b batch
	b.begin(nfType(unix.NFNL_SUBSYS_CTNETLINK, ctGetStats), 0, []byte{unix.AF_UNSPEC, 0, 0, 0}, "count flows")
	err = s.ask(&b, func(body []byte) {
		attrs(body[4:], func(t uint16, v []byte) {
			if t == ctStatsEntries && len(v) == 4 {
				count = binary.BigEndian.Uint32(v)
			}
		})
	})
	return count, err
}

func (s *nfSocket) flows(family uint8, each func(body []byte)) error {
	var b batch
	b.begin(nfType(unix.NFNL_SUBSYS_CTNETLINK, ctGet), unix.NLM_F_DUMP, []byte{family, 0, 0, 0}, "list flows")
	return s.ask(&b, each)
}

func (s *nfSocket) deleteFlow(family uint8, tuple []byte) error {
	var b batch
	b.begin(nfType(unix.NFNL_SUBSYS_CTNETLINK, ctDelete), 0, []byte{family, 0, 0, 0}, "forget a flow", unix.ENOENT)
	b.attr(ctTupleOrig|unix.NLA_F_NESTED, tuple)
	return s.ask(&b, func([]byte) {})
}

// wrongFlow returns a copy of a flow's name when it is to be forgotten.
func wrongFlow(body []byte, lost vipFlows) []byte {
	var orig, reply []byte
	attrs(body[4:], func(t uint16, v []byte) {
		switch t {
		case ctTupleOrig:
			orig = v
		case ctTupleReply:
			reply = v
		}
	})
	_, to, proto := parseTuple(orig)
	from, _, _ := parseTuple(reply)
	backends, ok := lost[to]
	switch {
	case !ok, backends[from], proto == unix.IPPROTO_TCP, proto == unix.IPPROTO_SCTP, proto == unix.IPPROTO_DCCP:
		return nil
	}
	return append([]byte{}, orig...)
}

// parseTuple reads one direction of a flow.
func parseTuple(tuple []byte) (src, dst netip.Addr, proto uint8) {
	attrs(tuple, func(t uint16, v []byte) {
		switch t {
		case ctTupleIP:
			attrs(v, func(t uint16, v []byte) {
				a, _ := netip.AddrFromSlice(v)
				switch t {
				case 1, 3: // CTA_IP_V4_SRC, CTA_IP_V6_SRC
					src = a
				case 2, 4: // CTA_IP_V4_DST, CTA_IP_V6_DST
					dst = a
				}
			})
		case ctTupleProto:
			attrs(v, func(t uint16, v []byte) {
				if t == ctProtoNum && len(v) > 0 {
					proto = v[0]
				}
			})
		}
	})
	return src, dst, proto
}
