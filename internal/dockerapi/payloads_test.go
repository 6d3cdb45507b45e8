package dockerapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
)

func TestPayloadUpdates(t *testing.T) {
	s, _ := newSwarm(t)
	const rpc = "rpc error: code = InvalidArgument desc = "
	for _, kind := range []string{"secret", "config"} {
		path := "/" + kind + "s"
		w := call(s, "POST", path+"/create", `{"Name":"a","data":"aHVudGVyMg==","Labels":{"x":"1"},"Future":{"a":[1]}}`)
		var made struct{ ID string }
		if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil || w.Code != 201 || len(made.ID) != 25 {
			t.Fatalf("create: %d %s", w.Code, w.Body)
		}
		read := func() (v swarm.Config, raw string) {
			w := call(s, "GET", path+"/"+made.ID[:8], "")
			if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != 200 {
				t.Fatalf("get: %d %s", w.Code, w.Body)
			}
			return v, w.Body.String()
		}
		old, raw := read()
		if shown := strings.Contains(raw, "aHVudGVyMg"); shown != (kind == "config") || !strings.Contains(raw, `"Future":{"a":[1]}`) {
			t.Errorf("%s as it is read: %s", kind, raw)
		}
		if kind == "config" && string(old.Spec.Data) != "hunter2" {
			t.Errorf("the config's data is %q", old.Spec.Data)
		}
		update := func(version uint64, body string) string {
			return fmt.Sprintf("POST %s/a/update?version=%d %s", path, version, body)
		}
		for _, c := range []struct {
			request string
			status  int
			text    string
		}{
			{"POST " + path + "/a/update {}", 400, "invalid " + kind + " version '': it must be the Version.Index of the " + kind + " as it was read"},
			{update(old.Version.Index, `{"Name":"b"}`), 400, rpc + "only updates to Labels are allowed"},
			{update(old.Version.Index, `{"Name":"a","Data":"aHVudGVyMw=="}`), 400, rpc + "only updates to Labels are allowed"},
			{update(old.Version.Index, `{"Name":"a","Labels":{"":"x"}}`), 400, rpc + "Labels: a label needs a name"},
			{update(1, `{"Name":"a"}`), 500, "rpc error: code = Unknown desc = update out of sequence"},
			{update(old.Version.Index, `{"Name":"a","Data":"aHVudGVyMg==","Labels":{"y":"2"}}`), 200, ""},
			{update(old.Version.Index, `{"Name":"a"}`), 500, "rpc error: code = Unknown desc = update out of sequence"},
			{"POST " + path + `/nope/update?version=1 {"Name":"nope"}`, 404, kind + " nope not found"},
			{"DELETE " + path + "/nope ", 404, kind + " nope not found"},
			{"GET " + path + "?filters={\"colour\":{\"red\":true}} ", 400, "invalid filter 'colour'"},
			{"POST " + path + `/create {"Name":"c","Data":"*"}`, 400, "invalid JSON: illegal base64 data at input byte 0"},
			{"POST " + path + `/create {"Name":"` + strings.Repeat("x", 65) + `","Data":"eA=="}`, 400, rpc + "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"},
		} {
			f := strings.SplitN(c.request, " ", 3)
			w := call(s, f[0], f[1], f[2])
			got := ""
			if w.Code >= 400 {
				got = message(t, w)
			}
			if w.Code != c.status || got != c.text {
				t.Errorf("%.80s: %d %q, want %d %q", c.request, w.Code, got, c.status, c.text)
			}
		}
		now, raw := read()
		if now.Spec.Labels["y"] != "2" || now.Spec.Labels["x"] != "" || now.Version.Index <= old.Version.Index || !strings.Contains(raw, "Future") {
			t.Errorf("after the update: %s", raw)
		}
		for filter, n := range map[string]int{"names\":{\"a": 1, "names\":{\"": 0, "name\":{\"": 1, "id\":{\"" + made.ID[:3]: 1, "id\":{\"zzzz": 0, "label\":{\"y=2": 1, "label\":{\"y=3": 0} {
			var list []payloadView
			w := call(s, "GET", path+"?filters={\""+filter+"\":true}}", "")
			if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list) != n {
				t.Errorf("%s: %s, want %d", filter, w.Body, n)
			}
		}
		if w := call(s, "DELETE", path+"/a", ""); w.Code != 204 {
			t.Errorf("remove: %d %s", w.Code, w.Body)
		}
	}
}

func TestPayloadEvents(t *testing.T) {
	s, f := newSwarm(t)
	serveUnix(t, s)
	waitFor(t, f.watching)
	for _, kind := range []string{"secrets", "configs"} {
		for _, r := range []string{"POST /create", "POST /a/update?version=%d", "DELETE /a"} {
			method, path, _ := strings.Cut(r, " ")
			if strings.Contains(path, "%d") {
				path = fmt.Sprintf(path, f.snap.Index())
			}
			if w := call(s, method, "/"+kind+path, `{"Name":"a","Data":"eA=="}`); w.Code >= 300 {
				t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
			}
		}
	}
	var got []string
	for _, m := range eventsOf(s) {
		if m.Type == events.SecretEventType || m.Type == events.ConfigEventType {
			got = append(got, fmt.Sprintf("%s %s %s %s %v", m.Type, m.Action, m.Scope, m.Actor.Attributes["name"], time.Since(time.Unix(0, m.TimeNano)) < time.Hour))
		}
	}
	want := "secret create swarm a true secret update swarm a true secret remove swarm a true config create swarm a true config update swarm a true config remove swarm a true"
	if strings.Join(got, " ") != want {
		t.Errorf("events: %v", got)
	}
}
