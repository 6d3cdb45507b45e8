package state

import (
	"iter"

	"github.com/skep-swarm/skep/internal/model"
)

// maxNetworks bounds the networks of a swarm.
const maxNetworks = 1 << 14

// netTask is a task that has an address in a network.
type netTask struct {
	network model.NetworkID
	task    model.TaskID
}

func (a netTask) less(b netTask) bool {
	if a.network != b.network {
		return a.network < b.network
	}
	return a.task.Less(b.task)
}

// netService is a service whose template in force is attached to a network.
type netService struct {
	network model.NetworkID
	service model.ServiceID
}

func (a netService) less(b netService) bool {
	if a.network != b.network {
		return a.network < b.network
	}
	return a.service < b.service
}

// AllNetworks goes over all networks in key order, those too that users deleted and that only wait for the end of
// their last task.
func (s *Snapshot) AllNetworks() iter.Seq[*model.Network] {
	return func(yield func(*model.Network) bool) {
		s.networks.Scan(func(_ model.NetworkID, v *model.Network) bool { return yield(v) })
	}
}

// NetworkTasks goes over the tasks that have an address in a network, by service and number.
func (s *Snapshot) NetworkTasks(id model.NetworkID) iter.Seq[*model.Task] {
	return func(yield func(*model.Task) bool) {
		s.netTasks.Ascend(netTask{network: id}, func(k netTask) bool {
			if k.network != id {
				return false
			}
			t := s.Task(k.task)
			return t == nil || yield(t)
		})
	}
}

// NetworkServices goes over the services whose template in force is attached to a network, oldest first.
func (s *Snapshot) NetworkServices(id model.NetworkID) iter.Seq[*model.Service] {
	return func(yield func(*model.Service) bool) {
		s.netSvcs.Ascend(netService{network: id}, func(k netService) bool {
			if k.network != id {
				return false
			}
			v := s.Service(k.service)
			return v == nil || yield(v)
		})
	}
}

// NumNetworks counts the networks, deleted ones that still have tasks included.
func (s *Snapshot) NumNetworks() int { return s.networks.Len() }

func (w *writer) putNetwork(c *model.Network) error {
	if c.ID == 0 || c.ID >= model.NetworkIngress || c.Name == "" {
		return model.Invalidf("a network needs a number and a name")
	}
	if w.s.Network(c.ID) != nil {
		return model.Conflictf("network %s exists", w.s.name(model.NetworkKey(c.ID)))
	}
	if _, ok := w.s.netNames.Get(c.Name); ok {
		return model.Conflictf("network with name %s already exists", c.Name)
	}
	if w.s.networks.Len() >= maxNetworks {
		return model.Errorf(model.Exhausted, "the swarm has %d networks, the most it can hold: remove some (docker network prune)", maxNetworks)
	}
	if c.VNI != 0 {
		for o := range w.s.AllNetworks() {
			if o.VNI == c.VNI {
				return model.Stalef("VXLAN identifier %d is that of network %s", c.VNI, o.Name)
			}
		}
	}
	n := *c
	n.CreatedAt, n.Deleted = w.now, false
	n.Version = w.stamp(max(n.Version, 1))
	w.s.networks.Set(n.ID, &n)
	w.s.netNames.Set(n.Name, n.ID)
	w.s.lastNetwork = max(w.s.lastNetwork, n.ID)
	w.touch(model.NetworkKey(n.ID))
	return nil
}

// deleteNetwork takes a network from its users. While tasks on their way out still have addresses in it, it stays
// hidden, so that nobody else gets its subnet or its number on the wire.
func (w *writer) deleteNetwork(id model.NetworkID) error {
	n := w.s.Network(id)
	if n == nil || n.Deleted {
		return model.NotFoundf("network %s not found", w.s.name(model.NetworkKey(id)))
	}
	for v := range w.s.NetworkServices(id) {
		return model.Errorf(model.FailedPrecondition, "network %s is in use by service %s", w.s.name(model.NetworkKey(id)), w.s.name(model.ServiceKey(v.ID)))
	}
	attached := false
	for t := range w.s.NetworkTasks(id) {
		attached = true
		if t.Desired <= model.StateRunning && w.s.Service(t.ID.Service) != nil {
			// Of a template that is being replaced, or would be taken back to.
			return model.Errorf(model.FailedPrecondition, "network %s is in use by task %s", w.s.name(model.NetworkKey(id)), w.s.name(model.TaskKey(t.ID)))
		}
	}
	w.s.netNames.Delete(n.Name)
	w.touch(model.NetworkKey(id))
	if attached {
		hidden := *n
		hidden.Deleted = true
		w.s.networks.Set(id, &hidden)
	} else {
		w.purgeNetwork(id)
	}
	w.leaveStack(n.Labels)
	return nil
}

