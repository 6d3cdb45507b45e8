package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/images/imagetest"
)

func jsonOf(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A registry decides what a manifest says; whatever it is, the answer is one clear error, and the daemon goes on.
func TestPullHostileManifests(t *testing.T) {
	r := imagetest.NewRegistry()
	host := served(t, r)
	s := store(t, nil)
	good := r.Push(t, "good", "1", [][]imagetest.File{small()}, imagetest.Config{})
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: r.Put([]byte("x")), Size: 1}
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: r.Put([]byte("{}")), Size: 2}
	manifest := func(config ocispec.Descriptor, layers ...ocispec.Descriptor) any {
		return ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers}
	}
	index := func(list ...ocispec.Descriptor) any {
		return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list}
	}
	with := func(d ocispec.Descriptor, change func(*ocispec.Descriptor)) ocispec.Descriptor {
		change(&d)
		return d
	}
	type test struct {
		name  string
		index bool
		body  any
	}
	tests := []test{
		{"a configuration too large", false, manifest(with(config, func(d *ocispec.Descriptor) { d.Size = 1 << 40 }), layer)},
		{"a configuration of another kind, too large", false, manifest(with(config, func(d *ocispec.Descriptor) { d.Size, d.MediaType = 1<<40, "text/plain" }), layer)},
		{"a manifest too large", true, index(with(good, func(d *ocispec.Descriptor) { d.Size = 1 << 40 }))},
		{"an index too large", true, index(with(good, func(d *ocispec.Descriptor) { d.Size, d.MediaType = 1<<40, ocispec.MediaTypeImageIndex }))},
		{"a layer of negative size", false, manifest(config, with(layer, func(d *ocispec.Descriptor) { d.Size = -1 }))},
		{"no list", true, index()},
		{"another thing", false, []int{1}},
	}
	for _, bad := range []digest.Digest{"", "garbage", "sha256:", "sha256:zz", "md5:d41d8cd98f00b204e9800998ecf8427e", ":", "sha256:../../../../etc/passwd", digest.Digest("sha256:" + strings.Repeat("z", 64))} {
		set := func(d *ocispec.Descriptor) { d.Digest = bad }
		tests = append(tests,
			test{fmt.Sprintf("layer digest %.20q", bad), false, manifest(config, with(layer, set))},
			test{fmt.Sprintf("configuration digest %.20q", bad), false, manifest(with(config, set), layer)},
			test{fmt.Sprintf("manifest digest %.20q", bad), true, index(with(good, set))})
	}
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			mediaType := ocispec.MediaTypeImageManifest
			if tc.index {
				mediaType = ocispec.MediaTypeImageIndex
			}
			name := fmt.Sprintf("bad%d", i)
			r.PutManifest(name, "1", mediaType, jsonOf(t, tc.body))
			if _, err := s.InspectRemote(t.Context(), host+"/"+name+":1", registry.AuthConfig{}); err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("InspectRemote: %v", err)
			}
			_, err := s.Pull(t.Context(), host+"/"+name+":1", registry.AuthConfig{}, func(images.Progress) {})
			if err == nil || strings.Contains(err.Error(), "\n") {
				t.Fatalf("Pull = %v", err)
			}
			if strings.Contains(tc.name, "too large") && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "at most 4194304")) {
				t.Errorf("Pull = %v", err)
			}
			t.Log(err)
		})
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("List = %v, %v", list, err)
	}
	if _, err := s.Pull(t.Context(), host+"/good:1", registry.AuthConfig{}, nil); err != nil {
		t.Error(err)
	}
}

