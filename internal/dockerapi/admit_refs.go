package dockerapi

import (
	"path"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

const (
	// maxReferences bounds the files that one container is given.
	maxReferences = 500
	maxTarget     = 4096 // the kernel's limit for a path, in bytes
)

// admitReferences checks a container's references to secrets and configs; whether they are there is the state's to say.
func admitReferences(c *swarm.ContainerSpec) error {
	if len(c.Secrets)+len(c.Configs) > maxReferences {
		return invalid("ContainerSpec: a container can have %d secrets and configs at most", maxReferences)
	}
	for _, r := range c.Secrets {
		switch {
		case r == nil || r.SecretID == "" || r.SecretName == "":
			return invalid("malformed secret reference")
		case r.File == nil:
			return invalid("malformed secret reference, no target provided")
		case r.File.Name == "":
			return invalid("malformed file secret reference, invalid target file name provided")
		}
	}
	for _, r := range c.Configs {
		switch {
		case r == nil || r.ConfigID == "" || r.ConfigName == "":
			return invalid("malformed config reference")
		case r.Runtime != nil:
			return model.Errorf(unimplemented, "config '%s': configs for the runtime hold credential specs, which are for Windows and not available", r.ConfigName)
		case r.File == nil:
			return invalid("malformed config reference, no target provided")
		case r.File.Name == "":
			return invalid("malformed file config reference, invalid target file name provided")
		}
	}
	return admitTargets(c)
}

// admitTargets refuses two files at one place.
func admitTargets(c *swarm.ContainerSpec) error {
	mounted := map[string]bool{}
	for _, m := range c.Mounts {
		mounted[path.Clean(m.Target)] = true
	}
	taken := map[string]model.PayloadRef{}
	for _, r := range model.PayloadRefs(c) {
		target := r.Target()
		other, clash := taken[target]
		_, _, _, err := r.Owner()
		switch {
		case err != nil:
			return invalid("ContainerSpec: %v", err)
		case target == "/" || strings.HasSuffix(r.File, "/") || strings.ContainsRune(target, 0) || len(target) > maxTarget:
			return invalid("ContainerSpec: %s '%s': %q is not the name of a file", r.Kind, r.Name, r.File)
		case clash && other.Kind == r.Kind:
			return invalid("%s references '%s' and '%s' have a conflicting target: '%s'", r.Kind, other.Name, r.Name, r.File)
		case clash:
			return invalid("%s reference '%s' and %s reference '%s' have a conflicting target: '%s'", other.Kind, other.Name, r.Kind, r.Name, target)
		case mounted[target]:
			return invalid("ContainerSpec: duplicate mount point: %s: it is the target of %s '%s', too", target, r.Kind, r.Name)
		}
		taken[target] = r
	}
	return nil
}
