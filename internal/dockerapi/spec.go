package dockerapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// maxReadings bounds how often a spec is read again until it says the same twice.
const maxReadings = 4

// parseService reads a service spec as a client sent it, in the form of any API version, and
// puts it into the one form that is stored: structural defaults filled in, keys in
// Docker's case, empty values dropped as Docker's own types drop them. So a spec that a
// client reads and writes back unchanged stays the same spec, whatever wrote it
// first. Fields that this version does not know are kept.
func parseService(raw json.RawMessage) (model.ServiceSpec, error) {
	if raw == nil {
		raw = json.RawMessage("{}")
	}
	raw, err := moveNetworks(raw)
	if err != nil {
		return model.ServiceSpec{}, err
	}
	typed := new(swarm.ServiceSpec)
	if err := json.Unmarshal(raw, typed); err != nil {
		return model.ServiceSpec{}, model.Invalidf("invalid JSON: %v", err)
	}
	fillService(typed)
	spec, err := mergeSpec(raw, typed)
	// Keys that differ only in case may say two things; what is stored must say one.
	for range maxReadings {
		if err != nil {
			return spec, err
		}
		before := spec
		fillService(spec.Typed)
		if spec, err = mergeSpec(spec.Raw, spec.Typed); err == nil && bytes.Equal(before.Raw, spec.Raw) {
			return spec, nil
		}
	}
	return spec, model.Invalidf("invalid JSON: fields whose names differ only in case contradict each other")
}

// mergeSpec is typed with the fields of raw that its type does not know.
func mergeSpec[T any](raw json.RawMessage, typed *T) (model.Spec[T], error) {
	known, err := json.Marshal(typed)
	if err != nil {
		return model.Spec[T]{}, fmt.Errorf("encode spec: %w", err)
	}
	var from, to any
	if err := decodeNumbers(raw, &from); err != nil {
		return model.Spec[T]{}, err
	}
	if err := decodeNumbers(known, &to); err != nil {
		return model.Spec[T]{}, err
	}
	merged, err := json.Marshal(addUnknown(to, from))
	if err != nil {
		return model.Spec[T]{}, fmt.Errorf("encode spec: %w", err)
	}
	return model.ParseSpec[T](merged)
}

func decodeNumbers(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(v); err != nil {
		return model.Invalidf("invalid JSON: %v", err)
	}
	return nil
}

// addUnknown adds to an encoded view what only the original has. A key that the view lacks is
// either unknown to its type or was left out because it is empty; empty ones stay out.
func addUnknown(view, original any) any {
	switch v := view.(type) {
	case map[string]any:
		o, ok := original.(map[string]any)
		if !ok {
			return view
		}
		for key, value := range o {
			if mine, at, ok := lookUp(v, key); ok {
				v[at] = addUnknown(mine, value)
			} else if !isEmpty(value) {
				v[key] = value
			}
		}
	case []any:
		o, ok := original.([]any)
		if !ok || len(o) != len(v) {
			return view
		}
		for i := range v {
			v[i] = addUnknown(v[i], o[i])
		}
	}
	return view
}

// lookUp finds a key as encoding/json does: exactly, else in any case.
func lookUp(m map[string]any, key string) (value any, at string, ok bool) {
	if value, ok := m[key]; ok {
		return value, key, true
	}
	for k, v := range m {
		if strings.EqualFold(k, key) {
			return v, k, true
		}
	}
	return nil, "", false
}

func isEmpty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case json.Number:
		f, err := v.Float64()
		return err == nil && f == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// moveNetworks brings the networks of clients before API 1.44, which stand beside the task
// template, to where they stand now.
func moveNetworks(raw json.RawMessage) (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, model.Invalidf("invalid JSON: %v", err)
	}
	old, ok := fields["Networks"]
	if !ok {
		return raw, nil
	}
	delete(fields, "Networks")
	task := map[string]json.RawMessage{}
	if t, ok := fields["TaskTemplate"]; ok {
		if err := json.Unmarshal(t, &task); err != nil {
			return nil, model.Invalidf("invalid JSON: %v", err)
		}
	}
	if task == nil { // TaskTemplate was null
		task = map[string]json.RawMessage{}
	}
	if now, ok := task["Networks"]; !ok || string(now) == "null" || string(now) == "[]" {
		task["Networks"] = old
	}
	var err error
	if fields["TaskTemplate"], err = json.Marshal(task); err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	out, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	return out, nil
}

// fillService fills in what deciders must not have to guess. Policies stay as they were sent:
// Docker shows their defaults only when asked to (insertDefaults).
func fillService(s *swarm.ServiceSpec) {
	m := &s.Mode
	if m.Replicated == nil && m.Global == nil && m.ReplicatedJob == nil && m.GlobalJob == nil {
		m.Replicated = &swarm.ReplicatedService{}
	}
	if m.Replicated != nil && m.Replicated.Replicas == nil {
		m.Replicated.Replicas = new(uint64(1))
	}
	if job := m.ReplicatedJob; job != nil { // the CLI's table of services fails without these
		if job.MaxConcurrent == nil {
			job.MaxConcurrent = new(uint64(1))
		}
		if job.TotalCompletions == nil {
			job.TotalCompletions = new(*job.MaxConcurrent)
		}
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.TaskTemplate.Runtime == "" {
		s.TaskTemplate.Runtime = swarm.RuntimeContainer
	}
	if s.EndpointSpec == nil {
		return
	}
	for i := range s.EndpointSpec.Ports {
		p := &s.EndpointSpec.Ports[i]
		if p.Protocol = lower(p.Protocol); p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if p.PublishMode == "" {
			p.PublishMode = swarm.PortConfigPublishModeIngress
		}
	}
}

func lower[T ~string](v T) T { return T(strings.ToLower(string(v))) }

// The names of service modes, as filters and the CLI write them.
const (
	modeReplicated    = "replicated"
	modeGlobal        = "global"
	modeReplicatedJob = "replicated-job"
	modeGlobalJob     = "global-job"
)

func modeOf(s *swarm.ServiceSpec) string {
	switch {
	case s.Mode.Global != nil:
		return modeGlobal
	case s.Mode.ReplicatedJob != nil:
		return modeReplicatedJob
	case s.Mode.GlobalJob != nil:
		return modeGlobalJob
	}
	return modeReplicated
}
