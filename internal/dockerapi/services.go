package dockerapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

func (s *Server) listServices(r *request) error {
	f, err := readFilters(r, "id", "label", "mode", "name", "runtime")
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	opt := serviceViewOptions{status: r.bool("status"), insertDefaults: r.bool("insertDefaults"), version: r.version}
	out := []serviceView{}
	for svc := range snap.Services() {
		spec := svc.Spec()
		if !f.prefix("id", snap.Cluster().Namer().ServiceID(svc.ID)) || !f.prefix("name", spec.Name) || !f.labels("label", spec.Labels) ||
			!f.exact("mode", modeOf(spec)) || !f.exact("runtime", string(spec.TaskTemplate.Runtime)) {
			continue
		}
		v, err := viewService(snap, svc, opt)
		if err != nil {
			return err
		}
		out = append(out, v)
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) getService(r *request) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	svc, err := snap.FindService(r.vars["id"])
	if err != nil {
		return err
	}
	v, err := viewService(snap, svc, serviceViewOptions{insertDefaults: r.bool("insertDefaults"), version: r.version})
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, v)
}

func (s *Server) createService(r *request) error {
	if err := notManager(s.backend.Local(), unavailable); err != nil {
		return err
	}
	spec, err := s.readService(r)
	if err != nil {
		return err
	}
	warnings, err := s.checkHostPorts(r.ctx(), nil, spec.Typed)
	if err != nil {
		return err
	}
	from, err := s.imageFrom(r, nil, nil, spec.Typed, false)
	if err != nil {
		return err
	}
	out, err := s.write(r.ctx(), "create service "+spec.Typed.Name, planCreate(spec, from))
	if err != nil {
		return err
	}
	id, err := s.createdID(r.ctx(), out, spec.Typed.Name)
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusCreated, swarm.ServiceCreateResponse{ID: id, Warnings: warnings})
}

// readService reads and admits the spec in a request's body.
func (s *Server) readService(r *request) (model.ServiceSpec, error) {
	raw, err := readBody(r)
	if err != nil {
		return model.ServiceSpec{}, err
	}
	spec, err := parseService(raw)
	if err != nil {
		return spec, err
	}
	if spec.Typed.Name == "" {
		if spec, err = s.giveName(spec); err != nil {
			return spec, err
		}
	}
	return spec, admit(spec.Typed)
}

// createdID is the identifier of the service that a write made. The outcome of a batch that was
// sent twice names nothing; then the name does.
func (s *Server) createdID(ctx context.Context, out *model.Outcome, name string) (string, error) {
	snap, err := s.state(ctx)
	if err != nil {
		return "", err
	}
	namer := snap.Cluster().Namer()
	for _, k := range out.Touched {
		if k.Kind == model.KindService {
			return namer.ID(k), nil
		}
	}
	if svc := snap.ServiceByName(name); svc != nil {
		return namer.ServiceID(svc.ID), nil
	}
	return "", rpcErrorf(model.NotFound, "service %s was created, but is gone again", name)
}

func (s *Server) updateService(r *request) error {
	version, err := readVersion(r, "service")
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	svc, err := snap.FindService(r.vars["id"])
	if err != nil {
		return err
	}
	var spec model.ServiceSpec
	reason := "update service " + svc.Name()
	rollback := r.query("rollback")
	switch rollback {
	case "", "none":
		if spec, err = s.readService(r); err != nil {
			return err
		}
	case "previous":
		if spec, err = previousSpec(snap, svc); err != nil {
			return err
		}
		reason = "roll back service " + svc.Name()
	default:
		return model.Invalidf("unrecognized rollback option %s", rollback)
	}
	warnings, err := s.checkHostPorts(r.ctx(), svc, spec.Typed)
	if err != nil {
		return err
	}
	from, err := s.imageFrom(r, snap, svc, spec.Typed, rollback == "previous")
	if err != nil {
		return err
	}
	if _, err := s.write(r.ctx(), reason, planUpdate(svc.ID, version, spec, from, rollback == "previous", model.Time(s.now().UnixNano()))); err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: warnings})
}

func previousSpec(snap *state.Snapshot, svc *model.Service) (model.ServiceSpec, error) {
	p := svc.Previous()
	if p == nil {
		return model.ServiceSpec{}, rpcErrorf(model.FailedPrecondition, "service %s does not have a previous spec", snap.Cluster().Namer().ServiceID(svc.ID))
	}
	return p.Spec, nil
}

func (s *Server) removeService(r *request) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	svc, err := snap.FindService(r.vars["id"])
	if err != nil {
		return err
	}
	if _, err := s.propose(r.ctx(), "remove service "+svc.Name(), model.Txn{Changes: []model.Change{{DeleteService: svc.ID}}}); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

// checkHostPorts asks the nodes about ports that the service does not have yet. A port that no
// ready node can hold is refused; one that some cannot hold is worth a warning.
func (s *Server) checkHostPorts(ctx context.Context, old *model.Service, spec *swarm.ServiceSpec) ([]string, error) {
	var added []swarm.PortConfig
	if spec.EndpointSpec != nil {
		for _, p := range spec.EndpointSpec.Ports {
			had := old != nil && slices.ContainsFunc(old.Ports, func(o swarm.PortConfig) bool {
				return o.PublishedPort == p.PublishedPort && o.Protocol == p.Protocol
			})
			if p.PublishedPort != 0 && !had {
				added = append(added, p)
			}
		}
	}
	if len(added) == 0 {
		return nil, nil
	}
	snap, err := s.state(ctx)
	if err != nil {
		return nil, err
	}
	if err := portsFree(snap, idOf(old), spec); err != nil {
		return nil, err // Docker's word comes first
	}
	refusals, err := s.backend.CheckPorts(ctx, added)
	if err != nil {
		return nil, fmt.Errorf("ask the nodes whether the ports are free: %w", err)
	}
	return judgeRefusals(snap, added, refusals)
}

func idOf(svc *model.Service) model.ServiceID {
	if svc == nil {
		return 0
	}
	return svc.ID
}

func judgeRefusals(snap *state.Snapshot, ports []swarm.PortConfig, refusals []PortRefusal) (warnings []string, err error) {
	ready := 0
	for n := range snap.Nodes() {
		if n.State == swarm.NodeStateReady {
			ready++
		}
	}
	for _, p := range ports {
		nodes := 0
		for _, f := range refusals {
			if f.Port != p.PublishedPort || f.Protocol != string(p.Protocol) {
				continue
			}
			nodes++
			host := snap.Cluster().Namer().NodeID(f.Node)
			if n := snap.Node(f.Node); n != nil && n.Hostname() != "" {
				host = n.Hostname()
			}
			warnings = append(warnings, fmt.Sprintf("port '%d' cannot be published on node %s: %s", p.PublishedPort, host, f.Message))
		}
		if nodes > 0 && nodes >= ready {
			return nil, invalid("%s", warnings[len(warnings)-1])
		}
	}
	return warnings, nil
}
