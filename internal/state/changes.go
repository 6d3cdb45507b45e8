package state

import (
	"net/netip"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
)

// maxClusterNodes bounds what one swarm may hold; far above the hundreds it is made for.
const maxClusterNodes = 1 << 16

// maxImages bounds the image table.
const maxImages = 1 << 16

func (w *writer) change(c *model.Change) error {
	switch {
	case c.PutCluster != nil:
		return w.putCluster(c.PutCluster)
	case c.PutNode != nil:
		return w.putNode(c.PutNode)
	case c.SetNodeSpec != nil:
		return w.setNodeSpec(c.SetNodeSpec)
	case c.SetNodeDesc != nil:
		return w.setNodeDesc(c.SetNodeDesc)
	case c.SetNodeState != nil:
		return w.setNodeState(c.SetNodeState)
	case c.SetNodeBlocks != nil:
		return w.setNodeBlocks(c.SetNodeBlocks)
	case c.DeleteNode != 0:
		return w.deleteNode(c.DeleteNode)
	case c.NewRevision != nil:
		return w.newRevision(c.NewRevision)
	case c.DeleteService != 0:
		return w.deleteService(c.DeleteService)
	case c.SetUpdate != nil:
		return w.setUpdate(c.SetUpdate)
	case c.SetPorts != nil:
		return w.setPorts(c.SetPorts)
	case c.PutTask != nil:
		return w.putTask(c.PutTask)
	case c.SetTaskDesired != nil:
		return w.setTaskDesired(c.SetTaskDesired)
	case c.SetTaskPlace != nil:
		return w.setTaskPlace(c.SetTaskPlace)
	case c.SetTaskStatus != nil:
		return w.setTaskStatus(c.SetTaskStatus)
	case c.DeleteTask != nil:
		return w.deleteTask(*c.DeleteTask)
	case c.Report != nil:
		return w.report(c.Report)
	case c.PutNetwork != nil:
		return w.putNetwork(c.PutNetwork)
	case c.DeleteNetwork != 0:
		return w.deleteNetwork(c.DeleteNetwork)
	case c.PutImage != nil:
		return w.putImage(c.PutImage)
	case c.DeleteImage != "":
		return w.deleteImage(c.DeleteImage)
	case c.PutTasks != nil:
		return w.putTasks(c.PutTasks)
	case c.SetVIPs != nil:
		return w.setVIPs(c.SetVIPs)
	case c.PutPayload != nil:
		return w.putPayload(c.PutPayload)
	case c.SetPayload != nil:
		return w.setPayload(c.SetPayload)
	case c.DeletePayload != nil:
		return w.deletePayload(*c.DeletePayload)
	case c.PutStack != nil:
		return w.putStackRevision(c.PutStack)
	case c.DeleteStack != "":
		return w.deleteStack(c.DeleteStack)
	case c.SetNotice != nil:
		return w.editService(c.SetNotice.Service, func(v *model.Service) {
			v.Notice = c.SetNotice.Text
			if c.SetNotice.Opened != 0 {
				v.Opened = c.SetNotice.Opened
			}
		})
	}
	return model.Invalidf("a change of a kind that this version does not know")
}

func (w *writer) putCluster(c *model.Cluster) error {
	n := *c
	if old := w.s.cluster; old != nil {
		if n.IDKey != old.IDKey {
			return model.Invalidf("a cluster's identifier key cannot change")
		}
		if n.Incarnation < old.Incarnation {
			return model.Stalef("the swarm is in incarnation %d already", old.Incarnation)
		}
		if n.Incarnation > old.Incarnation {
			if n.Incarnation-old.Incarnation > maxLives {
				return model.Invalidf("incarnation %d is more than %d after this one, %d", n.Incarnation, maxLives, old.Incarnation)
			}
			w.skipNumbers(n.Incarnation - old.Incarnation)
		}
		n.CreatedAt = old.CreatedAt
		n.SpecVersion = w.stamp(old.SpecVersion)
	} else {
		n.CreatedAt = w.now
		n.SpecVersion = w.stamp(1)
	}
	n.UpdatedAt = w.now
	w.s.cluster = &n
	w.touch(model.ClusterKey())
	return nil
}

// How many numbers a new incarnation leaves out: more than a former life can have given since the state that is
// taken up again. Of nodes fewer, for a node's number is in its addresses.
const (
	skipTasks     = 1 << 24
	skipTemplates = 1 << 24
	skipServices  = 1 << 16
	skipNetworks  = 1 << 12
	skipNodes     = 1 << 10

	maxLives = 32 // that an incarnation may be ahead of the one that it is taken up from
)

// skipNumbers keeps a new incarnation from giving a number again that was given after the state that it began with:
// nodes still hold what a former life called by it, and would take the one for the other. Lives may have begun with the
// same state before this one, so every one has a range of its own.
func (w *writer) skipNumbers(lives uint64) {
	for _, v := range slices.Collect(w.s.Services()) {
		n := *v
		n.LastTask += skipTasks * lives
		w.s.services.Set(n.ID, &n)
		w.touch(model.ServiceKey(n.ID))
	}
	w.s.lastTemplate += model.TemplateID(skipTemplates * lives)
	w.s.lastService += model.ServiceID(skipServices * lives)
	w.s.lastNetwork += model.NetworkID(skipNetworks * lives)
	w.s.lastNode += model.NodeID(skipNodes * lives)
	w.s.payloads.lastSecret += skipServices * lives
	w.s.payloads.lastConfig += skipServices * lives
}

