// Package fake is a container runtime in memory, for tests of what drives one.
//
// A Node holds the containers and outlives the runtimes that are opened on it, as a real node's containers outlive the
// daemon. Nothing happens by itself: a container runs until the test ends it (or its program, given by Behave, says
// so), and any step can be made to fail or to block. It must behave as package conformance demands; nothing here
// knows about the agent.
package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	containertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Step names a Controller's method for Fail and Block.
type Step string

// The steps of a Controller.
const (
	Prepare Step = "prepare"
	Start   Step = "start"
	Stop    Step = "stop"
	Kill    Step = "kill"
	Remove  Step = "remove"
	Exec    Step = "exec"
	Signal  Step = "signal"
)

// Behaviour is how a container's program behaves.
type Behaviour struct {
	// StartError fails Start.
	StartError error
	// ExitAtOnce ends the program as soon as it runs, with Exit.
	ExitAtOnce bool
	Exit       runtime.Exit
	// IgnoresStop makes the program run on after its stop signal, until it is killed.
	IgnoresStop bool
}

// Node is a node in memory. All methods are safe for concurrent use.
type Node struct {
	// Now is the node's clock; nil means time.Now. It is set before the first use.
	Now func() time.Time
	// Behave says how a container's program behaves; nil means it runs until it is stopped. Set before the first use.
	Behave func(runtime.Spec) Behaviour
	// Program is what a further process of a container does; nil means that there is no program to run. Set before the
	// first use.
	Program Program
	// Files is the directory of the host that is a container's root; nil means that it has none. Set before the first use.
	Files func(container string) string
	// Health is the check that every image asks for; nil means none. Set before the first use.
	Health *containertypes.HealthConfig
	// Grace waits for a container's grace period; nil means a timer. It returns early when ctx ends. Set before use.
	Grace func(ctx context.Context, d time.Duration)

	mu         sync.Mutex
	containers map[string]*container
	images     map[string]string
	fails      map[failure]error
	blocks     map[failure]chan struct{}
	log        []string
	nextPID    int
	checkErr   error
}

type failure struct {
	step Step
	id   string // empty for every container
}

type container struct {
	runtime.Container
	behaviour Behaviour
	done      chan struct{} // closed when it ended or was removed
	step      sync.Mutex
}

// NewNode returns a node without containers that has the given images.
func NewNode(images ...string) *Node {
	n := &Node{
		containers: make(map[string]*container), images: make(map[string]string),
		fails: make(map[failure]error), blocks: make(map[failure]chan struct{}), nextPID: 1000,
	}
	for _, name := range images {
		n.images[name] = "sha256:" + strings.Repeat("0", 64)
	}
	return n
}

// AddImage gives the node an image; RemoveImage takes it away.
func (n *Node) AddImage(name, digest string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.images[name] = digest
}

// RemoveImage takes an image away.
func (n *Node) RemoveImage(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.images, name)
}

// Fail makes a step of a container fail with err from now on; an empty id means every container, a nil err none.
func (n *Node) Fail(step Step, id string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		delete(n.fails, failure{step, id})
		return
	}
	n.fails[failure{step, id}] = err
}

// Block makes a step of a container wait until the returned function is called, or the step's context ends.
func (n *Node) Block(step Step, id string) (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	gate := make(chan struct{})
	n.blocks[failure{step, id}] = gate
	return sync.OnceFunc(func() {
		n.mu.Lock()
		if n.blocks[failure{step, id}] == gate {
			delete(n.blocks, failure{step, id})
		}
		n.mu.Unlock()
		close(gate)
	})
}

// BreakRuntime makes Check fail with err; nil repairs it.
func (n *Node) BreakRuntime(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.checkErr = err
}

// End ends a running container's program, as if by itself. It reports whether the container ran.
func (n *Node) End(id string, exit runtime.Exit) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.containers[id]
	if c == nil || c.State != runtime.Running {
		return false
	}
	n.end(c, exit)
	return true
}

// Steps returns the steps taken so far as "step id", failed ones included, in order.
func (n *Node) Steps() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.log)
}

// Containers returns the node's containers ordered by ID, whether a runtime is open or not.
func (n *Node) Containers() []runtime.Container {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := make([]runtime.Container, 0, len(n.containers))
	for _, c := range n.containers {
		list = append(list, c.Container)
	}
	slices.SortFunc(list, func(a, b runtime.Container) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// end notes the end of a running container; under mu.
func (n *Node) end(c *container, exit runtime.Exit) {
	if exit.At.IsZero() {
		exit.At = n.now()
	}
	c.State, c.PID, c.Exit = runtime.Exited, 0, exit
	close(c.done)
}

func (n *Node) now() time.Time {
	if n.Now != nil {
		return n.Now()
	}
	return time.Now()
}

// enter notes a step, and fails or blocks it as the test asked.
func (n *Node) enter(ctx context.Context, step Step, id string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	n.mu.Lock()
	n.log = append(n.log, string(step)+" "+id)
	var gates []chan struct{}
	var failed error
	for _, f := range []failure{{step, id}, {step, ""}} {
		if g := n.blocks[f]; g != nil {
			gates = append(gates, g)
		}
		if err := n.fails[f]; err != nil && failed == nil {
			failed = err
		}
	}
	n.mu.Unlock()
	for _, g := range gates {
		select {
		case <-g:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return failed
}

// create makes a container; under mu.
func (n *Node) create(spec runtime.Spec) error {
	t := spec.Task.ContainerSpec
	digest, ok := n.images[t.Image]
	if !ok || spec.ImageDigest != "" && spec.ImageDigest != digest {
		return runtime.ImageMissing(t.Image, nil)
	}
	for _, m := range t.Mounts {
		if m.Type != mount.TypeBind {
			continue
		}
		if _, err := os.Stat(m.Source); errors.Is(err, os.ErrNotExist) {
			return runtime.BindSourceMissing(m.Source)
		}
	}
	c := &container{done: make(chan struct{})}
	c.Container = runtime.Container{
		ID: spec.ID, TaskID: spec.TaskID, Name: spec.Name, Image: t.Image, ImageDigest: digest, Labels: spec.Labels,
		Status: runtime.Status{State: runtime.Created, CreatedAt: n.now(), Healthcheck: runtime.Healthcheck(t.Healthcheck, n.Health)},
	}
	c.StopSignal, c.StopGrace = "SIGTERM", 10*time.Second
	if t.StopSignal != "" {
		c.StopSignal = t.StopSignal
	}
	if t.StopGracePeriod != nil {
		c.StopGrace = *t.StopGracePeriod
	}
	if n.Behave != nil {
		c.behaviour = n.Behave(spec)
	}
	n.containers[spec.ID] = c
	return nil
}

// waitGrace waits for a grace period.
func (n *Node) waitGrace(ctx context.Context, d time.Duration) {
	if n.Grace != nil {
		n.Grace(ctx, d)
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func notFound(id string) error { return fmt.Errorf("%w: %s", runtime.ErrNotFound, id) }
