package netapply

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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
	nets, err := n.netsOf(t, false)
	if err != nil {
		return "", fmt.Errorf("task %s: %w", t.Name(), err)
	}
	if err := nets.CheckNets(t); err != nil {
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
		return path, n.setDNS(st, t.DNS)
	}
	st.task.DNS = t.DNS
	if err := n.setUp(st, nets.Sealed(t)); err != nil {
		if !st.done {
			n.nf.drop(path)
			err = errors.Join(err, dropNS(path))
			n.forget(st)
		}
		return "", fmt.Errorf("task %s: set up network: %w", t.Name(), err)
	}
	st.done = true
	return path, nil
}

// setUp makes a task's namespace, or mends it: all of it before a process of the task can send anything. st.mu is held.
func (n *Network) setUp(st *taskState, sealed bool) error {
	if isNS(n.Path(st.task)) || st.done || st.task.PID != 0 {
		if _, err := n.mendTask(st); err != nil {
			return err
		}
		if _, err := n.checkTable(st); err != nil {
			return err
		}
	} else {
		if err := n.makeTask(st.task); err != nil {
			return err
		}
		if _, err := n.mendTable(st); err != nil {
			return err
		}
	}
	if sealed {
		return n.seal()
	}
	return nil
}

// SetDNS says where in a task's namespace its resolver listens.
func (n *Network) SetDNS(_ context.Context, id string, ports netplan.DNSPorts) error {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return ErrNotReady
	}
	n.mu.Lock()
	st := n.tasks[netplan.Task{ID: id}.Name()]
	n.mu.Unlock()
	if st == nil {
		return fmt.Errorf("task %s is not on this node", netplan.Task{ID: id}.Name())
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone || !st.done {
		return fmt.Errorf("task %s has no network", st.name())
	}
	return n.setDNS(st, ports)
}

// setDNS writes the chain that leads to a task's resolver. st.mu is held.
func (n *Network) setDNS(st *taskState, ports netplan.DNSPorts) error {
	if st.task.DNS == ports {
		return nil
	}
	st.task.DNS = ports
	b, err := encodeOut(n.node, ports)
	if err != nil {
		return err
	}
	return n.changeTable(st, b, nil)
}

// claim finds or makes the entry of a task and refuses what clashes.
func (n *Network) claim(t netplan.Task) (*taskState, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if st, ok := n.tasks[t.Name()]; ok {
		if st.task.ID != t.ID || st.task.Addr4 != t.Addr4 || st.task.Addr6 != t.Addr6 || !slices.Equal(st.task.Nets, t.Nets) {
			return nil, fmt.Errorf("task %s is here already with addresses %v and %v", t.Name(), st.task.Addr4, st.task.Addr6)
		}
		return st, nil
	}
	if len(n.tasks) >= netplan.MaxTasks {
		return nil, fmt.Errorf("this node has %d tasks: no more fit on its gateway bridge", len(n.tasks))
	}
	for _, o := range n.tasks {
		if o.task.Addr4 == t.Addr4 || o.task.Addr6.IsValid() && o.task.Addr6 == t.Addr6 {
			return nil, fmt.Errorf("task %s: address %v or %v belongs to task %s", t.Name(), t.Addr4, t.Addr6, o.name())
		}
		for _, a := range t.Nets {
			if slices.ContainsFunc(o.task.Nets, func(b netplan.Attachment) bool {
				return a.Network == b.Network && (a.Addr4 == b.Addr4 || a.Addr6.IsValid() && a.Addr6 == b.Addr6)
			}) {
				return nil, fmt.Errorf("task %s: address %v or %v in network %d belongs to task %s", t.Name(), a.Addr4, a.Addr6, a.Network, o.name())
			}
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
	nets, err := n.netsOf(t, false)
	if err != nil {
		return err
	}
	path, plan := n.Path(t), netplan.TaskSpace(n.node, nets, t)
	n.nf.drop(path)
	return newNS(path, func() error {
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
		places, err := n.places(t)
		if err != nil {
			return err
		}
		for _, p := range places {
			if err := p.attach(); err != nil {
				return err
			}
		}
		b := &batch{}
		for _, l := range plan.Links {
			if l.Index != 0 {
				b.awaitLink(l.Index, l.Name)
			}
		}
		return rt.run(b)
	})
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
		places, e := n.places(t)
		if e != nil {
			return e
		}
		for _, p := range places {
			if err := p.drop(); err != nil {
				return err
			}
		}
		if err = s.fresh(plan, n.resolve); err != nil {
			time.Sleep(busyPause)
		}
	}
	return err
}

// dropNeighbours removes the sandbox's neighbour entries of a task.
func (n *Network) dropNeighbours(t netplan.Task) error {
	links, err := n.gw.links(netplan.Bridge)
	if err != nil || links[netplan.Bridge].index == 0 {
		return nil // they went with the bridge
	}
	bridge, b := links[netplan.Bridge].index, &batch{}
	for _, v := range netplan.TaskPort(n.node, t).Neighbours {
		if v.Addr.IsValid() {
			b.neighbour(v, bridge, true)
		}
	}
	return n.gw.rt.run(b)
}

// mendTask compares a task's namespace with its plan, makes it when it is
// missing, and returns how many requests it wrote. st.mu is held.
func (n *Network) mendTask(st *taskState) (c int, err error) {
	t := st.task
	path := n.Path(t)
	defer func() { st.bad = err != nil }()
	nets, err := n.netsOf(t, false)
	if err != nil {
		return 0, err
	}
	if !isNS(path) {
		n.nf.drop(path)
		st.gen = 0
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
	if c, err = s.reconcile(netplan.TaskSpace(n.node, nets, t), n.resolve, nil); err != nil {
		return c, err
	}
	if c > 0 {
		places, err := n.places(t)
		if err != nil {
			return c, err
		}
		for _, p := range places {
			if err := p.mend(); err != nil {
				return c, err
			}
		}
		if _, err := s.links(netplan.TaskLink); err != nil { // see awaitLink
			return c, err
		}
	}
	st.done = true
	return c, nil
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
		path := filepath.Join(n.cfg.Dir, name)
		n.nf.drop(path)
		return dropNS(path)
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
	n.nf.drop(n.Path(st.task))
	if err := errors.Join(n.dropNeighbours(st.task), dropNS(n.Path(st.task))); err != nil {
		return fmt.Errorf("task %s: remove network: %w", name, err)
	}
	n.forget(st)
	if len(st.task.Nets) == 0 {
		return nil
	}
	return n.seal() // its address may be given to one that may do what it must not
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
