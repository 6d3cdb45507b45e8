package state

import (
	"strings"

	"github.com/skep-swarm/skep/internal/model"
)

// FindService, FindNode, FindTask and FindNetwork look an object up as Docker does: by its full
// identifier, then by its exact name, then by a prefix of its identifier that only it has.
// The errors are NotFound ("service x not found") and Invalid ("service x is ambiguous (2
// matches found)"). Looking up by prefix goes over all objects of the kind.
func (s *Snapshot) FindService(ref string) (*model.Service, error) {
	return find(s, model.KindService, ref, func(k model.Key) *model.Service { return s.Service(k.Service()) },
		func() []*model.Service {
			if v := s.ServiceByName(ref); v != nil {
				return []*model.Service{v}
			}
			return nil
		},
		func(yield func(model.Key) bool) {
			s.services.Scan(func(id model.ServiceID, _ *model.Service) bool { return yield(model.ServiceKey(id)) })
		})
}

// FindNode looks a node up; its host name is its name.
func (s *Snapshot) FindNode(ref string) (*model.Node, error) {
	return find(s, model.KindNode, ref, func(k model.Key) *model.Node { return s.Node(k.Node()) },
		func() (found []*model.Node) {
			for n := range s.Nodes() {
				if n.Hostname() == ref || n.Spec.Name == ref && ref != "" {
					found = append(found, n)
				}
			}
			return found
		},
		func(yield func(model.Key) bool) {
			s.nodes.Scan(func(id model.NodeID, _ *model.Node) bool { return yield(model.NodeKey(id)) })
		})
}

// FindTask looks a task up; a task's name is service.slot.id.
func (s *Snapshot) FindTask(ref string) (*model.Task, error) {
	id := ref
	if i := strings.LastIndexByte(ref, '.'); i >= 0 && len(ref)-i-1 == model.IDLen {
		id = ref[i+1:]
	}
	return find(s, model.KindTask, id, func(k model.Key) *model.Task { return s.Task(k.Task()) },
		func() []*model.Task { return nil },
		func(yield func(model.Key) bool) {
			s.tasks.Scan(func(k taskAt) bool { return yield(model.TaskKey(k.id)) })
		})
}

// FindNetwork looks a swarm network up.
func (s *Snapshot) FindNetwork(ref string) (*model.Network, error) {
	return find(s, model.KindNetwork, ref,
		func(k model.Key) *model.Network {
			if n := s.Network(model.NetworkID(k.A)); n != nil && !n.Deleted {
				return n
			}
			return nil
		},
		func() []*model.Network {
			if n := s.NetworkByName(ref); n != nil {
				return []*model.Network{n}
			}
			return nil
		},
		func(yield func(model.Key) bool) {
			s.networks.Scan(func(id model.NetworkID, n *model.Network) bool { return n.Deleted || yield(model.NetworkKey(id)) })
		})
}

func find[T any](s *Snapshot, kind model.Kind, ref string, get func(model.Key) *T, named func() []*T, keys func(func(model.Key) bool)) (*T, error) {
	notFound := model.NotFoundf("%s %s not found", kind, ref)
	if s.cluster == nil || ref == "" {
		return nil, notFound
	}
	namer := s.cluster.Namer()
	if k, ok := namer.Parse(ref); ok && k.Kind == kind {
		if v := get(k); v != nil {
			return v, nil
		}
	}
	found := named()
	if len(found) == 0 && len(ref) < model.IDLen {
		for k := range keys {
			if strings.HasPrefix(namer.ID(k), ref) {
				found = append(found, get(k))
			}
		}
	}
	switch len(found) {
	case 0:
		return nil, notFound
	case 1:
		return found[0], nil
	}
	return nil, model.Invalidf("%s %s is ambiguous (%d matches found)", kind, ref, len(found))
}
