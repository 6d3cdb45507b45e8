package netapply

import (
	"maps"

	"github.com/skep-swarm/skep/internal/netplan"
)

// dirt is what may be wrong.
type dirt struct {
	filters bool         // nftables
	links   bool         // host link and sandbox
	out     bool         // the MTU of the host's way out
	mounts  bool         // namespace files
	spaces  map[int]bool // namespaces of tasks and networks, by the gateway sandbox's number for them
	tables  map[int]bool // those of tasks whose rules were changed
	all     bool

	// What could not be mended: networks, and tasks by name.
	nets  map[uint64]bool
	tasks map[string]bool
}

func (d *dirt) any() bool { return d.filters || d.mounts || d.out || d.all || d.inside() }

// inside tells whether it is about links, or the inside of some namespaces.
func (d *dirt) inside() bool {
	return d.links || len(d.spaces)+len(d.tables)+len(d.nets)+len(d.tasks) > 0
}

func (d *dirt) merge(o dirt) {
	d.filters, d.links = d.filters || o.filters, d.links || o.links
	d.mounts, d.out, d.all = d.mounts || o.mounts, d.out || o.out, d.all || o.all
	join(&d.spaces, o.spaces)
	join(&d.tables, o.tables)
	join(&d.nets, o.nets)
	join(&d.tasks, o.tasks)
}

func join[K comparable](to *map[K]bool, from map[K]bool) {
	if len(from) > 0 && *to == nil {
		*to = map[K]bool{}
	}
	maps.Copy(*to, from)
}

// failedParts is the parts that an error is about.
func failedParts(err error) dirt {
	d := dirt{nets: map[uint64]bool{}, tasks: map[string]bool{}}
	parts, _ := netplan.Parts(err)
	for _, p := range parts {
		if p.Task != "" {
			d.tasks[p.Task] = true
		} else {
			d.nets[p.Network] = true
		}
	}
	return d
}
