package dockerapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/skep-swarm/skep/internal/model"
)

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func callAs(t *testing.T, s http.Handler, method, path, password string) *httptest.ResponseRecorder {
	t.Helper()
	header, err := authconfig.Encode(registry.AuthConfig{Username: "ann", Password: password})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set(registry.AuthHeader, header)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func TestPullAndPush(t *testing.T) {
	s, f := newSwarm(t)
	f.registry = fakeRegistry{password: "right", images: map[string]string{"docker.io/library/web:1": digestA, "docker.io/library/web:2": "breaks"}}
	for _, tt := range []struct {
		method, path, password string
		status                 int
		want                   []string
	}{
		{"POST", "/images/create?fromImage=web&tag=1", "right", 200, []string{
			`{"status":"Pulling from x","progressDetail":{},"id":"1"}`,
			`{"status":"Downloading","progressDetail":{"current":1,"total":2},"progress":"[=========================\u003e                         ] 1B/2B","id":"abc"}`,
			`{"status":"Status: Downloaded newer image for x"}`}},
		{"POST", "/images/create?fromImage=web:2", "right", 200, []string{`"error":"connection reset"`, `"errorDetail":{"message":"connection reset"}`}},
		{"POST", "/images/create?fromImage=web&tag=1", "wrong", 404, []string{"pull access denied for docker.io/library/web:1"}},
		{"POST", "/images/create?fromImage=web&tag=3", "right", 404, []string{"manifest unknown"}},
		{"POST", "/images/create?fromImage=web", "right", 501, []string{"name the tag"}},
		{"POST", "/images/create?fromImage=Web&tag=1", "right", 400, []string{"invalid reference format"}},
		{"POST", "/images/create?fromSrc=-", "right", 501, []string{"docker image load"}},
		{"POST", "/images/web:1/tag?repo=r.example/team/web&tag=9", "", 201, nil},
		{"POST", "/images/r.example/team/web/push?tag=9", "wrong", 404, []string{"push access denied"}},
		{"POST", "/images/r.example/team/web/push?tag=9", "right", 200, []string{
			`{"status":"The push refers to repository [r.example/team/web:9]"}`, `{"aux":{"Digest":"` + digestA + `","Size":500,"Tag":"9"},"progressDetail":{}}`}},
		{"POST", "/images/r.example/team/web/push", "right", 200, []string{`"Tag":"9"`}},
		{"POST", "/images/r.example/other/push", "right", 404, []string{"An image does not exist locally with the tag: r.example/other"}},
		{"GET", "/images/get?names=a&names=b", "", 200, []string{"a,b"}},
		{"GET", "/images/r.example/team/web:9/get", "", 200, []string{"r.example/team/web:9"}},
		{"GET", "/images/none/get", "", 404, []string{"No such image: none:latest"}},
	} {
		w := callAs(t, s, tt.method, tt.path, tt.password)
		if w.Code != tt.status {
			t.Errorf("%s %s: %d %s, want %d", tt.method, tt.path, w.Code, w.Body, tt.status)
		}
		for _, line := range tt.want {
			if !strings.Contains(w.Body.String(), line) {
				t.Errorf("%s %s lacks %s:\n%s", tt.method, tt.path, line, w.Body)
			}
		}
	}
	if img := f.snap.Image("r.example/team/web:9"); img == nil || img.Digest != digestA {
		t.Errorf("the swarm's table has %+v for what was pushed", img)
	}
	for password, status := range map[string]int{"right": 200, "wrong": 401} {
		w := call(s, http.MethodPost, "/auth", `{"username":"ann","password":"`+password+`","serveraddress":"r.example"}`)
		if w.Code != status || status == 200 && w.Body.String() != `{"Status":"Login Succeeded"}`+"\n" {
			t.Errorf("login with the %s password: %d %s", password, w.Code, w.Body)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "/images/create?fromImage=web:1", nil)
	r.Header.Set(registry.AuthHeader, "%%")
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != http.StatusBadRequest {
		t.Errorf("a broken header: %d %s", w.Code, w.Body)
	}
}

// TestMeaning: a name means what its registry says, else what the swarm's table says, else what this node has.
func TestMeaning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newSwarm(t)
		f.registry = fakeRegistry{images: map[string]string{"docker.io/library/both:1": digestA}}
		for _, n := range []string{"both", "table"} {
			f.change(model.Change{PutImage: &model.Image{Name: "docker.io/library/" + n + ":1", Digest: digestB}})
		}
		f.images = []Image{{ID: digestA, Digest: digestB, Names: []string{"docker.io/library/here:1"}}}
		ask := func(name, want string) {
			t.Helper()
			w := callAs(t, s, http.MethodGet, "/distribution/"+name+"/json", "")
			if want == "" && w.Code != http.StatusNotFound || want != "" && (w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"digest":"`+want+`"`)) {
				t.Errorf("%s means %d %s, want %q", name, w.Code, w.Body, want)
			}
		}
		ask("both:1", digestA)
		ask("table:1", digestB)
		ask("here:1", digestB)
		ask("none:1", "")
		s.preferLocal = true
		ask("both:1", digestB)
		s.preferLocal = false
		f.registry.silent = true
		begin := s.now()
		ask("both:1", digestB)
		if d := s.now().Sub(begin); d > knownTimeout {
			t.Errorf("a silent registry was waited for %v", d)
		}
		if w := call(s, http.MethodGet, "/distribution/none:1/json", ""); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "registry docker.io did not answer within 15s") {
			t.Errorf("a silent registry and nobody else: %d %s", w.Code, w.Body)
		}
	})
}

func TestPruneImages(t *testing.T) {
	s, f := newSwarm(t)
	const name = "docker.io/library/web:1"
	f.images = []Image{{ID: digestA, Digest: digestA, Names: []string{name}, Size: 3}, {ID: digestB, Digest: digestB, Size: 4, Labels: map[string]string{"keep": ""}}}
	f.change(model.Change{PutImage: &model.Image{Name: name, Digest: digestA}})
	for _, tt := range []struct{ filters, want string }{
		{`{"label!":{"keep":true}}`, `{"ImagesDeleted":[],"SpaceReclaimed":0}`},
		{`{"until":{"x":true}}`, `invalid until filter`},
		{`{"dangling":{"true":true},"until":{"1h":true}}`, `{"ImagesDeleted":[{"Deleted":"` + digestB + `"}],"SpaceReclaimed":4}`},
		{`{"dangling":{"false":true}}`, `{"ImagesDeleted":[{"Untagged":"web:1"},{"Deleted":"` + digestA + `"}],"SpaceReclaimed":3}`},
	} {
		if w := call(s, http.MethodPost, "/images/prune?filters="+tt.filters, ""); !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("prune %s: %d %s, want %s", tt.filters, w.Code, w.Body, tt.want)
		}
	}
	if f.snap.Image(name) != nil {
		t.Error("the removed name is still in the swarm's table")
	}
}

// Containers of tasks are not pruned, which must not keep docker system prune from doing the rest.
func TestPruneContainers(t *testing.T) {
	s, _ := newSwarm(t)
	for _, tt := range []struct {
		filters string
		code    int
		want    string
	}{
		{`{}`, http.StatusOK, `{"ContainersDeleted":[],"SpaceReclaimed":0}`},
		{`{"until":{"24h":true},"label":{"a=b":true}}`, http.StatusOK, `"ContainersDeleted":[]`},
		{`{"until":{"x":true}}`, http.StatusBadRequest, `invalid until filter`},
		{`{"name":{"x":true}}`, http.StatusBadRequest, `invalid filter`},
	} {
		if w := call(s, http.MethodPost, "/containers/prune?filters="+tt.filters, ""); w.Code != tt.code || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("prune %s: %d %s, want %d %s", tt.filters, w.Code, w.Body, tt.code, tt.want)
		}
	}
}

// What an image shares with others is known when it shares nothing.
// What is asked of the disk's use is counted, what is not is left out.
func TestDiskUsageByType(t *testing.T) {
	s, f, _ := oneTask(t)
	f.images = []Image{{ID: digestA, Size: 3}}
	for query, want := range map[string]string{"": "images containers volumes cache", "?type=container": "containers", "?type=image&type=volume": "images volumes", "?type=build-cache": "cache"} {
		var got struct {
			LayersSize                              int64
			Images, Containers, Volumes, BuildCache *[]struct{ SizeRw, SizeRootFs int64 }
		}
		decode(t, call(s, http.MethodGet, "/v1.44/system/df"+query, "").Body, &got)
		var names []string
		for _, part := range []struct {
			name string
			list *[]struct{ SizeRw, SizeRootFs int64 }
		}{{"images", got.Images}, {"containers", got.Containers}, {"volumes", got.Volumes}, {"cache", got.BuildCache}} {
			if part.list != nil {
				names = append(names, part.name)
			}
		}
		if strings.Join(names, " ") != want || (got.LayersSize == 3) != (got.Images != nil) {
			t.Errorf("%s: %q of %d bytes, want %q", query, names, got.LayersSize, want)
		}
		if got.Containers != nil && (len(*got.Containers) != 1 || (*got.Containers)[0].SizeRw != 3000) {
			t.Errorf("%s: containers %+v", query, *got.Containers)
		}
	}
	if w := call(s, http.MethodGet, "/system/df?type=stack", ""); w.Code != 400 || message(t, w) != "unknown object type: stack" {
		t.Errorf("an unknown type: %d %s", w.Code, w.Body)
	}
}

// A search by reference lists the names that it is for, and no other of the same image.
func TestImagesByReference(t *testing.T) {
	s, f := newSwarm(t)
	f.images = []Image{{ID: digestA, Size: 3, Names: []string{"docker.io/library/web:1", "docker.io/library/web:2", "localhost:5000/team/web:1"}}}
	for pattern, want := range map[string]string{
		"web": "web:1 web:2", "web:1": "web:1", "w*:2": "web:2", "localhost:5000/team/web": "localhost:5000/team/web:1", "localhost:5000/*/*:1": "localhost:5000/team/web:1",
		"localhost": "", "team/web": "", "[": "",
	} {
		var got []struct{ RepoTags []string }
		decode(t, call(s, http.MethodGet, "/images/json?"+filtersOf(map[string][]string{"reference": {pattern}}), "").Body, &got)
		tags := ""
		if len(got) > 0 {
			tags = strings.Join(got[0].RepoTags, " ")
		}
		if tags != want {
			t.Errorf("%s: %q, want %q", pattern, tags, want)
		}
	}
}

// Clients before API 1.44 read the size of an image as VirtualSize.
func TestVirtualSize(t *testing.T) {
	s, f := newSwarm(t)
	f.images = []Image{{ID: digestA, Size: 3, Names: []string{"docker.io/library/web:1"}}}
	for version, want := range map[string]bool{"/v1.40": true, "/v1.43": true, "/v1.44": false, "": false} {
		for _, path := range []string{"/images/json", "/images/web:1/json", "/system/df"} {
			if got := call(s, http.MethodGet, version+path, "").Body.String(); strings.Contains(got, `"VirtualSize":3`) != want {
				t.Errorf("%s%s: %s", version, path, got)
			}
		}
	}
}

func TestDiskUsageOfImages(t *testing.T) {
	s, f := newSwarm(t)
	f.images = []Image{{ID: digestA, Size: 3, Layers: []string{"x", "y"}}, {ID: digestB, Size: 4, Layers: []string{"z"}}}
	if got := call(s, http.MethodGet, "/system/df", "").Body.String(); strings.Count(got, `"SharedSize":0`) != 2 {
		t.Errorf("two that share nothing: %s", got)
	}
	f.images[1].Layers = []string{"y"}
	if got := call(s, http.MethodGet, "/system/df", "").Body.String(); strings.Count(got, `"SharedSize":-1`) != 2 {
		t.Errorf("two that share a layer: %s", got)
	}
}
