package daemon

import (
	"testing"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/volumes"
)

func TestRemoveVolume(t *testing.T) {
	b := &backend{host: &host{cfg: &Config{DataRoot: t.TempDir()}, volumes: volumes.New(t.TempDir())}}
	if err := b.RemoveVolume(t.Context(), "nope", false); model.KindOf(err) != model.NotFound || err.Error() != "get nope: no such volume" {
		t.Errorf("removing what is not there: %v", err)
	}
	if err := b.RemoveVolume(t.Context(), "nope", true); err != nil {
		t.Errorf("forcing it: %v", err)
	}
	if _, err := b.volumes.Create(t.Context(), "data", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.RemoveVolume(t.Context(), "data", false); err != nil {
		t.Error(err)
	}
	if list, err := b.ListVolumes(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// TestVolumesInUse: a volume counts as used by what the container really mounts, also when nothing is known of its task.
func TestVolumesInUse(t *testing.T) {
	b := &backend{host: &host{cfg: &Config{DataRoot: "/d"}}}
	c := b.container(&runtime.Container{ID: "c", Volumes: []string{"data-1", "0123"}}, nil, nil)
	if len(c.Mounts) != 2 || c.Mounts[0].Name != "data-1" || c.Mounts[0].Source != "/d/volumes/data-1/_data" || c.Mounts[1].Name != "0123" {
		t.Errorf("mounts = %+v", c.Mounts)
	}
}
