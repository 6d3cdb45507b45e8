package netapply

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// AddTask gives a task its network namespace and returns the path that it is
// bound to. A task that is there already is left as it is, so that repeating
// the call costs nothing; with a PID, a namespace file that has vanished is
// bound again from the process.
func (n *Network) AddTask(ctx context.Context, t netplan.Task) (string, error) {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return "", ErrNotReady
	}
	if err := n.node.CheckTask(t); err != nil {
		return "", err
	}
	st, err := n.claim(t)
	if err != nil {
		return "", err
	}
	if err := n.acquire(ctx); err != nil {
		n.abandon(st)
		return "", err
	}
	defer n.release()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone {
		return "", fmt.Errorf("task %s: removed while it was added", t.Name())
	}
	if t.PID != 0 {
		st.task.PID = t.PID
	}
	path := n.Path(t)
	if st.done && isNS(path) {
		return path, nil
	}
	if !isNS(path) && !st.done && st.task.PID == 0 {
		err = n.makeTask(st.task)
	} else {
		_, err = n.mendTask(st)
	}
	if err != nil {
		if !st.done {
			n.forget(st)
		}
		return "", fmt.Errorf("task %s: set up network: %w", t.Name(), err)
	}
	st.done = true
	return path, nil
}

// claim finds or makes the entry of a task and refuses what clashes.
func (n *Network) claim(t netplan.Task) (*taskState, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if st, ok := n.tasks[t.Name()]; ok {
		if st.task.ID != t.ID || st.task.Addr4 != t.Addr4 || st.task.Addr6 != t.Addr6 {
			return nil, fmt.Errorf("task %s is here already with addresses %v and %v", t.Name(), st.task.Addr4, st.task.Addr6)
		}
		return st, nil
	}
	if len(n.tasks) >= netplan.MaxTasks {
		return nil, fmt.Errorf("this node has %d tasks: no more fit on its gateway bridge", len(n.tasks))
	}
	for _, o := range n.tasks {
		if o.task.Addr4 == t.Addr4 || o.task.Addr6.IsValid() && o.task.Addr6 == t.Addr6 {
			return nil, fmt.Errorf("task %s: address %v or %v belongs to task %s", t.Name(), t.Addr4, t.Addr6, o.task.Name())
		}
	}
	st := &taskState{task: t}
	n.tasks[t.Name()] = st
	return st, nil
}

// abandon takes back the claim of a task whose namespace was not begun; otherwise Run would make it
// for nobody.
func (n *Network) abandon(st *taskState) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.done {
		n.forget(st)
	}
}

