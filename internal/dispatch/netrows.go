package dispatch

import (
	"strconv"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// shortID is how much of a container's identifier users type.
const shortID = 12

func networkInfo(snap *state.Snapshot, n *model.Network) *pb.NetworkInfo {
	m := &pb.NetworkInfo{Num: uint64(n.ID), Id: snap.Cluster().Namer().NetworkID(n.ID), Name: n.Name, Vni: n.VNI, Internal: n.Internal,
		Ipv6: n.EnableIPv6, Attachable: n.Attachable, Options: n.Options}
	for i := range n.IPAM {
		m.Subnets = append(m.Subnets, wire.PrefixText(n.IPAM[i].Subnet))
		gateway := ""
		if g := n.IPAM[i].Gateway; g.IsValid() {
			gateway = g.String()
		}
		m.Gateways = append(m.Gateways, gateway)
	}
	return m
}

// endpointRow is a service in one of the networks of its template.
func endpointRow(snap *state.Snapshot, svc *model.Service, id model.NetworkID) *pb.EndpointRow {
	row := &pb.EndpointRow{Service: uint64(svc.ID), Name: svc.Name(), Vip: model.WantsVIP(svc.Spec())}
	for _, a := range attachments(snap, svc) {
		if a.Network == id {
			row.Aliases = a.Aliases
		}
	}
	for _, v := range svc.VIPs {
		if v.Network == id {
			row.Vip4, row.Vip6 = wire.AddrBytes(v.Addr4), wire.AddrBytes(v.Addr6)
		}
	}
	return row
}

// netRows makes the rows of tasks from one state.
type netRows struct {
	snap  *state.Snapshot
	rules map[model.ServiceID]bool
}

// rule reports whether health decides who of a service serves; see serving.
func (w *netRows) rule(id model.ServiceID) bool {
	strict, known := w.rules[id]
	if known {
		return strict
	}
	for t := range w.snap.Tasks(id) {
		if strict = isBackend(t); strict {
			break
		}
	}
	if w.rules == nil {
		w.rules = map[model.ServiceID]bool{}
	}
	w.rules[id] = strict
	return strict
}

func (w *netRows) row(t *model.Task, id model.NetworkID) *pb.NetTaskRow {
	r := &pb.NetTaskRow{Task: wire.Ref(t.ID), Node: uint64(t.Node), Serving: canServe(t) && (t.Health.Serves() || !w.rule(t.ID.Service))}
	for i := range t.Nets {
		if t.Nets[i].Network == id {
			r.Addr4, r.Addr6 = wire.AddrBytes(t.Nets[i].Addr4), wire.AddrBytes(t.Nets[i].Addr6)
		}
	}
	namer := w.snap.Cluster().Namer()
	task, node := namer.TaskID(t.ID), namer.NodeID(t.Node)
	slot := node
	if t.Slot != 0 {
		slot = strconv.FormatUint(uint64(t.Slot), 10)
	}
	service, hostname := "", ""
	if tpl := w.snap.Template(t.Template); tpl != nil {
		service = tpl.ServiceName
		if tpl.Task.Typed != nil && tpl.Task.Typed.ContainerSpec != nil {
			hostname = tpl.Task.Typed.ContainerSpec.Hostname
		}
	}
	r.Name = service + "." + slot + "." + task
	r.Aliases = []string{model.ContainerID(task)[:shortID]}
	if strings.Contains(hostname, "{{") {
		host := ""
		if n := w.snap.Node(t.Node); n != nil {
			host = n.Hostname()
		}
		hostname = expandHostname(hostname, map[string]string{"Service.ID": namer.ServiceID(t.ID.Service), "Service.Name": service,
			"Node.ID": node, "Node.Hostname": host, "Task.ID": task, "Task.Name": r.Name, "Task.Slot": slot})
	}
	if hostname != "" {
		r.Aliases = append(r.Aliases, hostname)
	}
	return r
}

// expandHostname fills the plain placeholders of a hostname. What the node's own expansion can do beyond that gives no
// name in the network: empty.
func expandHostname(text string, fields map[string]string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{{")
		out.WriteString(before)
		if !found {
			return out.String()
		}
		field, after, closed := strings.Cut(rest, "}}")
		value, known := fields[strings.TrimPrefix(strings.TrimSpace(field), ".")]
		if !closed || !known {
			return ""
		}
		out.WriteString(value)
		text = after
	}
}
