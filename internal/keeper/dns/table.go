package dns

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// Bounds of the tables.
const (
	// MaxNetworks bounds the networks that a node's tasks are in.
	MaxNetworks = 4096
	// MaxRows bounds the rows of all networks together.
	MaxRows = 200_000
	// MaxNames bounds the names of one row, each of at most 255 bytes.
	MaxNames = 256
)

// A TaskKey tells a task from others.
type TaskKey struct {
	Service uint64 `json:"s"`
	Num     uint64 `json:"n"`
}

// A ServiceRow is a service in one network.
type ServiceRow struct {
	Service uint64 `json:"s"`
	// Names are answered with the service's virtual addresses, or with those of its serving tasks when VIP is false; each of
	// them behind "tasks." always with those of the tasks. The first is the service's own name.
	Names []string   `json:"names"`
	VIP   bool       `json:"vip,omitempty"`
	Addr4 netip.Addr `json:"a4,omitzero"` // of the VIP
	Addr6 netip.Addr `json:"a6,omitzero"`
}

// A TaskRow is a task in one network.
type TaskRow struct {
	Key TaskKey `json:"k"`
	// Names are the task's own: its name, its short container ID, its hostname. The first answers questions for its addresses.
	Names []string   `json:"names"`
	Addr4 netip.Addr `json:"a4,omitzero"`
	Addr6 netip.Addr `json:"a6,omitzero"`
	// Serving tells that the task is among the answers to names; others are known by address only, and to themselves.
	Serving bool `json:"on,omitempty"`
}

// A Table is what one network has, or what has changed in it. Names are without regard to case.
type Table struct {
	Network uint64 `json:"net"`
	// Gone takes the network away; nothing else is looked at.
	Gone bool `json:"gone,omitempty"`
	// Complete replaces all that was known. A complete table may come in parts: all but the last have More, and all have the
	// same Draft. Others are changes to what is known.
	Complete bool   `json:"complete,omitempty"`
	More     bool   `json:"more,omitempty"`
	Draft    uint64 `json:"draft,omitempty"`
	// Name and Subnets are the network's; they are taken when Name is set.
	Name    string         `json:"name,omitempty"`
	Subnets []netip.Prefix `json:"subnets,omitempty"`
	// Internal, taken with Name, says that the network leads nowhere else: a task all of whose networks are so asks no resolvers
	// of the host's.
	Internal        bool         `json:"internal,omitempty"`
	Services        []ServiceRow `json:"services,omitempty"`
	ServicesRemoved []uint64     `json:"servicesRemoved,omitempty"`
	Tasks           []TaskRow    `json:"tasks,omitempty"`
	TasksRemoved    []TaskKey    `json:"tasksRemoved,omitempty"`
}

// check refuses what must not be kept.
func (t *Table) check() error {
	if t.Network == 0 {
		return errors.New("a table of names without a network")
	}
	for _, p := range t.Subnets {
		if !p.IsValid() {
			return errors.New("a table of names with an invalid subnet")
		}
	}
	for _, r := range t.Services {
		if err := checkNames(r.Names); err != nil {
			return fmt.Errorf("service %d %w", r.Service, err)
		}
	}
	for _, r := range t.Tasks {
		if err := checkNames(r.Names); err != nil {
			return fmt.Errorf("task %d.%d %w", r.Key.Service, r.Key.Num, err)
		}
	}
	return nil
}

func checkNames(names []string) error {
	if len(names) == 0 || len(names) > MaxNames {
		return fmt.Errorf("has %d names, 1 to %d are possible", len(names), MaxNames)
	}
	for _, name := range names {
		if len(name) > maxName {
			return fmt.Errorf("has a name of %d bytes, the limit is %d", len(name), maxName)
		}
	}
	return nil
}

// service is a row with the tasks of it.
type service struct {
	row   ServiceRow
	known bool // false: only its tasks have been named yet
	tasks []*TaskRow
}

// network is the index of one network's rows. The server's lock guards it.
type network struct {
	id       uint64
	name     string // lower case
	subnets  []netip.Prefix
	internal bool
	services map[uint64]*service
	tasks    map[TaskKey]*TaskRow
	byName   map[string][]*service
	byTask   map[string][]*TaskRow
	byAddr   map[netip.Addr]string // what PTR answers, without the network
}

func newNetwork(id uint64) *network {
	return &network{id: id, services: map[uint64]*service{}, tasks: map[TaskKey]*TaskRow{}, byName: map[string][]*service{},
		byTask: map[string][]*TaskRow{}, byAddr: map[netip.Addr]string{}}
}

func (n *network) rows() int { return len(n.services) + len(n.tasks) }

// apply makes the changes of a table that is not complete, or adds a part of one that is.
func (n *network) apply(t *Table) {
	if t.Name != "" {
		n.name, n.subnets, n.internal = strings.ToLower(t.Name), t.Subnets, t.Internal
	}
	for _, id := range t.ServicesRemoved {
		n.dropService(id)
	}
	for _, k := range t.TasksRemoved {
		n.dropTask(k)
	}
	for i := range t.Services {
		n.setService(t.Services[i])
	}
	for i := range t.Tasks {
		n.setTask(t.Tasks[i])
	}
}

