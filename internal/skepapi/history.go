package skepapi

import (
	"context"
	"encoding/json"
	"net/http"
)

// Revision is one entry of a service's history.
type Revision struct {
	// Number counts from 1; Current marks the one in force.
	Number  uint64
	Current bool
	At      string // RFC 3339
	Actor   string
	Reason  string
	// Tasks is how many tasks that are meant to run are made from it (or from one like it).
	Tasks int
	Spec  json.RawMessage
}

// history lists the revisions, oldest first.
func (s *server) history(ctx context.Context, r *http.Request) (any, error) {
	snap, svc, err := s.service(ctx, r)
	if err != nil {
		return nil, err
	}
	out := make([]Revision, 0, len(svc.Revisions))
	for _, rev := range svc.Revisions {
		v := Revision{Number: rev.Num, Current: rev == svc.Current(), At: stamp(rev.At), Actor: rev.Actor, Reason: rev.Reason, Spec: rev.Spec.Raw}
		for t := range snap.Tasks(svc.ID) {
			if t.Template == rev.Template && !t.State.Terminal() {
				v.Tasks++
			}
		}
		out = append(out, v)
	}
	return out, nil
}
