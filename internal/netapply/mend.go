package netapply

import (
	"context"
	"errors"
	"slices"

	"github.com/skep-swarm/skep/internal/netplan"
)

// mendLinks mends host link and sandboxes, and those tasks that have lost their
// namespace file or a port, or in whose namespace something was removed.
// Parts in hold are left out, as mend says.
func (n *Network) mendLinks(ctx context.Context, plan netplan.Plan, d, hold dirt) (int, error) {
	total := 0
	if d.links {
		c, err := n.passBase(ctx, plan)
		total += c
		if err != nil {
			return total, err
		}
	}
	nets := n.touchedOverlays(d, hold)
	c, err := n.mendSandboxes(ctx, nets, false)
	total += c
	errs := []error{err}
	broken, tables, err := n.brokenTasks(d, hold, nets)
	if err != nil {
		return total, errors.Join(append(errs, err)...)
	}
	if len(broken) > 0 || d.links || len(nets) > 0 {
		c, err := n.mendTasks(ctx, broken)
		total, errs = total+c, append(errs, err)
		c, err = n.passPorts(ctx, plan)
		total, errs = total+c, append(errs, err)
		c, err = n.mendSandboxes(ctx, n.withOverlaysOf(nets, broken), true)
		total, errs = total+c, append(errs, err)
	}
	c, err = n.mendTables(ctx, tables)
	return total + c, onePerPart(append(errs, err))
}

// touchedOverlays lists the networks in whose sandbox something was removed.
func (n *Network) touchedOverlays(d, hold dirt) []*overlay {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*overlay
	for num, ov := range n.overlays {
		touched := d.spaces[ov.nsid] && ov.nsid >= 0 || d.mounts && !isNS(n.sandboxPath(num))
		if d.links || d.nets[num] || touched && !hold.nets[num] {
			out = append(out, ov)
		}
	}
	return out
}

// withOverlaysOf adds the networks of some tasks to a list.
func (n *Network) withOverlaysOf(list []*overlay, tasks []*taskState) []*overlay {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, st := range tasks {
		for _, a := range st.task.Nets {
			if ov := n.overlays[a.Network]; ov != nil && !slices.Contains(list, ov) {
				list = append(list, ov)
			}
		}
	}
	return list
}

// brokenTasks lists the tasks whose links are to be compared, and those whose rules are. st.done says whether a task's
// namespace is complete: with state held for writing, nobody is about to change it.
func (n *Network) brokenTasks(d, hold dirt, nets []*overlay) (broken, tables []*taskState, err error) {
	ports, err := n.gw.links("")
	if err != nil {
		return nil, nil, err
	}
	inNet := map[uint64]map[string]kernelLink{}
	for _, ov := range nets {
		if ov.space == nil {
			continue // it could not be opened
		}
		links, err := ov.space.links("")
		if err != nil {
			return nil, nil, err
		}
		inNet[ov.bare().Num] = links
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, st := range n.tasks {
		if hold.tasks[name] && !d.links && !d.tasks[name] {
			continue
		}
		p, ok := ports["t"+name]
		bad := !ok || d.tasks[name] || d.spaces[p.peerNS] && p.peerNS >= 0 || d.mounts && !isNS(n.Path(st.task))
		for _, a := range st.task.Nets {
			links, looked := inNet[a.Network]
			_, there := links["t"+name]
			bad = bad || looked && !there
		}
		if bad {
			broken = append(broken, st)
		}
		if bad || d.tables[p.peerNS] && p.peerNS >= 0 {
			tables = append(tables, st)
		}
	}
	return broken, tables, nil
}
