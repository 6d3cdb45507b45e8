package sim

import (
	"fmt"
	"math/rand/v2"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// This file is what users do to nodes and to the swarm as a whole.

// history changes how many old tasks the swarm keeps.
func (u *users) history(m *member) {
	c := *m.snap.Cluster()
	limits := []int64{0, 1, 5, 10}
	spec := *c.Spec.Typed
	spec.Orchestration.TaskHistoryRetentionLimit = &limits[u.w.rng.IntN(len(limits))]
	made, err := model.MakeSpec(&spec)
	if err != nil {
		u.w.fail("the swarm's spec cannot be made: %v", err)
		return
	}
	c.Spec = made
	u.write(m, "history limit", []model.Guard{{Key: model.ClusterKey(), Group: model.GroupSpec, Version: c.SpecVersion}}, model.Change{PutCluster: &c})
}

func (u *users) manyDown(m *member) bool {
	down := 0
	for n := range m.snap.Nodes() {
		if n.State == swarm.NodeStateDown {
			down++
		}
	}
	return down > 1
}

// acceptLoss says that nodes that are down are lost.
func (u *users) acceptLoss(m *member) {
	c := *m.snap.Cluster()
	c.LossAccepted = max(m.wall(), m.snap.Time())
	u.write(m, "accept loss", []model.Guard{{Key: model.ClusterKey(), Group: model.GroupSpec, Version: c.SpecVersion}}, model.Change{PutCluster: &c})
}

// missing removes nodes that the state knows and that are gone for good: a swarm that was taken up again from an
// older state may have some.
func (u *users) missing() {
	w := u.w
	m := w.log.leader
	if m == nil {
		w.after(senderUser, second, u.missing)
		return
	}
	for n := range m.snap.Nodes() {
		if h := w.host(n.ID); h == nil || h.gone {
			u.write(m, "remove node", nil, model.Change{DeleteNode: n.ID})
			w.after(senderUser, second, u.missing)
			return
		}
	}
}

// node changes some node: drain, pause, activate, another label; or it removes one that is down.
func (u *users) node(m *member) {
	w := u.w
	var ids []model.NodeID
	for n := range m.snap.Nodes() {
		ids = append(ids, n.ID)
	}
	n := m.snap.Node(ids[w.rng.IntN(len(ids))])
	if (n.State == swarm.NodeStateDown || w.chance(.05)) && len(ids) > 2 && w.chance(.3) {
		u.write(m, "remove node", nil, model.Change{DeleteNode: n.ID})
		if len(w.nodes) < 8 {
			w.after(senderUser, w.between(second, 10*second), w.join)
		}
		return
	}
	spec := n.Spec
	switch w.rng.IntN(6) {
	case 0:
		spec.Availability = swarm.NodeAvailabilityDrain
	case 1:
		spec.Availability = swarm.NodeAvailabilityPause
	case 2, 3, 4:
		spec.Availability = swarm.NodeAvailabilityActive
	default:
		spec.Labels = map[string]string{"zone": fmt.Sprint(w.rng.IntN(2))}
	}
	u.setNode(m, n, spec)
}

func (u *users) setNode(m *member, n *model.Node, spec swarm.NodeSpec) {
	u.write(m, "update node", []model.Guard{{Key: model.NodeKey(n.ID), Group: model.GroupSpec, Version: n.SpecVersion}},
		model.Change{SetNodeSpec: &model.NodeSpecSet{Node: n.ID, Spec: spec}})
}

// leaves reports whether nodes that users drained or paused stay so for good, as they do in some seeds.
func (u *users) leaves() bool { return rand.New(rand.NewPCG(u.w.opt.Seed, 0xd8a1)).IntN(4) == 0 }

// mend ends what troubles the swarm by the users' own will: services whose containers do not run,
// and, in most seeds, nodes that are not available. It is asked again until there is nothing left to mend.
func (u *users) mend() {
	w := u.w
	m := w.log.leader
	if m == nil {
		w.after(senderUser, second, u.mend)
		return
	}
	todo := false
	u.missing()
	for s := range m.snap.Services() {
		job := s.JobIteration != 0
		image := behaviour(s.Spec().TaskTemplate.ContainerSpec.Image)
		if job && image != imageExit || !job && image != imageGood && image != imageChecked {
			todo = true
			u.revise(m, s.ID, "mend", func(spec *swarm.ServiceSpec) { spec.TaskTemplate.ContainerSpec.Image = u.image(spec) })
		}
	}
	for n := range m.snap.Nodes() {
		if n.Spec.Availability != swarm.NodeAvailabilityActive && !u.leaves() {
			todo = true
			spec := n.Spec
			spec.Availability = swarm.NodeAvailabilityActive
			u.setNode(m, n, spec)
		}
	}
	if todo {
		w.after(senderUser, second, u.mend)
	}
}