func (n *Network) acquire(ctx context.Context) error {
	select {
	case n.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Network) release() { <-n.slots }

// makeTask makes and fills a new namespace: two batches of netlink requests,
// no question asked.
func (n *Network) makeTask(t netplan.Task) error {
	path, plan := n.Path(t), netplan.TaskSpace(n.node, t)
	err := newNS(path, func() error {
		if _, err := writeSysctls(plan.Sysctls); err != nil {
			return err
		}
		rt, err := openRT()
		if err != nil {
			return err
		}
		defer rt.close()
		s := &space{name: plan.Name, fd: -1, rt: rt}
		if err := n.fresh(s, plan, t); err != nil {
			return err
		}
		if err := n.attachPort(t); err != nil {
			return err
		}
		b := &batch{}
		for _, l := range plan.Links {
			if l.Index != 0 {
				b.awaitLink(l.Index, l.Name)
			}
		}
		return rt.run(b)
	})
	return err
}

// Namespaces are torn down in the kernel's own time. A port whose name or
// index is still taken is deleted, and its going is waited for, this long.
const (
	busyTries = 100
	busyPause = 5 * time.Millisecond
)

// fresh fills a task's new namespace. What an earlier life of the task's
// address left in the sandbox is removed.
func (n *Network) fresh(s *space, plan netplan.Space, t netplan.Task) error {
	err := s.fresh(plan, n.resolve)
	for range busyTries {
		if !errors.Is(err, syscall.EEXIST) && !errors.Is(err, syscall.EBUSY) {
			return err
		}
		if err := n.dropPort(t); err != nil {
			return err
		}
		if err = s.fresh(plan, n.resolve); err != nil {
			time.Sleep(busyPause)
		}
	}
	return err
}

// attachPort puts the sandbox's end of a task's link into the bridge.
func (n *Network) attachPort(t netplan.Task) error {
	bridge, err := n.bridge()
	if err != nil {
		return err
	}
	plan := netplan.TaskPort(n.node, t)
	b := &batch{buf: make([]byte, 0, 512)}
	index := map[string]int{netplan.Bridge: bridge}
	for _, l := range plan.Links {
		index[l.Name] = l.Index
		b.setLink(netplan.Link{Name: l.Name, Master: l.Master}, l.Index, bridge)
		b.setPort(l, l.Index)
	}
	for _, v := range plan.Neighbours {
		b.neighbour(v, index[v.Link], false)
	}
	for _, l := range plan.Links {
		b.awaitLink(l.Index, l.Name)
	}
	b.awaitLink(bridge, netplan.Bridge)
	return n.gw.rt.run(b)
}

// bridge is the index of the sandbox's bridge.
func (n *Network) bridge() (int, error) {
	links, err := n.gw.links(netplan.Bridge)
	if err != nil {
		return 0, err
	}
	l, ok := links[netplan.Bridge]
	if !ok {
		return 0, fmt.Errorf("the gateway bridge is missing")
	}
	return l.index, nil
}

// dropPort removes the sandbox's end of a task's link.
func (n *Network) dropPort(t netplan.Task) error {
	plan := netplan.TaskPort(n.node, t)
	b := &batch{}
	for _, l := range plan.Links {
		b.delLink(l.Index, l.Name)
		if have, e := n.gw.links(l.Name); e == nil && have[l.Name].index != 0 && have[l.Name].index != l.Index {
			b.delLink(have[l.Name].index, l.Name)
		}
	}
	return n.gw.rt.run(b)
}

// dropNeighbours removes the sandbox's neighbour entries of a task.
func (n *Network) dropNeighbours(t netplan.Task) error {
	bridge, err := n.bridge()
	if err != nil {
		return nil // they went with the bridge
	}
	b := &batch{}
	for _, v := range netplan.TaskPort(n.node, t).Neighbours {
		if v.Addr.IsValid() {
			b.neighbour(v, bridge, true)
		}
	}
	return n.gw.rt.run(b)
}

// mendTask compares a task's namespace with its plan, makes it when it is
// missing, and returns how many requests it wrote. st.mu is held.
func (n *Network) mendTask(st *taskState) (int, error) {
	t := st.task
	path := n.Path(t)
	if !isNS(path) {
		if err := dropNS(path); err != nil {
			return 0, err
		}
		if !n.adopt(path, t) {
			if err := n.makeTask(t); err != nil {
				return 1, err
			}
			st.done = true
			return 1, nil
		}
	}
	fd, err := openNS(path)
	if err != nil {
		return 0, err
	}
	s, err := openSpace(t.Name(), fd)
	if err != nil {
		return 0, err
	}
	defer s.close()
	c, err := s.reconcile(netplan.TaskSpace(n.node, t), n.resolve, nil)
	if err != nil {
		return c, fmt.Errorf("task %s: %w", t.Name(), err)
	}
	if c > 0 {
		if err := n.mendPort(t); err != nil {
			return c, err
		}
		if _, err := s.links(netplan.TaskLink); err != nil { // see awaitLink
			return c, err
		}
	}
	st.done = true
	return c, nil
}

// mendPort puts the sandbox's end of a link that was made anew into the
// bridge, whatever index it got.
func (n *Network) mendPort(t netplan.Task) error {
	links, err := n.gw.links("")
	if err != nil {
		return err
	}
	plan, b := netplan.TaskPort(n.node, t), &batch{}
	bridge := links[netplan.Bridge].index
	for _, l := range plan.Links {
		k, ok := links[l.Name]
		if !ok || bridge == 0 {
			return fmt.Errorf("link %s: %w", l.Name, errPeerMissing)
		}
		if k.master != bridge || !k.up {
			b.setLink(netplan.Link{Name: l.Name, Master: l.Master}, k.index, bridge)
		}
		if !k.port || k.master != bridge {
			b.setPort(l, k.index)
		}
	}
	for _, v := range plan.Neighbours {
		b.neighbour(v, links[v.Link].index, false)
	}
	for _, l := range plan.Links {
		b.awaitLink(links[l.Name].index, l.Name)
	}
	b.awaitLink(bridge, netplan.Bridge)
	return n.gw.rt.run(b)
}

// RemoveTask takes a task's network away. A task that is not there is no
// error. A process that is still in the namespace keeps it, and its link, until
// the address is given away.
func (n *Network) RemoveTask(ctx context.Context, id string) error {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return ErrNotReady
	}
	name := netplan.Task{ID: id}.Name()
	n.mu.Lock()
	st, ok := n.tasks[name]
	n.mu.Unlock()
	if !ok {
		if name == "" || name == netplan.GatewayName || name != filepath.Base(name) {
			return fmt.Errorf("task %q: not a container ID", id)
		}
		return dropNS(filepath.Join(n.cfg.Dir, name))
	}
	if err := n.acquire(ctx); err != nil {
		return err
	}
	defer n.release()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone {
		return nil
	}
	// Links go with the namespace. To delete them here would cost a wait for
	// every processor each time; the kernel takes namespaces down in batches.
	if err := errors.Join(n.dropNeighbours(st.task), dropNS(n.Path(st.task))); err != nil {
		return fmt.Errorf("task %s: remove network: %w", name, err)
	}
	n.forget(st)
	return nil
}

// forget drops the entry of a task. st.mu is held.
func (n *Network) forget(st *taskState) {
	st.gone = true
	n.mu.Lock()
	defer n.mu.Unlock()
	if name := st.task.Name(); n.tasks[name] == st {
		delete(n.tasks, name)
	}
}

// adoptFD binds a namespace that we hold open to path.
func adoptFD(path string, fd int) error {
	if err := touch(path); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace to %s: %w", path, err)
	}
	return nil
}

func closeFD(fd *int) error {
	if *fd < 0 {
		return nil
	}
	err := unix.Close(*fd)
	*fd = -1
	return err
}