func (w *writer) putNode(c *model.Node) error {
	if w.s.Node(c.ID) != nil || c.ID == 0 {
		return model.Conflictf("node %d exists", c.ID)
	}
	if w.s.nodes.Len() >= maxClusterNodes {
		return model.Errorf(model.Exhausted, "the swarm has %d nodes, the most it can hold", maxClusterNodes)
	}
	if err := w.checkBlocks(c.ID, c.Blocks); err != nil {
		return err
	}
	n := *c
	n.CreatedAt, n.UpdatedAt = w.now, w.now
	n.SpecVersion, n.DescVersion, n.StateVer = w.stamp(1), w.stamp(1), w.stamp(1)
	w.s.nodes.Set(n.ID, &n)
	w.s.lastNode = max(w.s.lastNode, n.ID)
	w.touch(model.NodeKey(n.ID))
	return nil
}

// editNode copies a node, lets f change the copy and stores it.
func (w *writer) editNode(id model.NodeID, f func(*model.Node) error) error {
	old := w.s.Node(id)
	if old == nil {
		return model.NotFoundf("node %s not found", w.s.name(model.NodeKey(id)))
	}
	n := *old
	if err := f(&n); err != nil {
		return err
	}
	w.s.nodes.Set(id, &n)
	w.touch(model.NodeKey(id))
	return nil
}

func (w *writer) setNodeSpec(c *model.NodeSpecSet) error {
	return w.editNode(c.Node, func(n *model.Node) error {
		n.Spec, n.UpdatedAt = c.Spec, w.now
		n.SpecVersion = w.stamp(n.SpecVersion)
		return nil
	})
}

func (w *writer) setNodeDesc(c *model.NodeDescSet) error {
	return w.editNode(c.Node, func(n *model.Node) error {
		n.Description, n.Routes, n.PortClashes = c.Description, c.Routes, c.PortClashes
		n.DescVersion = w.stamp(n.DescVersion)
		return nil
	})
}

func (w *writer) setNodeState(c *model.NodeStateSet) error {
	return w.editNode(c.Node, func(n *model.Node) error {
		n.State, n.Message = c.State, c.Message
		if c.Addr != "" {
			n.Addr = c.Addr
		}
		n.StateVer = w.stamp(n.StateVer)
		return nil
	})
}

// checkBlocks refuses address blocks for a node that overlap another node's.
func (w *writer) checkBlocks(node model.NodeID, blocks []netip.Prefix) error {
	if len(blocks) == 0 {
		return nil
	}
	for other := range w.s.Nodes() {
		if other.ID == node {
			continue
		}
		for _, have := range other.Blocks {
			for _, want := range blocks {
				if have.Overlaps(want) {
					return model.Conflictf("gateway block %s belongs to node %s", want, other.Hostname())
				}
			}
		}
	}
	return nil
}

// ownAddress refuses a gateway address that is not of the node's own blocks: the block that the planner thought
// of may have been refused.
func ownAddress(n *model.Node, addr netip.Addr) error {
	if !addr.IsValid() || slices.ContainsFunc(n.Blocks, func(b netip.Prefix) bool { return b.Contains(addr) }) {
		return nil
	}
	return model.Stalef("address %s is not of node %s", addr, n.Hostname())
}

func (w *writer) setNodeBlocks(c *model.NodeBlocksSet) error {
	if err := w.checkBlocks(c.Node, c.Blocks); err != nil {
		return err
	}
	return w.editNode(c.Node, func(n *model.Node) error {
		n.Blocks = c.Blocks
		return nil
	})
}

func (w *writer) deleteNode(id model.NodeID) error {
	if w.s.Node(id) == nil {
		return model.NotFoundf("node %s not found", w.s.name(model.NodeKey(id)))
	}
	w.s.nodes.Delete(id)
	w.touch(model.NodeKey(id))
	return nil
}

func (w *writer) putImage(c *model.Image) error {
	if c.Name == "" {
		return model.Invalidf("an image needs a name")
	}
	if w.s.Image(c.Name) == nil && w.s.images.Len() >= maxImages {
		return model.Errorf(model.Exhausted, "the swarm knows %d image names, the most it can hold: remove some (docker image rm)", maxImages)
	}
	n := *c
	n.At = w.now
	n.Version = w.stamp(max(n.Version, 1))
	w.s.images.Set(n.Name, &n)
	w.touch(model.ImageKey(n.Name))
	return nil
}

func (w *writer) deleteImage(name string) error {
	if _, ok := w.s.images.Delete(name); !ok {
		return model.NotFoundf("No such image: %s", name)
	}
	w.touch(model.ImageKey(name))
	return nil
}
