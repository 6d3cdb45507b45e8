package netapply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

func (n *Network) sandboxPath(num uint64) string {
	return filepath.Join(n.cfg.Dir, netplan.OverlayName(num))
}

// openSandbox opens, or makes, the namespace of a network.
func (n *Network) openSandbox(ov *overlay) (int, error) {
	o := ov.bare()
	path := n.sandboxPath(o.Num)
	if ov.space != nil && isNS(path) && sameNS(path, fmt.Sprintf("/proc/self/fd/%d", ov.space.fd)) {
		return 0, nil
	}
	if ov.space != nil && !isNS(path) {
		// Only the file has gone: our own handle still holds the namespace.
		return 1, adoptFD(path, ov.space.fd)
	}
	changes := 0
	if !isNS(path) {
		if err := dropNS(path); err != nil {
			return 0, err
		}
		sysctls := netplan.OverlaySpace(n.node, o).Sysctls
		if err := newNS(path, func() error { _, err := writeSysctls(sysctls); return err }); err != nil {
			return 0, fmt.Errorf("make sandbox: %w", err)
		}
		changes++
	}
	fd, err := openNS(path)
	if err != nil {
		return changes, err
	}
	s, err := openSpace(netplan.OverlayName(o.Num), fd)
	if err != nil {
		return changes, err
	}
	s.rt.one = true
	n.mu.Lock()
	ov.space.close()
	ov.space = s
	n.mu.Unlock()
	return changes, n.numberSandbox(ov)
}

// numberSandbox has the gateway sandbox know a network's by a number, so that one socket there hears of changes in all.
func (n *Network) numberSandbox(ov *overlay) error {
	id, err := n.gw.number(ov.space.fd)
	if err != nil {
		return fmt.Errorf("number its sandbox: %w", err)
	}
	n.mu.Lock()
	ov.nsid = id
	n.mu.Unlock()
	return nil
}

// number returns the number that this namespace has for another, and gives it one first if it has none.
func (s *space) number(fd int) (int, error) {
	b := &batch{}
	b.begin(unix.RTM_NEWNSID, 0, []byte{unix.AF_UNSPEC}, "number a namespace", unix.EEXIST)
	b.u32(netnsaFD, fd)
	b.u32(netnsaNSID, -1)
	if err := s.rt.run(b); err != nil {
		return -1, err
	}
	return s.numberOf(fd)
}

// numberOf returns the number that this namespace has for another, -1 when it has none.
func (s *space) numberOf(fd int) (int, error) {
	b := &batch{}
	b.begin(unix.RTM_GETNSID, 0, []byte{unix.AF_UNSPEC}, "read a namespace's number")
	b.u32(netnsaFD, fd)
	id := -1
	err := s.rt.dump(unix.RTM_NEWNSID, b, func(body []byte) {
		if len(body) >= 4 {
			attrs(body[4:], func(t uint16, v []byte) {
				if t == netnsaNSID {
					id = int(int32(native.Uint32(v)))
				}
			})
		}
	})
	return id, err
}

const (
	netnsaNSID = 1
	netnsaFD   = 3
)

// mendSandbox compares a network's sandbox with its plan, with the ports of those of its tasks that are given: the
// others are left as they are.
func (n *Network) mendSandbox(ov *overlay, tasks []*taskState) (int, error) {
	o := ov.full()
	plan := netplan.OverlaySpace(n.node, o)
	total, err := ov.space.sysctls(plan.Sysctls)
	if err != nil {
		return total, err
	}
	wanted := map[string]bool{}
	have, err := ov.space.links("")
	if err != nil {
		return total, err
	}
	for _, st := range tasks {
		for _, a := range st.task.Nets {
			port := netplan.OverlayPort(n.node, o, st.ident(), a)
			if _, made := have[port.Links[0].Name]; a.Network == o.Num && made {
				plan.Add(port)
				wanted[port.Links[0].Name] = true
			}
		}
	}
	stale := func(name string) bool {
		return isVXLAN(name) || isPort(name) && !wanted[name] && !n.known(name)
	}
	c, err := ov.space.reconcile(plan, n.resolve, stale)
	if c > 0 {
		_, e := ov.space.links(netplan.OverlayBridge) // see awaitLink
		err = errors.Join(err, e)
	}
	return total + c, err
}

