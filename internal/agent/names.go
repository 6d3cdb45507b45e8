package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const (
	// namesCheck is how often what the keeper answers is compared with what it should.
	namesCheck = time.Minute
	// maxNameServers is how many of a spec's DNS servers are asked, as many as the keeper takes.
	maxNameServers = 6
)

// names keeps the keeper's tables in line with the overlay networks, and the sockets of tasks open. Safe for concurrent use.
type names struct {
	keeper Keeper
	cfg    Config
}

func newNames(cfg Config) *names { return &names{keeper: cfg.Keeper, cfg: cfg} }

// start answers a task's names in its namespace at path, and leads its questions there.
func (n *names) start(ctx context.Context, a *Agent, id model.TaskID, container, path string, m *pb.Task, tpl *template) error {
	cfg := dns.TaskNames{ID: container, NetNS: path, Self: dns.TaskKey{Service: uint64(id.Service), Num: id.Num}, ResolvConf: n.cfg.ResolvConf}
	for _, net := range m.GetNets() {
		cfg.Networks = append(cfg.Networks, net.Network)
	}
	if cs := tpl.spec.ContainerSpec; cs != nil {
		cfg.Servers = nameServers(cs.DNSConfig)
	}
	p, err := n.keeper.OpenNames(ctx, cfg)
	if err != nil {
		return err
	}
	return a.setDNS(ctx, id, container, netplan.DNSPorts(p))
}

// nameServers are those that a spec names; the resolver that asks them is not one of them.
func nameServers(c *swarm.DNSConfig) []netip.Addr {
	if c == nil {
		return nil
	}
	var out []netip.Addr
	for _, s := range c.Nameservers {
		if s = s.Unmap(); s.IsValid() && !s.IsUnspecified() && s != netplan.DNSAddr && len(out) < maxNameServers {
			out = append(out, s)
		}
	}
	return out
}

// run gives the keeper what changes in the networks, and compares now and then, until ctx ends.
func (n *names) run(ctx context.Context, a *Agent) {
	w := a.overlays.watch()
	check := time.NewTicker(namesCheck)
	defer check.Stop()
	retry := firstBackoff
	due, first := true, a.net.ready
	for {
		err := n.tell(ctx, a.overlays, w)
		if due && err == nil {
			if err = n.compare(ctx, a); err == nil {
				due = false
			}
		}
		if ctx.Err() != nil {
			return
		}
		var timer <-chan time.Time
		if err != nil {
			n.cfg.Log.Warn("the names of tasks are not as they should be, trying again", "err", err, "in", retry)
			timer = time.After(retry)
			retry = min(2*retry, maxBackoff)
		} else {
			retry = firstBackoff
		}
		select {
		case <-w.wake:
		case <-first:
			due, first = true, nil
		case <-check.C:
			due = true
		case <-timer:
		case <-ctx.Done():
			return
		}
	}
}

// tell gives the keeper what changed since the last time.
func (n *names) tell(ctx context.Context, o *overlays, w *overlayWatch) error {
	due := w.take()
	var errs []error
	for id, c := range due {
		t := nameTable(o, id, c)
		err := n.keeper.SetNames(ctx, t)
		if err != nil && !t.Complete && !t.Gone {
			// A keeper that lost its record wants the whole.
			err = n.keeper.SetNames(ctx, nameTable(o, id, &overlayChange{whole: true}))
		}
		if err != nil {
			w.again(map[model.NetworkID]*overlayChange{id: {whole: true}})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// nameTable is what the keeper has to know after a change.
func nameTable(o *overlays, id model.NetworkID, c *overlayChange) dns.Table {
	t := dns.Table{Network: uint64(id), Gone: true}
	o.read(id, func(v *overlay) {
		if v == nil {
			return
		}
		t.Gone, t.Complete = false, c.whole
		if c.whole {
			t.Name, t.Internal = v.info.name, v.info.internal
			t.Subnets = slices.Clone(v.info.subnets)
			for svc, e := range v.endpoints {
				t.Services = append(t.Services, serviceRow(svc, e))
			}
			for task, r := range v.tasks {
				t.Tasks = append(t.Tasks, taskRow(task, r))
			}
			return
		}
		for svc := range c.endpoints {
			if e, ok := v.endpoints[svc]; ok {
				t.Services = append(t.Services, serviceRow(svc, e))
			} else {
				t.ServicesRemoved = append(t.ServicesRemoved, uint64(svc))
			}
		}
		for task := range c.tasks {
			if r, ok := v.tasks[task]; ok {
				t.Tasks = append(t.Tasks, taskRow(task, r))
			} else {
				t.TasksRemoved = append(t.TasksRemoved, dns.TaskKey{Service: uint64(task.Service), Num: task.Num})
			}
		}
	})
	return t
}

func serviceRow(id model.ServiceID, e overlayEndpoint) dns.ServiceRow {
	return dns.ServiceRow{Service: uint64(id), Names: append([]string{e.name}, e.aliases...), VIP: e.vip, Addr4: e.vip4, Addr6: e.vip6}
}

func taskRow(id model.TaskID, t overlayTask) dns.TaskRow {
	return dns.TaskRow{Key: dns.TaskKey{Service: uint64(id.Service), Num: id.Num}, Names: append([]string{t.name}, t.aliases...),
		Addr4: t.addr4, Addr6: t.addr6, Serving: t.serving}
}

// compare opens what the keeper does not answer for a running task, and follows it where it answers on other ports.
func (n *names) compare(ctx context.Context, a *Agent) error {
	select {
	case <-a.net.ready:
	default:
		return nil
	}
	list, err := n.keeper.List(ctx)
	if err != nil {
		return err
	}
	have := make(map[string]keeper.Named, len(list.Names))
	for _, t := range list.Names {
		have[t.ID] = t
	}
	var errs []error
	for id, nt := range a.net.tasks() {
		was, ok := have[nt.ID]
		if ok && nt.DNS == netplan.DNSPorts(was.Ports) {
			continue
		}
		a.mu.Lock()
		t := a.byID[id]
		a.mu.Unlock()
		if t == nil {
			continue
		}
		m, tpl, st := t.snapshot()
		if tpl == nil || st.State < model.StateRunning || st.State.Terminal() {
			continue // its own step does it
		}
		path, err := a.net.addTask(ctx, id, nt)
		if err == nil {
			err = n.start(ctx, a, id, nt.ID, path, m, tpl)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("the names of task %s: %w", m.Id, err))
		}
	}
	return errors.Join(errs...)
}

// prune stops answering for tasks that are not wanted, and forgets networks without tasks here.
func (n *names) prune(ctx context.Context, o *overlays, held keeper.Listing, wanted, ended map[string]bool) error {
	var errs []error
	for _, t := range held.Names {
		if !wanted[t.ID] || ended[t.ID] {
			errs = append(errs, n.keeper.CloseNames(ctx, t.ID))
		}
	}
	known := o.list()
	for _, id := range held.Networks {
		if _, ok := slices.BinarySearch(known, model.NetworkID(id)); !ok {
			errs = append(errs, n.keeper.SetNames(ctx, dns.Table{Network: id, Gone: true}))
		}
	}
	return errors.Join(errs...)
}

// resolvConf is the resolv.conf of a task whose names the keeper answers: what the host and the spec say of search and options,
// and names without a dot are asked for as they are first.
func resolvConf(host []byte, spec *swarm.DNSConfig) []byte {
	_, search, options := parseResolv(host)
	search, options = preferred(search, options, spec)
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(slices.Clone(options), "ndots:0")
	}
	return formatResolv([]string{netplan.DNSAddr.String()}, search, options)
}
