package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/skep-swarm/skep/internal/netapply"
	"github.com/skep-swarm/skep/internal/netplan"
)

// fakeNet is a gateway network in memory.
type fakeNet struct {
	mu    sync.Mutex
	syncs int
	tasks map[string]netplan.Task
	ports map[netplan.PortKey]netplan.Port
	nets  map[uint64]map[netip.Addr][]netip.Addr // virtual addresses and their backends
	onSet func()                                 // told before ports change
	fail  error
	// refused are networks that the kernel refuses, locked those with a task that keeps its old virtual addresses.
	refused, locked map[uint64]bool
}

func newFakeNet() *fakeNet {
	return &fakeNet{tasks: map[string]netplan.Task{}, ports: map[netplan.PortKey]netplan.Port{}, nets: map[uint64]map[netip.Addr][]netip.Addr{},
		refused: map[uint64]bool{}, locked: map[uint64]bool{}}
}

func (n *fakeNet) Sync(_ context.Context, in netplan.Input) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := in.Validate(); err != nil {
		return 0, err
	}
	n.syncs++
	clear(n.tasks)
	clear(n.ports)
	clear(n.nets)
	var errs []error
	for _, o := range in.Overlays {
		n.lay(o)
		errs = append(errs, n.trouble(o.Num))
	}
	for _, t := range in.Tasks {
		n.tasks[t.ID] = t
	}
	for _, p := range in.Ports {
		n.ports[p.PortKey] = p
	}
	return 0, errors.Join(append(errs, n.fail)...)
}

func (n *fakeNet) lay(o netplan.Overlay) {
	n.nets[o.Num] = map[netip.Addr][]netip.Addr{}
	for _, v := range o.VIPs {
		n.nets[o.Num][v.Addr] = v.Backends
	}
}

// trouble is what a network or a task of it has.
func (n *fakeNet) trouble(num uint64) error {
	switch {
	case n.refused[num]:
		return &netplan.PartError{Network: num, Err: errors.New("another program of this host uses it")}
	case n.locked[num]:
		return &netplan.PartError{Task: "locked", Nets: []uint64{num}, Err: errors.New("not permitted")}
	}
	return nil
}

func (n *fakeNet) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *fakeNet) AddTask(_ context.Context, t netplan.Task) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return "", n.fail
	}
	n.tasks[t.ID] = t
	return "/netns/" + t.Name(), nil
}

func (n *fakeNet) RemoveTask(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.tasks, id)
	return nil
}

func (n *fakeNet) SetPorts(_ context.Context, set []netplan.Port, del []netplan.PortKey) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.onSet != nil {
		n.onSet()
	}
	for _, p := range set {
		n.ports[p.PortKey] = p
	}
	for _, k := range del {
		delete(n.ports, k)
	}
	return nil
}

func (n *fakeNet) SetOverlay(_ context.Context, o netplan.Overlay) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := (netplan.Node{}).CheckOverlay(o); err != nil {
		return err
	}
	n.lay(o)
	return n.trouble(o.Num)
}

func (n *fakeNet) SetVIPs(_ context.Context, num uint64, set []netplan.VIP, del []netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nets[num] == nil {
		return netapply.ErrUnknownNetwork
	}
	for _, v := range set {
		n.nets[num][v.Addr] = v.Backends
	}
	for _, a := range del {
		delete(n.nets[num], a)
	}
	if n.locked[num] {
		return n.trouble(num)
	}
	return nil
}

func (n *fakeNet) RemoveOverlay(_ context.Context, num uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.tasks {
		for _, a := range t.Nets {
			if a.Network == num {
				return errors.New("a task is attached")
			}
		}
	}
	delete(n.nets, num)
	return nil
}

func (n *fakeNet) SetDNS(_ context.Context, id string, p netplan.DNSPorts) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, ok := n.tasks[id]
	if !ok {
		return fmt.Errorf("no task %s", id)
	}
	t.DNS = p
	n.tasks[id] = t
	return nil
}

// dns is where a task's questions are led.
func (n *fakeNet) dns(id string) netplan.DNSPorts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tasks[id].DNS
}

func (n *fakeNet) port(k netplan.PortKey) (netplan.Port, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.ports[k]
	return p, ok
}

func (n *fakeNet) numTasks() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.tasks)
}