// listOverlays returns the networks.
func (n *Network) listOverlays() []*overlay {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*overlay, 0, len(n.overlays))
	for _, ov := range n.overlays {
		out = append(out, ov)
	}
	return out
}

// passSandboxes opens and mends the networks' sandboxes, without the tasks' ports.
func (n *Network) passSandboxes(ctx context.Context, _ netplan.Plan) (int, error) {
	return n.mendSandboxes(ctx, n.listOverlays(), false)
}

// passSandboxPorts mends the sandboxes with the tasks' ports, which exist now.
func (n *Network) passSandboxPorts(ctx context.Context, _ netplan.Plan) (int, error) {
	return n.mendSandboxes(ctx, n.listOverlays(), true)
}

// mendSandboxes mends some networks' sandboxes. Its errors are those of parts, or the context's.
func (n *Network) mendSandboxes(ctx context.Context, list []*overlay, ports bool) (int, error) {
	total := 0
	var errs []error
	for _, ov := range list {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		made, err := n.openSandbox(ov)
		total += made
		if err == nil && made == 0 && !ports {
			err = n.numberSandbox(ov) // the gateway sandbox may be another
		}
		var tasks []*taskState
		if ports {
			tasks = n.tasksOf(ov.bare().Num)
		}
		if err == nil {
			var c int
			c, err = n.mendSandbox(ov, tasks)
			total += c
		}
		errs = append(errs, partOf(ov.bare().Num, err)) // one that cannot be mended does not keep the others from it
	}
	return total, errors.Join(errs...)
}

// writeRemotes enters and removes entries of tasks on other nodes, without looking at those that are there.
func (n *Network) writeRemotes(ov *overlay, o netplan.Overlay, set, del []netplan.Remote) error {
	name := netplan.VXLANLink(o.VNI)
	links, err := ov.space.links(name)
	if err != nil {
		return err
	}
	b := &batch{}
	for _, v := range []struct {
		list []netplan.Remote
		del  bool
	}{{del, true}, {set, false}} {
		for _, r := range v.list {
			for _, e := range netplan.RemoteNeighbours(o, r) {
				b.neighbour(e, links[name].index, v.del)
			}
		}
	}
	return ov.space.rt.run(b)
}

func (n *Network) dropVXLAN(ov *overlay) error {
	name := netplan.VXLANLink(ov.bare().VNI)
	links, err := ov.space.links(name)
	if err != nil {
		return err
	}
	b := &batch{}
	for _, l := range links {
		b.delLink(l.index, name)
	}
	return ov.space.rt.run(b)
}

// closeOverlays lets go of all sandboxes. state is held for writing.
func (n *Network) closeOverlays() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for num, ov := range n.overlays {
		ov.space.close()
		delete(n.overlays, num)
	}
}

// seal has the gateway sandbox refuse what sealed tasks begin.
func (n *Network) seal() error {
	n.sealMu.Lock()
	defer n.sealMu.Unlock()
	nets, tasks := netplan.Overlays{}, []netplan.Task{}
	n.mu.Lock()
	for num, ov := range n.overlays {
		nets[num] = ov.bare()
	}
	for _, st := range n.tasks {
		tasks = append(tasks, st.ident())
	}
	n.mu.Unlock()
	now := nets.SealedAddrs(tasks)
	if n.sealed != nil && slices.Equal(now, n.sealed) {
		return nil
	}
	if _, err := n.gwFW.reconcile(netplan.GatewaySpace(n.node, now).Table); err != nil {
		return fmt.Errorf("keep tasks of internal networks from the outside: %w", err)
	}
	n.sealed = append([]netip.Addr{}, now...)
	return nil
}
