package dockerapi

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Secrets and configs have the same routes, limits and texts but for their word; a secret's value never leaves by an
// answer.

var payloadName = regexp.MustCompile(`^[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?$`)

const maxPayloadName = 64

// templateDriver is the one way in which payloads can be templates.
const templateDriver = "golang"

func (s *Server) payloadRoutes(t routeTable) {
	for _, kind := range []model.Kind{model.KindSecret, model.KindConfig} {
		path := "/" + kind.String() + "s"
		t.get(path, func(r *request) error { return s.listPayloads(r, kind) })
		t.post(path+"/create", func(r *request) error { return s.createPayload(r, kind) })
		t.get(path+"/{id}", func(r *request) error { return s.getPayload(r, kind) })
		t.post(path+"/{id}/update", func(r *request) error { return s.updatePayload(r, kind) })
		t.delete(path+"/{id}", func(r *request) error { return s.removePayload(r, kind) })
	}
}

// payloadView is Docker's Secret or Config.
type payloadView struct {
	ID string
	swarm.Meta
	Spec json.RawMessage
}

func viewPayload(namer model.Namer, p *model.Payload) (payloadView, error) {
	v := payloadView{ID: namer.ID(p.Key()), Meta: meta(p.Version, p.CreatedAt, p.UpdatedAt), Spec: p.Spec.Raw}
	if p.Kind != model.KindConfig {
		return v, nil
	}
	var fields map[string]json.RawMessage
	err := json.Unmarshal(p.Spec.Raw, &fields)
	if err == nil {
		fields["Data"], err = json.Marshal([]byte(p.Value))
	}
	if err == nil {
		v.Spec, err = json.Marshal(fields)
	}
	if err != nil {
		return v, fmt.Errorf("spec of %s %s: %w", p.Kind, p.Name(), err)
	}
	return v, nil
}

func (s *Server) listPayloads(r *request, kind model.Kind) error {
	f, err := readFilters(r, "id", "label", "name", "names")
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	namer := snap.Cluster().Namer()
	out := []payloadView{}
	for p := range snap.Payloads(kind) {
		if !f.labels("label", p.Spec.Typed.Labels) || !chosen(f, p.Name(), namer.ID(p.Key())) {
			continue
		}
		v, err := viewPayload(namer, p)
		if err != nil {
			return err
		}
		out = append(out, v)
	}
	return writeJSON(r, http.StatusOK, out)
}

// chosen reports whether a payload meets one of the filters by name and identifier; as in Docker one of all is enough.
func chosen(f filters, name, id string) bool {
	if !f.has("id") && !f.has("name") && !f.has("names") {
		return true
	}
	return f.has("id") && f.prefix("id", id) || f.has("name") && f.prefix("name", name) || f.has("names") && f.exact("names", name)
}

func (s *Server) getPayload(r *request, kind model.Kind) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	p, err := snap.FindPayload(kind, r.vars["id"])
	if err != nil {
		return err
	}
	v, err := viewPayload(snap.Cluster().Namer(), p)
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, v)
}

func (s *Server) createPayload(r *request, kind model.Kind) error {
	if err := notManager(s.backend.Local(), unavailable); err != nil {
		return err
	}
	spec, value, err := readPayload(r, kind)
	if err != nil {
		return err
	}
	if err := admitPayload(kind, spec.Typed, value); err != nil {
		return err
	}
	out, err := s.write(r.ctx(), fmt.Sprintf("create %s %s", kind, spec.Typed.Name), planPayload(kind, spec, value))
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	id := ""
	for _, k := range out.Touched {
		id = snap.Cluster().Namer().ID(k)
	}
	if p := snap.PayloadByName(kind, spec.Typed.Name); id == "" && p != nil {
		id = snap.Cluster().Namer().ID(p.Key()) // the outcome of a batch that was sent twice names nothing
	}
	return writeJSON(r, http.StatusCreated, swarm.SecretCreateResponse{ID: id})
}

func planPayload(kind model.Kind, spec model.PayloadSpec, value model.Value) plan {
	return func(snap *state.Snapshot) (model.Txn, error) {
		if snap.PayloadByName(kind, spec.Typed.Name) != nil {
			return model.Txn{}, rpcErrorf(model.Conflict, "%s %s already exists", kind, spec.Typed.Name)
		}
		p := &model.Payload{Kind: kind, Num: snap.LastPayload(kind) + 1, Spec: spec, Value: value}
		return model.Txn{Guards: []model.Guard{{Key: p.Key(), Group: model.GroupSpec}}, Changes: []model.Change{{PutPayload: p}}}, nil
	}
}

