package dockerapi

import (
	"encoding/json"
	"fmt"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// imageFrom is where a new spec's image comes from.
type imageFrom struct {
	digest string            // what its name means now; "" when nobody was asked or knows
	auth   model.Credentials // new ones, nil to keep those of a revision
	before bool              // keep those of the previous revision, not of the one in force
}

// credentials are what nodes pull the image with from now on.
func (f imageFrom) credentials(svc *model.Service) model.Credentials {
	switch {
	case f.auth != nil:
		return f.auth
	case svc == nil:
		return nil
	case f.before && svc.Previous() != nil:
		return svc.Previous().RegistryAuth
	}
	return svc.Current().RegistryAuth
}

// imageFrom reads a request's credentials for the image of a spec, and asks what its name means unless the spec is pinned to a
// digest or keeps what it had. When nobody knows, each node finds out for itself, as in Docker. snap and svc are nil for
// a new service. A rollback means what the revision meant that it goes back to.
func (s *Server) imageFrom(r *request, snap *state.Snapshot, svc *model.Service, spec *swarm.ServiceSpec, rollback bool) (imageFrom, error) {
	var f imageFrom
	switch from := r.query("registryAuthFrom"); from {
	case "", "spec":
		f.before = rollback && from == ""
	case "previous-spec":
		f.before = true
	default:
		return f, model.Invalidf("unrecognized registryAuthFrom option %s: it is spec or previous-spec", from)
	}
	auth, err := registryAuth(r)
	if err != nil {
		return f, err
	}
	if auth != (registry.AuthConfig{}) {
		if f.auth, err = json.Marshal(auth); err != nil {
			return f, fmt.Errorf("encode the credentials: %w", err)
		}
		if len(f.auth) > model.MaxCredentials {
			return f, model.Invalidf("the credentials in X-Registry-Auth are longer than %d bytes", model.MaxCredentials)
		}
	} else if kept := f.credentials(svc); kept != nil {
		if err := json.Unmarshal(kept, &auth); err != nil {
			return f, fmt.Errorf("decode the service's credentials: %w", err)
		}
	}
	if rollback {
		if t := snap.Template(svc.Previous().Template); t != nil {
			f.digest = t.ImageDigest
		}
		return f, nil
	}
	named, err := reference.ParseNormalizedNamed(containerOf(spec).Image)
	if err != nil || keepsImage(svc, spec) {
		return f, nil // admission has its say on names
	}
	if _, ok := named.(reference.Digested); ok {
		return f, nil
	}
	if img, err := s.meaning(r.ctx(), reference.TagNameOnly(named), auth); err == nil {
		f.digest = img.Digest
	}
	return f, r.ctx().Err()
}
