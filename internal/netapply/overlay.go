package netapply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/skep-swarm/skep/internal/netplan"
)

// ErrUnknownNetwork is returned for a network that no SetOverlay or Sync has named.
var ErrUnknownNetwork = errors.New("the network is not known on this node yet")

// An overlay is one overlay network on this node.
//
// change is held while a change of it is carried to the tasks' namespaces, before the lock of any task; mu, the last of
// all locks, guards what follows it. A task that is added reads the virtual addresses after it was entered among the
// tasks, and a change lists the tasks after it has written them down: so each is seen by one or the other.
type overlay struct {
	change sync.Mutex

	mu      sync.Mutex
	base    netplan.Overlay // without Remotes and VIPs
	remotes map[netip.Addr]netplan.Remote
	vips    map[netip.Addr]netplan.VIP

	space *space // guarded by Network.mu
	nsid  int    // the gateway sandbox's number for it, or -1
}

func newOverlay(o netplan.Overlay) *overlay {
	ov := &overlay{nsid: -1}
	ov.set(o)
	return ov
}

// set takes all of a network's values and returns the virtual addresses that lost a backend.
func (ov *overlay) set(o netplan.Overlay) (before map[netip.Addr]netplan.VIP) {
	ov.mu.Lock()
	defer ov.mu.Unlock()
	before = ov.vips
	ov.base, ov.remotes, ov.vips = o, make(map[netip.Addr]netplan.Remote, len(o.Remotes)), make(map[netip.Addr]netplan.VIP, len(o.VIPs))
	ov.base.Remotes, ov.base.VIPs = nil, nil
	for _, r := range o.Remotes {
		ov.remotes[r.Addr4] = r
	}
	for _, v := range o.VIPs {
		ov.vips[v.Addr] = v
	}
	return before
}

// full is the network with everything that belongs to it.
func (ov *overlay) full() netplan.Overlay {
	ov.mu.Lock()
	defer ov.mu.Unlock()
	o := ov.base
	o.Remotes = slices.Collect(maps.Values(ov.remotes))
	o.VIPs = slices.Collect(maps.Values(ov.vips))
	return o
}

// bare is the network without the tasks elsewhere and virtual addresses.
func (ov *overlay) bare() netplan.Overlay {
	ov.mu.Lock()
	defer ov.mu.Unlock()
	return ov.base
}

// takeOverlays replaces all networks, before a full pass. It returns the virtual addresses of each whose flows tasks' namespaces
// have to forget.
// state is held for writing.
func (n *Network) takeOverlays(list []netplan.Overlay) map[uint64][]netip.Addr {
	lost := map[uint64][]netip.Addr{}
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := map[uint64]bool{}
	for _, o := range list {
		keep[o.Num] = true
		ov, ok := n.overlays[o.Num]
		if !ok {
			n.overlays[o.Num] = newOverlay(o)
			continue
		}
		before := ov.set(o)
		lost[o.Num] = touchedVIPs(before, ov.vips)
	}
	for num, ov := range n.overlays {
		if !keep[num] {
			ov.space.close()
			delete(n.overlays, num)
		}
	}
	return lost
}

// SetOverlay makes a network known, with its sandbox, or gives one that is known other values. Only what differs is
// written, and what could not be the last time. It must come before AddTask for a task of the network. What the kernel
// refuses of the network (a netplan.PartError) keeps its tasks here from nothing else: they get their virtual addresses.
func (n *Network) SetOverlay(ctx context.Context, o netplan.Overlay) error {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return ErrNotReady
	}
	if err := n.node.CheckOverlay(o); err != nil {
		return err
	}
	n.netMu.Lock()
	defer n.netMu.Unlock()
	ov, err := n.claimOverlay(o)
	if err != nil {
		return partOf(o.Num, err)
	}
	ov.change.Lock()
	defer ov.change.Unlock()
	if ov.space == nil {
		if _, err := n.openSandbox(ov); err != nil {
			n.forgetUnused(o.Num)
			return partOf(o.Num, err)
		}
	}
	old, before, tasks := ov.bare(), ov.full(), n.tasksOf(o.Num)
	change, lost := changeOf(before.VIPs, o.VIPs)
	ov.set(o)
	_, err = n.mendSandbox(ov, tasks)
	errs := []error{partOf(o.Num, err)}
	differs := !slices.Equal(old.Subnets, o.Subnets) || old.MTU != o.MTU || old.Internal != o.Internal
	if differs {
		errs = append(errs, n.seal())
	} else {
		tasks = badTasks(tasks)
	}
	_, err = n.mendTasks(ctx, tasks)
	errs = append(errs, err, n.carry(ctx, ov, change, lost))
	_, err = n.mendTables(ctx, tasks)
	return onePerPart(append(errs, err))
}