func (n *network) setService(r ServiceRow) {
	n.dropService(r.Service)
	r.Names = lower(r.Names)
	s := n.services[r.Service]
	if s == nil {
		s = &service{}
		n.services[r.Service] = s
	}
	s.row, s.known = r, true
	for _, name := range r.Names {
		n.byName[name] = append(n.byName[name], s)
	}
	n.point(r.Addr4, r.Names[0])
	n.point(r.Addr6, r.Names[0])
}

// dropService takes the names of a service away; its tasks go by themselves.
func (n *network) dropService(id uint64) {
	s := n.services[id]
	if s == nil || !s.known {
		return
	}
	for _, name := range s.row.Names {
		drop(n.byName, name, s)
	}
	n.unpoint(s.row.Addr4, s.row.Names[0])
	n.unpoint(s.row.Addr6, s.row.Names[0])
	s.row, s.known = ServiceRow{}, false
	if len(s.tasks) == 0 {
		delete(n.services, id)
	}
}

func (n *network) setTask(r TaskRow) {
	n.dropTask(r.Key)
	r.Names = lower(r.Names)
	t := &r
	n.tasks[r.Key] = t
	for _, name := range r.Names {
		n.byTask[name] = append(n.byTask[name], t)
	}
	s := n.services[r.Key.Service]
	if s == nil {
		s = &service{}
		n.services[r.Key.Service] = s
	}
	s.tasks = append(s.tasks, t)
	n.point(r.Addr4, r.Names[0])
	n.point(r.Addr6, r.Names[0])
}

func (n *network) dropTask(k TaskKey) {
	t := n.tasks[k]
	if t == nil {
		return
	}
	delete(n.tasks, k)
	for _, name := range t.Names {
		drop(n.byTask, name, t)
	}
	if s := n.services[k.Service]; s != nil {
		s.tasks = without(s.tasks, t)
		if len(s.tasks) == 0 && !s.known {
			delete(n.services, k.Service)
		}
	}
	n.unpoint(t.Addr4, t.Names[0])
	n.unpoint(t.Addr6, t.Names[0])
}

// point lets an address answer with a name. When two rows have one address, the later one is right: the other is just leaving.
func (n *network) point(a netip.Addr, name string) {
	if a.IsValid() {
		n.byAddr[a.Unmap()] = name
	}
}

func (n *network) unpoint(a netip.Addr, name string) {
	if a.IsValid() && n.byAddr[a.Unmap()] == name {
		delete(n.byAddr, a.Unmap())
	}
}

// has reports whether an address is one of the network's subnets.
func (n *network) has(a netip.Addr) bool {
	for _, p := range n.subnets {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// lower returns names in lower case, each once, and without those that are none.
func lower(names []string) []string {
	out := make([]string, 0, len(names))
	for i, name := range names {
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		if i == 0 || name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func drop[T comparable](m map[string][]T, name string, v T) {
	left := without(m[name], v)
	if len(left) == 0 {
		delete(m, name)
		return
	}
	m[name] = left
}

// without removes v in place.
func without[T comparable](list []T, v T) []T {
	i := slices.Index(list, v)
	if i < 0 {
		return list
	}
	last := len(list) - 1
	list[i] = list[last]
	clear(list[last:])
	return list[:last]
}

// find appends the addresses of kind typ that name has here, as the task self sees it, in random order, and tells whether
// there is such a name.
func (n *network) find(name []byte, typ uint16, self TaskKey, out []netip.Addr) ([]netip.Addr, bool) {
	from := len(out)
	if list, ok := n.byName[string(name)]; ok {
		for _, s := range list {
			if s.row.VIP {
				out = take(out, typ, s.row.Addr4, s.row.Addr6)
			} else {
				out = s.serving(out, typ)
			}
		}
		return shuffle(out, from), true
	}
	const all = "tasks."
	if len(name) > len(all) && string(name[:len(all)]) == all {
		if list, ok := n.byName[string(name[len(all):])]; ok {
			for _, s := range list {
				out = s.serving(out, typ)
			}
			return shuffle(out, from), true
		}
	}
	list := n.byTask[string(name)]
	found := false
	for _, t := range list {
		if t.Serving || t.Key == self {
			found = true
			out = take(out, typ, t.Addr4, t.Addr6)
		}
	}
	return shuffle(out, from), found
}

func (s *service) serving(out []netip.Addr, typ uint16) []netip.Addr {
	for _, t := range s.tasks {
		if t.Serving {
			out = take(out, typ, t.Addr4, t.Addr6)
		}
	}
	return out
}

func take(out []netip.Addr, typ uint16, a4, a6 netip.Addr) []netip.Addr {
	switch {
	case typ == typeA && a4.IsValid():
		return append(out, a4.Unmap())
	case typ == typeAAAA && a6.IsValid():
		return append(out, a6)
	}
	return out
}

// shuffle puts the addresses from an index on into random order.
func shuffle(out []netip.Addr, from int) []netip.Addr {
	list := out[from:]
	for i := len(list) - 1; i > 0; i-- {
		j := rand.IntN(i + 1)
		list[i], list[j] = list[j], list[i]
	}
	return out
}

// strip returns name without the network's behind it, as in web.demo_default.
func (n *network) strip(name []byte) ([]byte, bool) {
	i := len(name) - len(n.name) - 1
	if n.name == "" || i <= 0 || name[i] != '.' || string(name[i+1:]) != n.name {
		return nil, false
	}
	return name[:i], true
}
