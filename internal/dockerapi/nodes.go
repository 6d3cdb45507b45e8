package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

func (s *Server) listNodes(r *request) error {
	f, err := readFilters(r, "id", "label", "membership", "name", "node.label", "role")
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	for _, m := range f["membership"] {
		if m != "accepted" && m != "pending" {
			return model.Invalidf("invalid filter 'membership=%s'", m)
		}
	}
	for _, role := range f["role"] {
		if role != string(swarm.NodeRoleManager) && role != string(swarm.NodeRoleWorker) {
			return model.Invalidf("invalid filter 'role=%s'", role)
		}
	}
	out := []swarm.Node{}
	for n := range snap.Nodes() {
		v := s.nodeView(snap, n)
		if f.prefix("id", v.ID) && f.prefix("name", n.Hostname()) && f.labels("label", n.Description.Engine.Labels) &&
			f.labels("node.label", n.Spec.Labels) && f.exact("role", string(n.Spec.Role)) && f.exact("membership", "accepted") {
			out = append(out, v)
		}
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) getNode(r *request) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	n, err := snap.FindNode(r.vars["id"])
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, s.nodeView(snap, n))
}

func (s *Server) updateNode(r *request) error {
	version, err := readVersion(r, "node")
	if err != nil {
		return err
	}
	var spec swarm.NodeSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	if err := admitNode(&spec); err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	found, err := snap.FindNode(r.vars["id"])
	if err != nil {
		return err
	}
	_, err = s.write(r.ctx(), "update node "+found.Hostname(), func(snap *state.Snapshot) (model.Txn, error) {
		n := snap.Node(found.ID)
		if n == nil {
			return model.Txn{}, model.NotFoundf("node %s not found", r.vars["id"])
		}
		if n.SpecVersion != version {
			return model.Txn{}, errOutOfSequence
		}
		if err := mayChangeNode(snap, &n.Spec, &spec); err != nil {
			return model.Txn{}, err
		}
		return model.Txn{
			Guards:  []model.Guard{{Key: model.NodeKey(n.ID), Group: model.GroupSpec, Version: version}},
			Changes: []model.Change{{SetNodeSpec: &model.NodeSpecSet{Node: n.ID, Spec: spec}}},
		}, nil
	})
	if err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

func admitNode(spec *swarm.NodeSpec) error {
	switch spec.Role {
	case swarm.NodeRoleManager, swarm.NodeRoleWorker:
	default:
		return model.Invalidf("invalid Role: %q", spec.Role)
	}
	switch spec.Availability {
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return model.Invalidf("invalid Availability: %q", spec.Availability)
	}
	return admitLabels("Labels", spec.Labels)
}

func mayChangeNode(snap *state.Snapshot, old, spec *swarm.NodeSpec) error {
	if old.Role == swarm.NodeRoleManager && spec.Role == swarm.NodeRoleWorker {
		managers := 0
		for n := range snap.Nodes() {
			if n.Spec.Role == swarm.NodeRoleManager {
				managers++
			}
		}
		if managers <= 1 {
			return rpcErrorf(model.FailedPrecondition, "attempting to demote the last manager of the swarm")
		}
	}
	return unsupportedNode(old, spec)
}

func (s *Server) removeNode(r *request) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	n, err := snap.FindNode(r.vars["id"])
	if err != nil {
		return err
	}
	id := snap.Cluster().Namer().NodeID(n.ID)
	if n.Spec.Role == swarm.NodeRoleManager {
		return rpcErrorf(model.FailedPrecondition, "node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", id)
	}
	if n.State == swarm.NodeStateReady && !r.bool("force") {
		return rpcErrorf(model.FailedPrecondition, "node %s is not down and can't be removed", id)
	}
	if _, err := s.propose(r.ctx(), "remove node "+n.Hostname(), model.Txn{Changes: []model.Change{{DeleteNode: n.ID}}}); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}