// purgeNetwork forgets a network that nothing is attached to any more.
func (w *writer) purgeNetwork(id model.NetworkID) {
	w.s.networks.Delete(id)
	w.s.dropAddrs(id)
	w.touch(model.NetworkKey(id))
}

// attachService keeps the index of who uses which network: old and now are a service before and after a change, nil
// where there is none.
func (w *writer) attachService(old, now *model.Service) {
	if old != nil {
		for _, a := range w.s.attachments(old) {
			w.s.netSvcs.Delete(netService{a.Network, old.ID})
		}
	}
	if now != nil {
		for _, a := range w.s.attachments(now) {
			w.s.netSvcs.Set(netService{a.Network, now.ID})
		}
	}
}

// attachments are the networks of a service's template in force.
func (s *Snapshot) attachments(v *model.Service) []model.NetAttach {
	if t := s.Template(v.Template); t != nil {
		return t.Nets
	}
	return nil
}

// checkNets is the last guard: whatever the planner thought, no address of a network is given twice.
func (w *writer) checkNets(nets []model.TaskNet) error {
	for i := range nets {
		if err := w.checkNet(&nets[i]); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) checkNet(a *model.TaskNet) error {
	n := w.s.Network(a.Network)
	if n == nil || n.Deleted {
		return model.Stalef("network %s is gone", w.s.name(model.NetworkKey(a.Network)))
	}
	if c, _ := n.Subnet4(a.Addr4); c == nil || n.Addr6(a.Addr4) != a.Addr6 {
		return model.Stalef("address %s is not one of network %s", a.Addr4, n.Name)
	}
	if w.s.NetAddrInUse(a.Network, a.Addr4) {
		return model.Stalef("address %s of network %s is in use", a.Addr4, n.Name)
	}
	return nil
}

// claimNets books a task's addresses, which have been checked.
func (w *writer) claimNets(id model.TaskID, nets []model.TaskNet) {
	for i := range nets {
		w.claimAddr(nets[i].Network, nets[i].Addr4)
		w.s.netTasks.Set(netTask{nets[i].Network, id})
	}
}

// releaseNets gives a task's addresses back. The last task of a deleted network takes the network along.
func (w *writer) releaseNets(t *model.Task) {
	for i := range t.Nets {
		id := t.Nets[i].Network
		w.s.netTasks.Delete(netTask{id, t.ID})
		w.freeNetAddr(id, t.Nets[i].Addr4)
		if n := w.s.Network(id); n != nil && n.Deleted && w.s.netUsed(id) == 0 {
			w.purgeNetwork(id)
		}
	}
}

func (w *writer) setVIPs(c *model.VIPsSet) error {
	old := w.s.Service(c.Service)
	if old == nil {
		return model.NotFoundf("service %s not found", w.s.name(model.ServiceKey(c.Service)))
	}
	for i, vip := range c.VIPs {
		if has(old.VIPs, vip) {
			continue
		}
		if err := w.checkNet((*model.TaskNet)(&c.VIPs[i])); err != nil {
			return err
		}
	}
	w.replaceVIPs(old.VIPs, c.VIPs)
	return w.editService(c.Service, func(v *model.Service) {
		v.VIPs, v.NetError = c.VIPs, c.Err
		v.PortVersion = w.stamp(v.PortVersion)
	})
}

// replaceVIPs books what is new and gives back what is not kept.
func (w *writer) replaceVIPs(old, now []model.VIP) {
	for _, v := range old {
		if !has(now, v) {
			w.freeNetAddr(v.Network, v.Addr4)
		}
	}
	for _, v := range now {
		if !has(old, v) {
			w.claimAddr(v.Network, v.Addr4)
		}
	}
}

// keptVIPs are the virtual addresses that a service keeps with its new revision; the others are planned anew.
func (w *writer) keptVIPs(v *model.Service) []model.VIP {
	if len(v.VIPs) == 0 || !model.WantsVIP(v.Spec()) {
		return nil
	}
	var out []model.VIP
	for _, a := range w.s.attachments(v) {
		for _, vip := range v.VIPs {
			if vip.Network == a.Network {
				out = append(out, vip)
			}
		}
	}
	return out
}

func has(list []model.VIP, v model.VIP) bool {
	for _, o := range list {
		if o == v {
			return true
		}
	}
	return false
}
