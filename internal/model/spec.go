package model

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/moby/moby/api/types/swarm"
)

// Spec is a user-facing object kept twice: Raw is the canonical JSON that was accepted, with
// every field that this version does not know; Typed is the view that deciders read.
// Only Raw is stored. Immutable.
type Spec[T any] struct {
	Raw   json.RawMessage
	Typed *T
}

// ClusterSpec, ServiceSpec and TaskSpec are Docker's objects with their JSON.
type (
	ClusterSpec = Spec[swarm.Spec]
	ServiceSpec = Spec[swarm.ServiceSpec]
	TaskSpec    = Spec[swarm.TaskSpec]
)

// ParseSpec reads a spec from JSON. The error is Invalid.
func ParseSpec[T any](raw []byte) (Spec[T], error) {
	canon, err := CanonicalJSON(raw)
	if err != nil {
		return Spec[T]{}, err
	}
	typed := new(T)
	if err := json.Unmarshal(canon, typed); err != nil {
		return Spec[T]{}, Invalidf("invalid JSON: %v", err)
	}
	return Spec[T]{Raw: canon, Typed: typed}, nil
}

// MakeSpec makes a spec from its typed view.
func MakeSpec[T any](typed *T) (Spec[T], error) {
	raw, err := json.Marshal(typed)
	if err != nil {
		return Spec[T]{}, fmt.Errorf("encode spec: %w", err)
	}
	return ParseSpec[T](raw)
}

// MarshalCBOR stores the JSON only.
func (s Spec[T]) MarshalCBOR() ([]byte, error) { return cbor.Marshal([]byte(s.Raw)) }

// UnmarshalCBOR reads the JSON and derives the typed view.
func (s *Spec[T]) UnmarshalCBOR(data []byte) error {
	var raw []byte
	if err := cbor.Unmarshal(data, &raw); err != nil {
		return err
	}
	if len(raw) == 0 {
		*s = Spec[T]{}
		return nil
	}
	typed := new(T)
	if err := json.Unmarshal(raw, typed); err != nil {
		return fmt.Errorf("stored spec: %w", err)
	}
	*s = Spec[T]{Raw: raw, Typed: typed}
	return nil
}

// CanonicalJSON sorts keys and drops white space; numbers keep their digits. The same
// object always has the same bytes.
func CanonicalJSON(raw []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, Invalidf("invalid JSON: %v", err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode canonical JSON: %w", err)
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

// NewTemplate makes the template that a service spec asks for; imageDigest is what its image
// name means now ("" when unknown). ID is the caller's to set. Specs that differ only
// in what needs no restart give the same Hash.
func NewTemplate(svc ServiceID, spec ServiceSpec, imageDigest string) (*Template, error) {
	var whole struct{ TaskTemplate json.RawMessage }
	if err := json.Unmarshal(spec.Raw, &whole); err != nil {
		return nil, fmt.Errorf("template of service: %w", err)
	}
	if len(whole.TaskTemplate) == 0 {
		whole.TaskTemplate = json.RawMessage("{}")
	}
	task, err := ParseSpec[swarm.TaskSpec](whole.TaskTemplate)
	if err != nil {
		return nil, err
	}
	t := &Template{Service: svc, ServiceName: spec.Typed.Name, Task: task, ImageDigest: imageDigest, ServiceLabels: spec.Typed.Labels}
	if ep := spec.Typed.EndpointSpec; ep != nil {
		for _, p := range ep.Ports {
			if p.PublishMode == swarm.PortConfigPublishModeHost {
				t.HostPorts = append(t.HostPorts, p)
			}
		}
	}
	t.Hash, err = templateHash(t)
	return t, err
}

// templateHash covers what needs a new container. Placement and the restart policy are read
// from the service's spec when they are needed, so a change of them restarts nothing.
func templateHash(t *Template) ([32]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(t.Task.Raw, &fields); err != nil {
		return [32]byte{}, fmt.Errorf("hash template: %w", err)
	}
	delete(fields, "Placement")
	delete(fields, "RestartPolicy")
	body, err := json.Marshal(struct {
		Task   map[string]json.RawMessage
		Ports  []swarm.PortConfig
		Digest string
	}{fields, t.HostPorts, t.ImageDigest})
	if err != nil {
		return [32]byte{}, fmt.Errorf("hash template: %w", err)
	}
	return sha256.Sum256(body), nil
}
