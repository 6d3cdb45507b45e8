package agent

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// takeTables applies the rows that all nodes share and writes them down. An older word than the last one is refused.
func (a *Agent) takeTables(encoded []byte) error {
	m := &pb.Tables{}
	if err := proto.Unmarshal(encoded, m); err != nil {
		return model.Invalidf("tables: %v", err)
	}
	var ops []op
	rows := map[netplan.PortKey]netplan.Port{}
	for _, r := range m.Ports {
		if p, ok := ingressPort(r); ok {
			rows[p.PortKey] = p
			ops = append(ops, op{portKeyText(r.Key), encode(r)})
		}
	}
	var gone []netplan.PortKey
	for _, k := range m.PortsRemoved {
		if key, ok := portKey(k); ok {
			gone = append(gone, key)
			ops = append(ops, op{Key: portKeyText(k)})
		}
	}
	stale, err := a.net.takeRows(m, rows, gone)
	if err != nil {
		return err
	}
	if !m.Complete || !m.More {
		ops = append(ops, op{keyTables, encode(placeOf(m.At))})
	}
	for _, k := range stale {
		ops = append(ops, op{Key: portKeyText(&pb.PortKey{Protocol: k.Proto.String(), Port: uint32(k.Number)})})
	}
	a.saved(a.store.write(ops...))
	return nil
}

// takeRows replaces rows, and returns those that a complete table did not name any more.
func (n *network) takeRows(m *pb.Tables, rows map[netplan.PortKey]netplan.Port, gone []netplan.PortKey) (stale []netplan.PortKey, err error) {
	n.change(func() {
		at := placeOf(m.At)
		switch {
		case at.before(n.tablesAt):
			err = model.Stalef("tables of index %d, and the node has applied %d", at.Index, n.tablesAt.Index)
			return
		case m.Complete:
			if n.draft == nil {
				n.draft = map[netplan.PortKey]netplan.Port{}
			}
			for k, p := range rows {
				n.draft[k] = p
			}
			if len(n.draft) > netplan.MaxPorts {
				err = model.Errorf(model.Exhausted, "more than %d published ports", netplan.MaxPorts)
			}
			if err != nil || m.More {
				return
			}
			for k := range n.rows {
				if _, ok := n.draft[k]; !ok {
					stale = append(stale, k)
				}
			}
			n.rows, n.draft = n.draft, nil
		default:
			for k, p := range rows {
				n.rows[k] = p
			}
			for _, k := range gone {
				delete(n.rows, k)
			}
		}
		n.tablesAt = at
	})
	return stale, err
}

func portKey(k *pb.PortKey) (netplan.PortKey, bool) {
	if k.GetPort() == 0 || k.GetPort() > 65535 {
		return netplan.PortKey{}, false
	}
	switch k.GetProtocol() {
	case "tcp":
		return netplan.PortKey{Proto: netplan.TCP, Number: uint16(k.Port)}, true
	case "udp":
		return netplan.PortKey{Proto: netplan.UDP, Number: uint16(k.Port)}, true
	}
	return netplan.PortKey{}, false
}

// ingressPort reads a row; false for one that this version cannot serve. Backends beyond what a port can have are left out.
func ingressPort(r *pb.PortRow) (netplan.Port, bool) {
	key, ok := portKey(r.Key)
	if !ok {
		return netplan.Port{}, false
	}
	p := netplan.Port{PortKey: key, Mode: netplan.Ingress}
	for _, b := range r.Backends {
		if b.Port == 0 || b.Port > 65535 {
			continue
		}
		if a4, err := wire.Addr(b.Addr4); err == nil && a4.Is4() && len(p.Backends4) < netplan.MaxBackends {
			p.Backends4 = append(p.Backends4, netip.AddrPortFrom(a4, uint16(b.Port)))
		}
		if a6, err := wire.Addr(b.Addr6); err == nil && a6.Is6() && !a6.Is4In6() && len(p.Backends6) < netplan.MaxBackends {
			p.Backends6 = append(p.Backends6, netip.AddrPortFrom(a6, uint16(b.Port)))
		}
	}
	order := func(x, y netip.AddrPort) int {
		return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Port(), y.Port()))
	}
	slices.SortFunc(p.Backends4, order)
	slices.SortFunc(p.Backends6, order)
	return p, true
}
