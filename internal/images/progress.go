package images

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Progress is one thing worth telling of a pull or a push, in Docker's words.
type Progress struct {
	// ID is the short digest of a layer, or a tag; empty for a line of its own.
	ID, Status string
	// Current and Total are bytes; Total is 0 when there is nothing to draw.
	Current, Total int64
}

// The states of a layer that clients draw.
const (
	layerExists      = "Already exists"
	layerWaiting     = "Pulling fs layer"
	layerDownloading = "Downloading"
	layerHere        = "Download complete"
	layerDone        = "Pull complete"
)

// lookEvery is how often someone who watches is told.
const lookEvery = 100 * time.Millisecond

// tracker knows what a pull consists of. It is asked by many who watch one pull.
type tracker struct {
	mu     sync.Mutex
	all    map[digest.Digest]ocispec.Descriptor // everything that was met
	layers []ocispec.Descriptor                 // lowest first
	had    map[digest.Digest]bool               // layers that were here before
	config *ocispec.Descriptor
	notes  []Progress // lines of their own, in order
}

func newTracker() *tracker {
	return &tracker{all: map[digest.Digest]ocispec.Descriptor{}, had: map[digest.Digest]bool{}}
}

// meet records a descriptor and, of a manifest, its layers.
func (t *tracker) meet(ctx context.Context, store content.Store, desc ocispec.Descriptor, children []ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[desc.Digest] = desc
	if !images.IsManifestType(desc.MediaType) || len(t.layers) > 0 {
		return
	}
	for _, c := range children {
		switch {
		case images.IsLayerType(c.MediaType):
			t.layers = append(t.layers, c)
			if _, err := store.Info(ctx, c.Digest); err == nil {
				t.had[c.Digest] = true
			}
		case images.IsConfigType(c.MediaType):
			t.config = &c
		}
	}
}

func (t *tracker) note(p Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes = append(t.notes, p)
}

// received is how many bytes of the pull are here, in whole and half blobs.
func (t *tracker) received(ctx context.Context, store content.Store) int64 {
	t.mu.Lock()
	all := make([]ocispec.Descriptor, 0, len(t.all)+len(t.layers))
	for _, d := range t.all {
		all = append(all, d)
	}
	for _, d := range t.layers {
		if _, ok := t.all[d.Digest]; !ok {
			all = append(all, d)
		}
	}
	t.mu.Unlock()
	var n int64
	for _, d := range all {
		if info, err := store.Info(ctx, d.Digest); err == nil {
			n += info.Size
		} else if st, err := store.Status(ctx, remotes.MakeRefKey(ctx, d)); err == nil {
			n += st.Offset
		}
	}
	return n
}

// look is where every layer stands.
func (t *tracker) look(ctx context.Context, c *client.Client) []Progress {
	t.mu.Lock()
	layers, config := slices.Clone(t.layers), t.config
	t.mu.Unlock()
	store := c.ContentStore()
	chains := chainIDs(ctx, store, config)
	out := make([]Progress, 0, len(layers))
	for i, d := range layers {
		p := Progress{ID: shortID(d.Digest), Status: layerWaiting}
		if _, err := store.Info(ctx, d.Digest); err == nil {
			p.Status = layerHere
			if t.had[d.Digest] {
				p.Status = layerExists
			} else if i < len(chains) {
				if _, err := c.SnapshotService(snapshotter).Stat(ctx, chains[i].String()); err == nil {
					p.Status = layerDone
				}
			}
		} else if st, err := store.Status(ctx, remotes.MakeRefKey(ctx, d)); err == nil {
			p.Status, p.Current, p.Total = layerDownloading, st.Offset, d.Size
		}
		out = append(out, p)
	}
	return out
}

// chainIDs are the snapshots that the layers become; nil until the configuration is here.
func chainIDs(ctx context.Context, store content.Store, config *ocispec.Descriptor) []digest.Digest {
	if config == nil || config.Size > maxConfig {
		return nil
	}
	data, err := content.ReadBlob(ctx, store, *config)
	if err != nil {
		return nil
	}
	var img ocispec.Image
	if json.Unmarshal(data, &img) != nil {
		return nil
	}
	return identity.ChainIDs(slices.Clone(img.RootFS.DiffIDs))
}

func shortID(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// teller tells one watcher what changed since it was told last.
type teller struct {
	tell  func(Progress)
	notes int
	last  map[string]Progress
}

func (w *teller) report(t *tracker, now []Progress) {
	t.mu.Lock()
	notes := slices.Clone(t.notes[w.notes:])
	t.mu.Unlock()
	w.notes += len(notes)
	for _, p := range notes {
		w.tell(p)
	}
	for _, p := range now {
		before, known := w.last[p.ID]
		if known && before == p {
			continue
		}
		if !known && p.Status != layerExists && p.Status != layerWaiting {
			w.tell(Progress{ID: p.ID, Status: layerWaiting})
		}
		if p.Status == layerDone && known && before.Status == layerDownloading {
			w.tell(Progress{ID: p.ID, Status: layerHere})
		}
		w.last[p.ID] = p
		w.tell(p)
	}
}
