package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/skep-swarm/skep/internal/model"
)

// eventView is an event as API versions before 1.52 want it: with the fields of the oldest
// clients beside the current ones.
type eventView struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func viewEvent(m events.Message) eventView {
	v := eventView{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		v.Status, v.ID, v.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		v.Status, v.ID = string(m.Action), m.Actor.ID
	}
	return v
}

func (s *Server) getEvents(r *request) error {
	f, err := readFilters(r, "type", "scope", "event", "container", "image", "label", "service", "node", "network", "volume", "plugin", "secret", "config", "daemon")
	if err != nil {
		return err
	}
	since, err := readTime(r.query("since"))
	if err != nil {
		return model.Invalidf("invalid value for 'since': %s", r.query("since"))
	}
	until, err := readTime(r.query("until"))
	if err != nil {
		return model.Invalidf("invalid value for 'until': %s", r.query("until"))
	}
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		return model.Invalidf("`since` time (%s) cannot be after `until` time (%s)", r.query("since"), r.query("until"))
	}
	reader := s.events.read(!since.IsZero() || !until.IsZero())
	defer reader.close()
	ctx := r.ctx()
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, until.Sub(s.now()))
		defer cancel()
	}
	r.w.Header().Set("Content-Type", "application/json")
	w := newStreamWriter(r.w)
	defer func() { _ = w.Close() }()
	write := func(m events.Message) error {
		line, err := json.Marshal(viewEvent(m))
		if err != nil {
			return err
		}
		_, err = w.Write(append(line, '\n'))
		return err
	}
	err = reader.each(ctx, func(m events.Message) error {
		at := time.Unix(0, m.TimeNano)
		if at.Before(since) || !until.IsZero() && at.After(until) || !eventMatches(f, m) {
			return nil
		}
		return write(m)
	})
	if _, ok := errors.AsType[laggedError](err); ok {
		// Whatever it filters for: it has to know that its view is not whole.
		if write(s.lagEvent(ctx, err)) == nil {
			w.flush()
		}
		return err
	}
	if errors.Is(err, errEventsEnded) {
		return err
	}
	return nil // its time is over, or the client is gone
}

// lagEvent tells a client that it is cut off, in the only form that clients of this stream read.
func (s *Server) lagEvent(ctx context.Context, err error) events.Message {
	m := events.Message{Type: events.DaemonEventType, Action: "lagged", Scope: scopeLocal, Actor: events.Actor{Attributes: map[string]string{"error": err.Error()}}}
	if h, err := s.backend.SystemInfo(ctx); err == nil {
		m.Actor.ID, m.Actor.Attributes["name"] = h.ID, h.Name
	}
	at := s.now()
	m.Time, m.TimeNano = at.Unix(), at.UnixNano()
	return m
}

// eventMatches applies a client's filters: every key must be met by one of its values.
func eventMatches(f filters, m events.Message) bool {
	if !f.exact("type", string(m.Type)) || !f.exact("scope", m.Scope) || !f.labels("label", m.Actor.Attributes) {
		return false
	}
	if f.has("event") && !slices.ContainsFunc(f["event"], func(e string) bool {
		return e == string(m.Action) || strings.HasPrefix(string(m.Action), e+":")
	}) {
		return false
	}
	for _, typ := range [...]events.Type{
		events.ContainerEventType, events.ImageEventType, events.ServiceEventType, events.NodeEventType, events.NetworkEventType,
		events.VolumeEventType, events.PluginEventType, events.SecretEventType, events.ConfigEventType, events.DaemonEventType,
	} {
		key := string(typ)
		if !f.has(key) {
			continue
		}
		if m.Type != typ && (typ != events.ImageEventType || m.Type != events.ContainerEventType) {
			return false
		}
		name := m.Actor.Attributes["name"]
		if typ == events.ImageEventType && m.Type == events.ContainerEventType {
			name = m.Actor.Attributes["image"]
		}
		if !f.prefix(key, name) && !f.prefix(key, m.Actor.ID) {
			return false
		}
	}
	return true
}

// emitImage records what was done to an image of this node.
func (s *Server) emitImage(action events.Action, img *Image, name string) {
	attrs := mergedLabels(img.Labels, nil)
	if name == "" && len(img.Names) > 0 {
		name = familiar(img.Names[0])
	}
	attrs["name"] = name
	s.emit(events.ImageEventType, action, scopeLocal, img.ID, attrs, s.now())
}

func (s *Server) emit(typ events.Type, action events.Action, scope, id string, attrs map[string]string, at time.Time) {
	s.events.add(events.Message{Type: typ, Action: action, Scope: scope, Actor: events.Actor{ID: id, Attributes: attrs}, Time: at.Unix(), TimeNano: at.UnixNano()})
}

var _ http.Handler = (*Server)(nil)
