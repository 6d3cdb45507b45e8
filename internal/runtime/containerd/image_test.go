package containerd

import (
	"testing"

	"github.com/skep-swarm/skep/internal/images/imagetest"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

func testArchive(t testing.TB) []byte {
	return imagetest.Archive(t, []string{conformance.Image}, imagetest.BusyboxFiles(t), imagetest.Config{
		Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}, Cmd: []string{"echo", "from image"}, WorkingDir: "/data",
	})
}
