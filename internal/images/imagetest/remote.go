package imagetest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"runtime"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push stores an image with a layer for each of the lists of files, compressed, for this machine's architecture, and
// returns its manifest's descriptor.
func (r *Registry) Push(tb testing.TB, repo, tag string, layers [][]File, config Config) ocispec.Descriptor {
	tb.Helper()
	return r.pushFor(tb, repo, tag, runtime.GOARCH, layers, config)
}

// PushIndex stores an image for several architectures under one index; layers are of the one that they are under.
func (r *Registry) PushIndex(tb testing.TB, repo, tag string, layers map[string][][]File) ocispec.Descriptor {
	tb.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for arch, l := range layers {
		d := r.pushFor(tb, repo, "", arch, l, Config{})
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, d)
	}
	data := encode(tb, index)
	return ocispec.Descriptor{MediaType: index.MediaType, Digest: r.PutManifest(repo, tag, index.MediaType, data), Size: int64(len(data))}
}

func (r *Registry) pushFor(tb testing.TB, repo, tag, arch string, layers [][]File, config Config) ocispec.Descriptor {
	tb.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var diffs []digest.Digest
	for _, files := range layers {
		plain := tarball(tb, files)
		diffs = append(diffs, digest.FromBytes(plain))
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(plain); err != nil {
			tb.Fatal(err)
		}
		if err := z.Close(); err != nil {
			tb.Fatal(err)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: r.Put(packed.Bytes()), Size: int64(packed.Len())})
	}
	body := encode(tb, map[string]any{
		"architecture": arch, "os": "linux", "created": time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC), "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: r.Put(body), Size: int64(len(body))}
	data := encode(tb, m)
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: r.PutManifest(repo, tag, m.MediaType, data), Size: int64(len(data))}
}

func encode(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}