// A manifest that says where else its parts are makes no node call there.
func TestPullCallsNobodyElse(t *testing.T) {
	r := imagetest.NewRegistry()
	host := served(t, r)
	called := make(chan string, 100)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { called <- req.URL.Path }))
	defer elsewhere.Close()
	r.Push(t, "linked", "good", [][]imagetest.File{small()}, imagetest.Config{})
	s := store(t, nil)
	resp, err := http.Get("http://" + host + "/v2/linked/manifests/good")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m ocispec.Manifest
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil || len(m.Layers) != 1 {
		t.Fatal(m, err)
	}
	m.Config.URLs = []string{elsewhere.URL + "/config"}
	m.Layers[0].URLs = []string{elsewhere.URL + "/layer"}
	r.PutManifest("linked", "1", ocispec.MediaTypeImageManifest, jsonOf(t, m))
	if _, err := s.InspectRemote(t.Context(), host+"/linked:1", registry.AuthConfig{}); err != nil {
		t.Error(err)
	}
	if _, err := s.Pull(t.Context(), host+"/linked:1", registry.AuthConfig{}, nil); err != nil {
		t.Error(err)
	}
	close(called)
	for path := range called {
		t.Errorf("%s was asked for elsewhere", path)
	}
}

// layout is the archive of an OCI layout with blobs.
func layout(t *testing.T, index ocispec.Index, blobs ...[]byte) []byte {
	t.Helper()
	files := []tar.Header{{Name: "oci-layout", Uname: `{"imageLayoutVersion":"1.0.0"}`}}
	for _, data := range blobs {
		files = append(files, tar.Header{Name: "blobs/sha256/" + digest.FromBytes(data).Encoded(), Uname: string(data)})
	}
	return pack(t, append(files, tar.Header{Name: "index.json", Uname: string(jsonOf(t, index))}))
}

func describe(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// An archive of a few bytes, packed, must not make the daemon hold what it unpacks to.
func TestLoadHostileArchives(t *testing.T) {
	s := store(t, nil)
	huge := bytes.Repeat([]byte(" "), 8<<20)
	named := map[string]string{ocispec.AnnotationRefName: "docker.io/library/bad:1"}
	indexOf := func(d ocispec.Descriptor) ocispec.Index {
		d.Annotations = named
		return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}}
	}
	manifestOf := func(config ocispec.Descriptor) []byte {
		return jsonOf(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{}})
	}
	lying := describe(ocispec.MediaTypeImageConfig, huge)
	lying.Size = 10
	other := describe("text/plain", huge)
	many := jsonOf(t, map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": make([]digest.Digest, 501)}})
	garbage := []byte("no JSON")
	for _, tc := range []struct {
		name  string
		index ocispec.Index
		blobs [][]byte
	}{
		{"a manifest too large", indexOf(describe(ocispec.MediaTypeImageManifest, huge)), [][]byte{huge}},
		{"an index too large", indexOf(describe(ocispec.MediaTypeImageIndex, huge)), [][]byte{huge}},
		{"a configuration too large", indexOf(describe(ocispec.MediaTypeImageManifest, manifestOf(lying))), [][]byte{huge, manifestOf(lying)}},
		{"a configuration of another kind, too large", indexOf(describe(ocispec.MediaTypeImageManifest, manifestOf(other))), [][]byte{huge, manifestOf(other)}},
		{"too many layers", indexOf(describe(ocispec.MediaTypeImageManifest, manifestOf(describe(ocispec.MediaTypeImageConfig, many)))), [][]byte{many, manifestOf(describe(ocispec.MediaTypeImageConfig, many))}},
		{"no configuration", indexOf(describe(ocispec.MediaTypeImageManifest, manifestOf(describe(ocispec.MediaTypeImageConfig, garbage)))), [][]byte{garbage, manifestOf(describe(ocispec.MediaTypeImageConfig, garbage))}},
		{"a digest that is none", indexOf(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "garbage", Size: 3}), nil},
		{"a configuration without a digest", indexOf(describe(ocispec.MediaTypeImageManifest, manifestOf(ocispec.Descriptor{}))), [][]byte{manifestOf(ocispec.Descriptor{})}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := s.Load(t.Context(), bytes.NewReader(layout(t, tc.index, tc.blobs...)), new(bytes.Buffer))
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("Load = %v", err)
			}
			t.Log(err)
			if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("List = %v, %v", list, err)
			}
		})
	}
	load(t, s, imagetest.Archive(t, []string{"web:1"}, small(), imagetest.Config{}))
}