// claimOverlay finds or enters a network. netMu is held.
func (n *Network) claimOverlay(o netplan.Overlay) (*overlay, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for num, other := range n.overlays {
		if num != o.Num && other.bare().VNI == o.VNI {
			return nil, fmt.Errorf("network %d: its VNI %d is that of network %d", o.Num, o.VNI, num)
		}
	}
	if ov, ok := n.overlays[o.Num]; ok {
		return ov, nil
	}
	if len(n.overlays) >= netplan.MaxOverlays {
		return nil, fmt.Errorf("%d overlay networks: at most %d fit on one node", len(n.overlays)+1, netplan.MaxOverlays)
	}
	ov := newOverlay(o)
	n.overlays[o.Num] = ov
	return ov, nil
}

// forgetUnused is forgetOverlay for one that has no tasks here.
func (n *Network) forgetUnused(num uint64) {
	if len(n.tasksOf(num)) == 0 {
		n.forgetOverlay(num)
	}
}

func (n *Network) forgetOverlay(num uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ov := n.overlays[num]; ov != nil {
		ov.space.close()
		delete(n.overlays, num)
	}
}

// overlay finds a network.
func (n *Network) overlay(num uint64) (*overlay, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ov := n.overlays[num]; ov != nil && ov.space != nil {
		return ov, nil
	}
	return nil, fmt.Errorf("network %d: %w", num, ErrUnknownNetwork)
}

// tasksOf lists the tasks of a network.
func (n *Network) tasksOf(num uint64) []*taskState {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*taskState
	for _, st := range n.tasks {
		if slices.ContainsFunc(st.task.Nets, func(a netplan.Attachment) bool { return a.Network == num }) {
			out = append(out, st)
		}
	}
	return out
}

// netsOf are the networks of a task, with their virtual addresses or without.
func (n *Network) netsOf(t netplan.Task, full bool) (netplan.Overlays, error) {
	out := netplan.Overlays{}
	for _, a := range t.Nets {
		ov, err := n.overlay(a.Network)
		if err != nil {
			return nil, err
		}
		if full {
			out[a.Network] = ov.full()
		} else {
			out[a.Network] = ov.bare()
		}
	}
	return out, nil
}

// RemoveOverlay takes a network's sandbox away. One that tasks are attached to is not removed; removing what is not
// there is no error.
func (n *Network) RemoveOverlay(_ context.Context, num uint64) error {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return ErrNotReady
	}
	n.netMu.Lock()
	defer n.netMu.Unlock()
	if tasks := n.tasksOf(num); len(tasks) > 0 {
		return fmt.Errorf("network %d: %d tasks of this node are attached to it", num, len(tasks))
	}
	if ov, err := n.overlay(num); err == nil {
		ov.change.Lock()
		defer ov.change.Unlock()
		// At once, so that its number can be used again; the rest goes in the kernel's own time.
		if err := n.dropVXLAN(ov); err != nil {
			return err
		}
	}
	n.forgetOverlay(num)
	if err := dropNS(n.sandboxPath(num)); err != nil {
		return fmt.Errorf("network %d: %w", num, err)
	}
	return nil
}

// SetRemotes enters tasks of a network on other nodes, or moves them, and takes others away, by their IPv4 addresses.
func (n *Network) SetRemotes(_ context.Context, num uint64, set []netplan.Remote, del []netip.Addr) error {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return ErrNotReady
	}
	ov, err := n.overlay(num)
	if err != nil {
		return err
	}
	ov.change.Lock()
	defer ov.change.Unlock()
	base := ov.bare()
	for _, r := range set {
		if err := n.node.CheckRemote(base, r); err != nil {
			return err
		}
	}
	ov.mu.Lock()
	had := len(ov.remotes)
	if left := countAfter(ov.remotes, set, del); left > netplan.MaxRemotes {
		ov.mu.Unlock()
		return fmt.Errorf("network %d: %d remote tasks: at most %d", num, left, netplan.MaxRemotes)
	}
	var old []netplan.Remote
	for _, a := range del {
		if r, ok := ov.remotes[a]; ok {
			old = append(old, r)
			delete(ov.remotes, a)
		}
	}
	for _, r := range set {
		ov.remotes[r.Addr4] = r
	}
	left := len(ov.remotes)
	ov.mu.Unlock()
	if had != 0 && left != 0 && n.writeRemotes(ov, base, set, old) == nil {
		return nil
	}
	// Its device comes or goes, or someone has removed what we meant to change: compare everything.
	_, err = n.mendSandbox(ov, n.tasksOf(num))
	return partOf(num, err)
}

// countAfter is how many remote tasks there would be.
func countAfter(now map[netip.Addr]netplan.Remote, set []netplan.Remote, del []netip.Addr) int {
	differs := map[netip.Addr]int{}
	for _, a := range del {
		if _, ok := now[a]; ok {
			differs[a] = -1
		}
	}
	for _, r := range set {
		if _, ok := now[r.Addr4]; ok {
			differs[r.Addr4] = 0
		} else {
			differs[r.Addr4] = 1
		}
	}
	left := len(now)
	for _, d := range differs {
		left += d
	}
	return left
}
