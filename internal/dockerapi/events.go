package dockerapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/skep-swarm/skep/internal/model"
)

const (
	// eventHistory is how many events a client that comes later can still read.
	eventHistory = 512
	// eventBacklog is how many events may wait for a slow client before it is cut off.
	eventBacklog = 1024
)

// eventLog is a bounded history of events and those who listen to it.
type eventLog struct {
	mu     sync.Mutex
	ring   []events.Message // oldest first
	subs   map[chan events.Message]bool
	closed bool
}

func newEventLog() *eventLog { return &eventLog{subs: map[chan events.Message]bool{}} }

// add appends an event. A listener that cannot keep up loses its subscription rather than
// holding up the others.
func (l *eventLog) add(m events.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) == eventHistory {
		l.ring = slices.Delete(l.ring, 0, 1)
	}
	l.ring = append(l.ring, m)
	for ch := range l.subs {
		select {
		case ch <- m:
		default:
			delete(l.subs, ch)
			close(ch)
		}
	}
}

// subscribe returns the history and a channel of all that comes after it. The channel is closed
// when the log ends or the listener is too slow.
func (l *eventLog) subscribe() ([]events.Message, chan events.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch := make(chan events.Message, eventBacklog)
	if l.closed {
		close(ch)
	} else {
		l.subs[ch] = true
	}
	return slices.Clone(l.ring), ch
}

func (l *eventLog) unsubscribe(ch chan events.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.subs, ch)
}

func (l *eventLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for ch := range l.subs {
		delete(l.subs, ch)
		close(ch)
	}
}

func (l *eventLog) listeners() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.subs)
}

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
	past, live := s.events.subscribe()
	defer s.events.unsubscribe(live)
	ctx := r.ctx()
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, until.Sub(s.now()))
		defer cancel()
	}
	r.w.Header().Set("Content-Type", "application/json")
	w := newStreamWriter(r.w)
	defer func() { _ = w.Close() }()
	send := func(m events.Message) error {
		at := time.Unix(0, m.TimeNano)
		if at.Before(since) || !until.IsZero() && at.After(until) || !eventMatches(f, m) {
			return nil
		}
		line, err := json.Marshal(viewEvent(m))
		if err != nil {
			return err
		}
		_, err = w.Write(append(line, '\n'))
		return err
	}
	if !since.IsZero() || !until.IsZero() {
		for _, m := range past {
			if err := send(m); err != nil {
				return err
			}
		}
	}
	return follow(ctx, live, send)
}

func follow(ctx context.Context, live <-chan events.Message, send func(events.Message) error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m, ok := <-live:
			if !ok {
				return model.Errorf(unavailable, "the client does not keep up with the events, or the daemon stops")
			}
			if err := send(m); err != nil {
				return nil // the client is gone
			}
		}
	}
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
	for key, typ := range map[string]events.Type{
		"container": events.ContainerEventType, "image": events.ImageEventType, "service": events.ServiceEventType, "node": events.NodeEventType,
		"network": events.NetworkEventType, "volume": events.VolumeEventType, "plugin": events.PluginEventType, "secret": events.SecretEventType,
		"config": events.ConfigEventType, "daemon": events.DaemonEventType,
	} {
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
