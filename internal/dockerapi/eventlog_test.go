package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// eventsOf are all events that are kept.
func eventsOf(s *Server) []events.Message {
	var all []events.Message
	r := s.events.read(true)
	defer r.close()
	for got, _, err := r.take(); len(got) > 0 && err == nil; got, _, err = r.take() {
		all = append(all, got...)
	}
	return all
}

func numbered(n int) events.Message {
	return events.Message{TimeNano: int64(n), Actor: events.Actor{ID: fmt.Sprint(n)}}
}

// The ring keeps the newest in order, whatever it grew from; readers see each event once, or are told how many they missed.
func TestEventLog(t *testing.T) {
	l := newEventLog()
	early, late := l.read(false), l.read(false)
	var seen int64
	for n := range 3 * eventsKept {
		l.add(numbered(n))
		if n%100 != 0 {
			continue
		}
		for got, _, err := early.take(); len(got) > 0 || err != nil; got, _, err = early.take() {
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range got {
				if m.TimeNano != seen {
					t.Fatalf("event %d instead of %d", m.TimeNano, seen)
				}
				seen++
			}
		}
	}
	if _, _, err := late.take(); err != (laggedError{missed: 2 * eventsKept}) {
		t.Errorf("who missed two rings is told %v", err)
	}
	all, first := l.read(true), int64(2*eventsKept)
	err := all.each(cancelled(), func(m events.Message) error {
		if m.TimeNano != first {
			return fmt.Errorf("event %d instead of %d", m.TimeNano, first)
		}
		first++
		return nil
	})
	if err != nil || first != 3*eventsKept {
		t.Errorf("read up to %d: %v", first, err)
	}
	if len(l.ring) != eventsKept {
		t.Errorf("the ring has %d places", len(l.ring))
	}
	if l.listeners() != 3 {
		t.Errorf("%d listeners", l.listeners())
	}
	l.close()
	if err := all.each(t.Context(), nil); !errors.Is(err, errEventsEnded) {
		t.Errorf("the end is told as %v", err)
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Large events push out more than one, and never more memory is held than the bound says; one that is too large alone is still told.
func TestEventLogMemory(t *testing.T) {
	l := newEventLog()
	large := strings.Repeat("x", 64<<10)
	for n := range 1000 {
		m := numbered(n)
		m.Actor.Attributes = map[string]string{"label": large}
		l.add(m)
		held := 0
		for e := l.first; e < l.next; e++ {
			held += len(l.at(e).Actor.Attributes["label"])
		}
		if held > eventBytesKept || l.bytes > eventBytesKept {
			t.Fatalf("%d bytes are held, %d by its own account", held, l.bytes)
		}
	}
	if kept := l.next - l.first; kept < 100 {
		t.Errorf("only %d are kept", kept)
	}
	r := l.read(false)
	l.add(events.Message{Actor: events.Actor{ID: "huge", Attributes: map[string]string{"label": strings.Repeat(large, 200)}}})
	if got, _, err := r.take(); len(got) != 1 || err != nil {
		t.Errorf("the huge one: %d, %v", len(got), err)
	}
	l.add(numbered(1))
	if got, _, err := r.take(); len(got) != 1 || err != nil || l.next-l.first != 1 || l.bytes > 1000 {
		t.Errorf("after the huge one: %d, %v, %d bytes", len(got), err, l.bytes)
	}
}

// stamp is a time as the CLI sends it.
func stamp(at time.Time) string { return fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond()) }

// configs makes a batch that touches n objects.
func configs(t *testing.T, f *fake, n int) {
	t.Helper()
	changes := make([]model.Change, n)
	for i := range changes {
		spec, err := model.MakeSpec(&swarm.SecretSpec{Annotations: swarm.Annotations{Name: fmt.Sprintf("c%d", i+1)}})
		if err != nil {
			t.Fatal(err)
		}
		changes[i].PutPayload = &model.Payload{Kind: model.KindConfig, Num: uint64(i + 1), Spec: spec, Value: []byte("x")}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change(changes...)
}

// A batch that touches 5,000 objects reaches every client whole and in order, those that begin to read only afterwards as well.
func TestEventsOfLargeBatch(t *testing.T) {
	const objects = 5000
	s, f := newSwarm(t)
	host := serveUnix(t, s)
	waitFor(t, f.watching)
	var streams []io.Reader
	for range 3 {
		streams = append(streams, get(t, unixClient(host), "/events?"+filtersOf(map[string][]string{"type": {"config"}, "event": {"create"}})).Body)
	}
	waitFor(t, func() bool { return s.events.listeners() == len(streams) })
	configs(t, f, objects)
	streams = append(streams, get(t, unixClient(host), fmt.Sprintf("/events?since=1&until=%s&%s", stamp(s.now()), filtersOf(map[string][]string{"type": {"config"}}))).Body)
	for _, body := range streams {
		dec := json.NewDecoder(body)
		for n := range objects {
			var m events.Message
			if err := dec.Decode(&m); err != nil || m.Actor.Attributes["name"] != fmt.Sprintf("c%d", n+1) {
				t.Fatalf("event %d is %+v: %v", n, m, err)
			}
		}
	}
}

// A client that stands still for more than is kept is told so at the end of what it got, whatever it filters for.
func TestSlowListener(t *testing.T) {
	s, _ := newSwarm(t)
	host := serveUnix(t, s)
	resp := get(t, unixClient(host), "/events?"+filtersOf(map[string][]string{"type": {"volume"}}))
	waitFor(t, func() bool { return s.events.listeners() == 1 })
	long := map[string]string{"name": strings.Repeat("v", 1000)}
	// What the sockets hold between the two is the system's; far more than the ring is enough to stop the sender.
	for range 4 * eventsKept {
		s.emit(events.VolumeEventType, events.ActionCreate, scopeLocal, "v", long, s.now())
	}
	dec := json.NewDecoder(resp.Body)
	var last events.Message
	n, err := 0, error(nil)
	for ; ; n++ {
		var m events.Message
		if err = dec.Decode(&m); err != nil {
			break
		}
		last = m
	}
	if last.Type != events.DaemonEventType || last.Action != "lagged" || !strings.Contains(last.Actor.Attributes["error"], "did not keep up and missed ") || last.Actor.ID == "" {
		t.Errorf("after %d events the last is %+v", n, last)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stream ends with %v", err)
	}
	waitFor(t, func() bool { return s.events.listeners() == 0 })
}

// What happens until the given time is told, what was told already included; then the stream ends whole.
func TestEventsUntil(t *testing.T) {
	s, _ := newSwarm(t)
	host := serveUnix(t, s)
	s.emit(events.VolumeEventType, events.ActionCreate, scopeLocal, "before", nil, s.now())
	resp := get(t, unixClient(host), fmt.Sprintf("/events?until=%s&%s", stamp(s.now().Add(500*time.Millisecond)), filtersOf(map[string][]string{"type": {"volume"}})))
	waitFor(t, func() bool { return s.events.listeners() == 1 })
	s.emit(events.VolumeEventType, events.ActionCreate, scopeLocal, "within", nil, s.now())
	s.emit(events.VolumeEventType, events.ActionCreate, scopeLocal, "after", nil, s.now().Add(time.Hour))
	data, err := io.ReadAll(resp.Body)
	if err != nil || strings.Count(string(data), "\n") != 2 || !strings.Contains(string(data), "before") || !strings.Contains(string(data), "within") {
		t.Errorf("%q %v", data, err)
	}
}

// BenchmarkEventLog adds events while 100 clients read them; every client sees every event that it does not miss.
func BenchmarkEventLog(b *testing.B) {
	l := newEventLog()
	var wg sync.WaitGroup
	for range 100 {
		r := l.read(false)
		wg.Go(func() {
			defer r.close()
			for {
				err := r.each(context.Background(), func(events.Message) error { return nil })
				lag, behind := errors.AsType[laggedError](err)
				if !behind {
					return
				}
				r.next += lag.missed
			}
		})
	}
	attrs := map[string]string{"name": "web", "replicas.old": "1", "replicas.new": "5000"}
	b.ReportAllocs()
	for b.Loop() {
		l.add(events.Message{Type: events.ServiceEventType, Action: events.ActionUpdate, Actor: events.Actor{ID: "x", Attributes: attrs}})
	}
	l.close()
	wg.Wait()
}

// Every key of a filter applies to its own type of event.
func TestEventFilters(t *testing.T) {
	ev := func(typ events.Type, action events.Action, id, name string) events.Message {
		return events.Message{Type: typ, Action: action, Scope: scopeSwarm, Actor: events.Actor{ID: id, Attributes: map[string]string{"name": name, "image": "nginx:1"}}}
	}
	all := []events.Message{
		ev("service", "update", "s1", "web"), ev("container", "start", "c1", "web.1.x"), ev("container", "health_status: healthy", "c2", "db.1.y"),
		ev("image", "pull", "i1", "nginx:1"), ev("node", "update", "n1", "host"), ev("config", "create", "f1", "web"),
	}
	for query, want := range map[string]string{
		"type=service": "s1", "type=node,config": "n1 f1", "scope=local": "", "event=health_status": "c2", "event=update": "s1 n1",
		"container=web": "c1", "container=c": "c1 c2", "image=nginx": "c1 c2 i1", "service=web": "s1", "config=web": "f1", "label=name=host": "n1", "label=image": "s1 c1 c2 i1 n1 f1",
		"daemon=x": "",
	} {
		key, values, _ := strings.Cut(query, "=")
		f := filters{key: strings.Split(values, ",")}
		var got []string
		for _, m := range all {
			if eventMatches(f, m) {
				got = append(got, m.Actor.ID)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
	}
}
