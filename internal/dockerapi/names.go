package dockerapi

import (
	"fmt"
	"io"

	"github.com/skep-swarm/skep/internal/model"
)

var (
	nameHow = [...]string{"amber", "bold", "brisk", "bright", "busy", "calm", "clever", "eager", "fair", "fond", "gentle", "golden",
		"happy", "humming", "keen", "kind", "lively", "lucky", "merry", "mellow", "nimble", "noble", "patient", "proud", "quick", "quiet",
		"steady", "sunny", "swift", "tidy", "warm", "wise"}
	nameWho = [...]string{"beekeeper", "clover", "comb", "dandelion", "drone", "field", "forager", "garden", "heather", "hive", "honey",
		"lavender", "linden", "meadow", "nectar", "orchard", "pollen", "queen", "rosemary", "sage", "scout", "skep", "smoker", "spring",
		"straw", "sunflower", "swarm", "thistle", "thyme", "wax", "willow", "worker"}
)

// giveName names a service that a user did not want to name.
func (s *Server) giveName(spec model.ServiceSpec) (model.ServiceSpec, error) {
	var b [4]byte
	if _, err := io.ReadFull(s.rand, b[:]); err != nil {
		return spec, fmt.Errorf("make a name: %w", err)
	}
	typed := *spec.Typed
	typed.Name = fmt.Sprintf("%s_%s%d", nameHow[int(b[0])%len(nameHow)], nameWho[int(b[1])%len(nameWho)], int(b[2])<<8|int(b[3]))
	return mergeSpec(spec.Raw, &typed)
}
