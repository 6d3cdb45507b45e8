package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
)

// A pass brings the kernel and the keeper in line with what should be. What concerns one network or task alone and cannot be done
// keeps a pass from nothing else; it is tried again after a while.

// run keeps the kernel and the keeper in line until ctx ends.
func (n *network) run(ctx context.Context, a *Agent) {
	retry := firstBackoff
	timer := time.NewTimer(0) // when what failed is tried again
	defer timer.Stop()
	for {
		select {
		case <-n.wake:
		case <-n.watch.wake:
		case <-timer.C:
			n.mu.Lock()
			n.again = true
			n.mu.Unlock()
		case <-ctx.Done():
			return
		}
		before := n.clashList()
		err := n.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		if !slices.Equal(before, n.clashList()) {
			a.describeAgain()
		}
		switch {
		case err != nil:
			n.cfg.Log.Warn("the node's network is not as it should be, trying again", "err", err, "in", retry)
			timer.Reset(retry)
			retry = min(2*retry, maxBackoff)
		case n.incomplete():
			// It was not tried this time; the timer runs.
		case len(n.clashList()) > 0:
			timer.Reset(holdAgain)
			retry = firstBackoff
		default:
			timer.Stop()
			retry = firstBackoff
		}
	}
}

// pass holds ports, tells the network, and lets go of ports, in this order: a port that is answered is held.
func (n *network) pass(ctx context.Context) error {
	n.mu.Lock()
	again := n.again
	n.full = n.full || again && n.lost
	known, full := n.known, n.full
	n.again = false
	n.progress.begun++
	num := n.progress.begun
	n.mu.Unlock()
	if !known {
		return nil
	}
	err := n.hold(ctx)
	if err == nil {
		if full {
			err = n.syncAll(ctx)
		} else {
			err = errors.Join(n.setPorts(ctx), n.setOverlays(ctx, again))
		}
	}
	_, rest := netplan.Parts(err)
	n.mu.Lock()
	if n.progress.why = rest; rest == nil {
		n.progress.done = num
	}
	n.progress.tell()
	n.mu.Unlock()
	if rest != nil {
		return err
	}
	return errors.Join(err, n.letGo(ctx))
}

// want is the ports to publish: those of the tables that are held, and those of running tasks in host mode. n.mu is held.
func (n *network) want() map[netplan.PortKey]netplan.Port {
	out := make(map[netplan.PortKey]netplan.Port, len(n.rows))
	for k, p := range n.rows {
		if owner, ok := n.owners[k]; ok && owner == (model.TaskID{}) && n.held[k] {
			if !n.node.IPv6() {
				p.Backends6 = nil
			}
			out[k] = p
		}
	}
	for _, c := range n.claims {
		for _, p := range c.ports {
			if c.live && n.held[p.key] {
				out[p.key] = p.published(n.node.IPv6())
			}
		}
	}
	return out
}

// syncAll is the full pass.
func (n *network) syncAll(ctx context.Context) error {
	n.gate.Lock()
	defer n.gate.Unlock()
	due := n.watch.take() // a full pass has all of it
	n.mu.Lock()
	in := netplan.Input{Node: n.node}
	var next map[model.NetworkID]layer
	in.Overlays, next = n.overlayInput()
	want := n.want()
	for k, p := range want {
		if n.node.CheckPort(p) != nil {
			delete(want, k) // one bad row must not take the others down
			continue
		}
		in.Ports = append(in.Ports, p)
	}
	in.Tasks = n.taskInput(netplan.OverlaysOf(in.Overlays))
	n.full = false
	n.mu.Unlock()
	_, err := n.cfg.Network.Sync(ctx, in)
	if _, rest := netplan.Parts(err); rest != nil {
		n.watch.again(due)
		n.mu.Lock()
		n.full = true
		n.mu.Unlock()
		return err
	}
	n.laidAll(next, err)
	n.mu.Lock()
	n.applied, n.dying = want, map[model.NetworkID]bool{}
	n.progress.tell()
	n.mu.Unlock()
	select {
	case <-n.ready:
	default:
		close(n.ready)
	}
	return err
}

// taskInput is every task for a full pass, by address. Of a network that is gone, or that this node cannot have, only tasks that are
// about to end are left. n.mu is held.
func (n *network) taskInput(nets netplan.Overlays) []netplan.Task {
	var out []netplan.Task
	for _, t := range n.added {
		if !n.node.IPv6() {
			t.Addr6 = netip.Addr{}
		}
		t.Nets = slices.DeleteFunc(slices.Clone(t.Nets), func(a netplan.Attachment) bool {
			_, ok := nets[a.Network]
			return !ok
		})
		if n.node.CheckTask(t) == nil && nets.CheckNets(t) == nil {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b netplan.Task) int { return a.Addr4.Compare(b.Addr4) })
	return out
}

// setPorts tells the network what differs from the last time.
func (n *network) setPorts(ctx context.Context) error {
	n.mu.Lock()
	want := n.want()
	var set []netplan.Port
	var del []netplan.PortKey
	for k, p := range want {
		if n.node.CheckPort(p) != nil {
			delete(want, k)
		} else if old, ok := n.applied[k]; !ok || !samePort(old, p) {
			set = append(set, p)
		}
	}
	for k := range n.applied {
		if _, ok := want[k]; !ok {
			del = append(del, k)
		}
	}
	n.mu.Unlock()
	if len(set)+len(del) == 0 {
		return nil
	}
	if err := n.cfg.Network.SetPorts(ctx, set, del); err != nil {
		n.mu.Lock()
		n.full = true // what is in the kernel now is not known
		n.mu.Unlock()
		return err
	}
	n.mu.Lock()
	n.applied = want
	n.progress.tell()
	n.mu.Unlock()
	return nil
}

func samePort(a, b netplan.Port) bool {
	return a.Mode == b.Mode && slices.Equal(a.Backends4, b.Backends4) && slices.Equal(a.Backends6, b.Backends6)
}