// readPayload reads a spec and takes its value out of it.
func readPayload(r *request, kind model.Kind) (model.PayloadSpec, model.Value, error) {
	raw, err := readBody(r)
	if err != nil {
		return model.PayloadSpec{}, nil, err
	}
	if raw == nil {
		raw = json.RawMessage("{}")
	}
	var typed swarm.SecretSpec
	if err := json.Unmarshal(raw, &typed); err != nil {
		return model.PayloadSpec{}, nil, model.Invalidf("invalid JSON: %v", err)
	}
	value := model.Value(typed.Data)
	typed.Data = nil
	if typed.Labels == nil {
		typed.Labels = map[string]string{}
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return model.PayloadSpec{}, nil, model.Invalidf("invalid JSON: %v", err)
	}
	drop := []string{"Data"}
	if kind == model.KindConfig {
		typed.Driver = nil
		drop = append(drop, "Driver") // unknown to configs
	}
	for key := range fields {
		if slices.ContainsFunc(drop, func(d string) bool { return strings.EqualFold(d, key) }) {
			delete(fields, key)
		}
	}
	if raw, err = json.Marshal(fields); err != nil {
		return model.PayloadSpec{}, nil, fmt.Errorf("encode spec: %w", err)
	}
	spec, err := mergeSpec(raw, &typed)
	return spec, value, err
}

// admitPayload checks a new secret or config, with Docker's words where it has them.
func admitPayload(kind model.Kind, spec *swarm.SecretSpec, value model.Value) error {
	limit := model.SecretLimit
	if kind == model.KindConfig {
		limit = model.ConfigLimit
	}
	switch {
	case spec.Name == "":
		return invalid("name must be provided")
	case len(spec.Name) > maxPayloadName || !payloadName.MatchString(spec.Name):
		return invalid("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")
	case spec.Driver != nil:
		return model.Errorf(unimplemented, "secret drivers are plugins, and plugins are not available: give the secret a value")
	case len(value) == 0 || len(value) >= limit:
		return invalid("%s data must be larger than 0 and less than %d bytes", kind, limit)
	case spec.Templating != nil && spec.Templating.Name != "" && spec.Templating.Name != templateDriver:
		return invalid("template driver %q is unknown: only %q is known", spec.Templating.Name, templateDriver)
	}
	return admitLabels("Labels", spec.Labels)
}

func (s *Server) updatePayload(r *request, kind model.Kind) error {
	version, err := readVersion(r, kind.String())
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	p, err := snap.FindPayload(kind, r.vars["id"])
	if err != nil {
		return err
	}
	spec, value, err := readPayload(r, kind)
	if err != nil {
		return err
	}
	if spec.Typed.Name != p.Name() || spec.Typed.Driver != nil || value != nil && subtle.ConstantTimeCompare(value, p.Value) == 0 {
		return invalid("only updates to Labels are allowed")
	}
	if err := admitLabels("Labels", spec.Typed.Labels); err != nil {
		return err
	}
	typed := *p.Spec.Typed
	typed.Labels = spec.Typed.Labels
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(p.Spec.Raw, &fields); err != nil {
		return fmt.Errorf("stored spec of %s %s: %w", kind, p.Name(), err)
	}
	delete(fields, "Labels")
	raw, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	if spec, err = mergeSpec(raw, &typed); err != nil {
		return err
	}
	// Not written again: whoever wrote in between is to be seen first.
	if p.Version != version {
		return errOutOfSequence
	}
	txn := model.Txn{Guards: []model.Guard{{Key: p.Key(), Group: model.GroupSpec, Version: version}},
		Changes: []model.Change{{SetPayload: &model.PayloadSet{Payload: p.Key(), Spec: spec}}}}
	if _, err := s.propose(r.ctx(), fmt.Sprintf("update %s %s", kind, p.Name()), txn); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

func (s *Server) removePayload(r *request, kind model.Kind) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	p, err := snap.FindPayload(kind, r.vars["id"])
	if err != nil {
		return err
	}
	txn := model.Txn{Changes: []model.Change{{DeletePayload: new(p.Key())}}}
	if _, err := s.propose(r.ctx(), fmt.Sprintf("remove %s %s", kind, p.Name()), txn); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusNoContent)
}
