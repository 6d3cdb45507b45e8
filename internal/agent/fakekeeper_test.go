package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/keeper/ports"
	"github.com/skep-swarm/skep/internal/vault"
)

// fakeKeeper is a keeper in memory; foreign are ports that another program has.
type fakeKeeper struct {
	mu      sync.Mutex
	logs    map[string]bool
	held    map[ports.Port]bool
	foreign map[ports.Port]string
	named   map[string]dns.TaskNames
	ports   map[string]dns.Ports // of named
	tables  map[uint64][]dns.Table
	opened  int
}

func newFakeKeeper() *fakeKeeper {
	return &fakeKeeper{logs: map[string]bool{}, held: map[ports.Port]bool{}, foreign: map[ports.Port]string{},
		named: map[string]dns.TaskNames{}, ports: map[string]dns.Ports{}, tables: map[uint64][]dns.Table{}}
}

func (k *fakeKeeper) OpenNames(_ context.Context, cfg dns.TaskNames) (dns.Ports, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.named[cfg.ID]; !ok {
		k.opened++
		k.ports[cfg.ID] = dns.Ports{UDP: uint16(40000 + k.opened), TCP: uint16(40000 + k.opened)}
	}
	k.named[cfg.ID] = cfg
	return k.ports[cfg.ID], nil
}

func (k *fakeKeeper) CloseNames(_ context.Context, id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.named, id)
	return nil
}

// SetNames keeps every table since the last complete one.
func (k *fakeKeeper) SetNames(_ context.Context, t dns.Table) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case t.Gone:
		delete(k.tables, t.Network)
	case t.Complete:
		k.tables[t.Network] = []dns.Table{t}
	case k.tables[t.Network] == nil:
		return errors.New("changes to a table that is not known")
	default:
		k.tables[t.Network] = append(k.tables[t.Network], t)
	}
	return nil
}

func (k *fakeKeeper) names(id string) (dns.TaskNames, dns.Ports, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.named[id]
	return c, k.ports[id], ok
}

// listen moves a task's resolver to other ports.
func (k *fakeKeeper) listen(id string, udp, tcp uint16) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ports[id] = dns.Ports{UDP: udp, TCP: tcp}
}

func (k *fakeKeeper) table(id uint64) []dns.Table {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.tables[id])
}

func (k *fakeKeeper) numNamed() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.named) + len(k.tables)
}

func (k *fakeKeeper) Open(_ context.Context, s keeper.LogSpec) (keeper.Files, error) {
	if err := keeper.ValidateLog(s.Driver, s.Options); err != nil {
		return keeper.Files{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logs[s.ContainerID] = true
	return keeper.Files{Stdout: "/fifo/" + s.ContainerID + "/stdout", Stderr: "/fifo/" + s.ContainerID + "/stderr"}, nil
}

func (k *fakeKeeper) Close(_ context.Context, id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.logs, id)
	return nil
}

func (k *fakeKeeper) Remove(ctx context.Context, _, id string) error { return k.Close(ctx, id) }

// clash is the error when another program has a port. k.mu is held.
func (k *fakeKeeper) clash(p ports.Port) error {
	if who, ok := k.foreign[p]; ok {
		return &ports.InUseError{Port: p, PID: 123, Command: who}
	}
	return nil
}

func (k *fakeKeeper) Hold(_ context.Context, list []ports.Port) ([]error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, len(list))
	for i, p := range list {
		if errs[i] = k.clash(p); errs[i] == nil {
			k.held[p] = true
		}
	}
	return errs, nil
}

func (k *fakeKeeper) Probe(_ context.Context, list []ports.Port) ([]error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, len(list))
	for i, p := range list {
		errs[i] = k.clash(p)
	}
	return errs, nil
}

func (k *fakeKeeper) Release(_ context.Context, list []ports.Port) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range list {
		delete(k.held, p)
	}
	return nil
}

func (k *fakeKeeper) List(context.Context) (keeper.Listing, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := keeper.Listing{Logs: slices.Sorted(maps.Keys(k.logs)), Ports: slices.Collect(maps.Keys(k.held)), Networks: slices.Sorted(maps.Keys(k.tables))}
	for id := range k.named {
		l.Names = append(l.Names, keeper.Named{ID: id, Ports: k.ports[id]})
	}
	return l, nil
}

func (k *fakeKeeper) holds(p ports.Port) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[p]
}

func (k *fakeKeeper) take(p ports.Port, who string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if who == "" {
		delete(k.foreign, p)
		return
	}
	k.foreign[p] = who
}

func (k *fakeKeeper) numLogs() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.logs)
}

func (k *fakeKeeper) numHeld() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held)
}

// fakeFiles keeps files in memory.
type fakeFiles struct {
	mu   sync.Mutex
	all  map[string][]vault.File
	fail error
}

func newFakeFiles() *fakeFiles { return &fakeFiles{all: map[string][]vault.File{}} }

func (f *fakeFiles) Find(id string, n int) ([]string, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list, ok := f.all[id]
	return f.paths(id), ok && len(list) == n, nil
}

func (f *fakeFiles) paths(id string) []string {
	var out []string
	for i := range f.all[id] {
		out = append(out, fmt.Sprintf("/vault/%s/%d", id, i))
	}
	return out
}

func (f *fakeFiles) Put(id string, files []vault.File) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	list := slices.Clone(files)
	for i := range list {
		list[i].Data = slices.Clone(list[i].Data) // the caller wipes its own
	}
	f.all[id] = list
	return f.paths(id), nil
}

func (f *fakeFiles) Remove(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, id)
	return nil
}

func (f *fakeFiles) List() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.all)), nil
}

func (f *fakeFiles) of(id string) []vault.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[id]
}
