package dockerapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/skep-swarm/skep/internal/model"
)

// TestRemovedImageLeavesTheTable: a name that was removed means nothing to the swarm any more, but one
// that has come to mean another image stays.
func TestRemovedImageLeavesTheTable(t *testing.T) {
	s, f := newSwarm(t)
	const one, two = "docker.io/library/web:v1", "docker.io/library/web:v2"
	f.images = []Image{{ID: "sha256:" + strings.Repeat("a", 64), Digest: "sha256:one", Names: []string{one, two}}}
	f.change(model.Change{PutImage: &model.Image{Name: one, Digest: "sha256:one"}}, model.Change{PutImage: &model.Image{Name: two, Digest: "sha256:another"}})
	for _, name := range []string{"web:v1", "web:v2"} {
		if w := call(s, http.MethodDelete, "/images/"+name, ""); w.Code != http.StatusOK {
			t.Fatalf("remove %s: %d %s", name, w.Code, w.Body)
		}
	}
	if f.snap.Image(one) != nil {
		t.Error("the removed name is still in the table")
	}
	if f.snap.Image(two) == nil {
		t.Error("a name of another image left the table")
	}
}
