package dockerapi

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/skep-swarm/skep/internal/model"
)

func unixClient(host string) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(host, "unix://"))
		}, DisableKeepAlives: true}}
}

func get(t *testing.T, c *http.Client, path string) *http.Response {
	t.Helper()
	resp, err := c.Get("http://d" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// Headers come before the first event, and events come as they happen.
func TestEventsStream(t *testing.T) {
	s, f := newSwarm(t)
	host := serveUnix(t, s)
	waitFor(t, f.watching)
	resp := get(t, unixClient(host), "/v1.50/events?"+filtersOf(map[string][]string{"type": {"service", "container"}}))
	waitFor(t, func() bool { return s.events.listeners() == 1 })
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	list, err := f.ListContainers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := list[0]
	c.Networks = []ContainerNetwork{{Name: "back", ID: "n1"}}
	c.Mounts = []container.MountPoint{{Type: "volume", Name: "data", Driver: "local", Destination: "/data", RW: true}, {Type: "bind", Source: "/x"}}
	f.news <- ContainerEvent{Container: c, Action: events.ActionStart, At: f.now()}
	f.news <- ContainerEvent{Container: c, Action: events.ActionDie, Attrs: map[string]string{"exitCode": "3"}, At: f.now()}
	dec := json.NewDecoder(resp.Body)
	var got []string
	for range 3 {
		var m struct {
			events.Message
			Status, ID, From string
		}
		if err := dec.Decode(&m); err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.Type)+" "+string(m.Action)+" "+m.Scope)
		if m.Type == "container" && (m.Status != string(m.Action) || m.From != "web:v1" || m.Actor.Attributes["com.docker.swarm.service.name"] != "web") {
			t.Errorf("container event lacks what old clients read: %+v", m)
		}
		if m.Time == 0 || m.TimeNano/1e9 != m.Time {
			t.Errorf("event's time is %d, %d", m.Time, m.TimeNano)
		}
	}
	if want := "service create swarm, container start local, container die local"; strings.Join(got, ", ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, ", "), want)
	}
	_ = resp.Body.Close()
	waitFor(t, func() bool { return s.events.listeners() == 0 })
	var around []string
	for _, m := range eventsOf(s) {
		if m.Actor.Attributes["container"] == c.ID {
			around = append(around, string(m.Type)+" "+string(m.Action)+" "+m.Actor.ID+" "+m.Actor.Attributes["destination"])
		}
	}
	if want := []string{"network connect n1 ", "volume mount data /data", "network disconnect n1 ", "volume unmount data "}; !slices.Equal(around, want) {
		t.Errorf("around the container: %q, want %q", around, want)
	}
}

// Frames are Docker's: stream, length, then the details and the text.
func TestLogFrames(t *testing.T) {
	s, f := newSwarm(t)
	host := serveUnix(t, s)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	resp := get(t, unixClient(host), "/services/web/logs?stdout=1&stderr=1&details=1&timestamps=1&follow=1")
	rd := bufio.NewReader(resp.Body)
	n := f.snap.Cluster().Namer()
	task := model.TaskID{Service: 1, Num: 1}
	origin := "com.docker.swarm.node.id=" + n.NodeID(1) + ",com.docker.swarm.service.id=" + n.ServiceID(1) + ",com.docker.swarm.task.id=" + n.TaskID(task) + " "
	for i, want := range []string{"hello from slot 1\n", "ready, slot 1\n"} {
		head := make([]byte, 8)
		if _, err := io.ReadFull(rd, head); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(rd, body); err != nil {
			t.Fatal(err)
		}
		stamp, text, _ := strings.Cut(string(body), " ")
		if head[0] != byte(i+1) || text != origin+want || len(stamp) != len("2006-01-02T15:04:05.000000000Z") {
			t.Errorf("frame %v %q", head, body)
		}
	}
	raw := get(t, unixClient(host), "/tasks/"+n.TaskID(task)+"/logs?stdout=1")
	data, err := io.ReadAll(raw.Body)
	if err != nil || string(data) != "\x01\x00\x00\x00\x00\x00\x00\x12hello from slot 1\n" {
		t.Errorf("%q %v", data, err)
	}
}

// A broken archive is an error reply, not half a stream.
func TestLoadBroken(t *testing.T) {
	s, f := newSwarm(t)
	w := call(s, "POST", "/images/load", "broken", "Content-Type", "application/x-tar")
	if w.Code != 400 || message(t, w) != "invalid tar header" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = call(s, "POST", "/images/load?quiet=1", "docker.io/library/web:v1", "Content-Type", "application/x-tar")
	if w.Code != 200 || strings.TrimSpace(w.Body.String()) != `{"stream":"Loaded image: web:v1\n"}` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	img := f.snap.Image("docker.io/library/web:v1")
	if img == nil || !strings.HasPrefix(img.Digest, "sha256:") {
		t.Fatalf("the swarm's table has %+v", img)
	}
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	if tmpl := f.snap.Template(1); tmpl.ImageDigest != img.Digest {
		t.Errorf("the template is pinned to %q", tmpl.ImageDigest)
	}
}
