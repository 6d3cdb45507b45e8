package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"

	rt "github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

// Where a secret, a config or a mount should come to is the image's and the volumes' to say, links to the host's directories included:
// nothing is made in those, neither when the container starts nor when somebody looks at its files afterwards.
func TestTargetsThroughLinks(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	dir, host := h.volume(t)
	must(t, os.Remove(filepath.Join(host, "f")))
	must(t, os.Symlink(strings.Repeat("../", 30)+host[1:], filepath.Join(dir, "up")))
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	spec := conformance.NewSpec("linked", shell("cat /data/outside/one /data/up/two; touch /data/outside/three/x"))
	container(&spec).Mounts = []mount.Mount{
		{Type: mount.TypeVolume, Source: "vol", Target: "/data", VolumeOptions: &mount.VolumeOptions{NoCopy: true}},
		{Type: mount.TypeTmpfs, Target: "/data/outside/three"},
		{Type: mount.TypeVolume, Source: "other", Target: "/data/up/four"},
	}
	spec.Mounts = []rt.Mount{{Source: secret, Target: "/data/outside/one", ReadOnly: true}, {Source: secret, Target: "/data/up/two", ReadOnly: true}}
	c, err := h.runtime.Controller(spec)
	must(t, err)
	must(t, c.Prepare(t.Context()))
	untouched := func(when string) {
		t.Helper()
		if entries, err := os.ReadDir(host); err != nil || len(entries) > 0 {
			t.Errorf("%s: the host's directory has %v (%v)", when, entries, err)
		}
	}
	if _, err = c.Start(t.Context()); err == nil {
		exit, err := c.Wait(t.Context())
		if err != nil || exit.Code != 0 {
			t.Errorf("%+v, %v", exit, err)
		}
	} else {
		t.Logf("runc refuses it: %v", err)
	}
	untouched("started")
	_, release, err := c.Root(t.Context())
	must(t, err)
	untouched("looked at")
	release()
	must(t, c.Remove(t.Context()))
	untouched("removed")
}
