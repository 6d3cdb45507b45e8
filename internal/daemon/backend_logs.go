package daemon

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/skep-swarm/skep/internal/agent"
	"github.com/skep-swarm/skep/internal/dispatch"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// lineBuffer is how many lines of one task wait for the client.
const lineBuffer = 64

// Logs reads what tasks wrote. Without following, the lines of all tasks come in the order of their
// times; while following, as they arrive, tasks that start later included.
func (b *backend) Logs(ctx context.Context, sel dockerapi.LogSelector, opt dockerapi.LogOptions) iter.Seq2[dockerapi.LogLine, error] {
	return func(yield func(dockerapi.LogLine, error) bool) {
		a, err := b.manager()
		if err == nil {
			sel, err = byTask(a, sel)
		}
		if err != nil {
			yield(dockerapi.LogLine{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		r := &logRead{a: a, sel: sel, opt: opt, seen: map[model.TaskID]bool{}, missing: map[model.NodeID]error{}}
		defer r.wg.Wait()
		defer cancel()
		if opt.Follow {
			err = r.follow(ctx, yield)
		} else {
			err = r.merge(ctx, yield)
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(dockerapi.LogLine{}, err)
		}
	}
}

// errEnough ends a read whose client has gone.
var errEnough = errors.New("the reader has enough")

// byTask turns a container into its task.
func byTask(a *active, sel dockerapi.LogSelector) (dockerapi.LogSelector, error) {
	if sel.Container == "" {
		return sel, nil
	}
	for t := range a.replica.Snapshot().TasksOnNode(a.id.Node) {
		if agent.ContainerID(a.replica.Snapshot().Cluster().Namer().TaskID(t.ID)) == sel.Container {
			return dockerapi.LogSelector{Task: t.ID}, nil
		}
	}
	return sel, model.NotFoundf("No such container: %s", sel.Container)
}

// logRead is one client's reading of many tasks' logs.
type logRead struct {
	a   *active
	sel dockerapi.LogSelector
	opt dockerapi.LogOptions
	wg  sync.WaitGroup

	seen map[model.TaskID]bool

	mu      sync.Mutex
	missing map[model.NodeID]error // nodes whose logs could not be read
}

// tasks are those that have a log and were not seen before.
func (r *logRead) tasks(s *state.Snapshot) []*model.Task {
	var out []*model.Task
	add := func(t *model.Task) {
		if t != nil && t.Node != 0 && t.State >= model.StateStarting && !r.seen[t.ID] {
			r.seen[t.ID] = true
			out = append(out, t)
		}
	}
	if r.sel.Service == 0 {
		add(s.Task(r.sel.Task))
		return out
	}
	for t := range s.Tasks(r.sel.Service) {
		add(t)
	}
	return out
}

// read sends the lines of tasks on one node to out and closes it; those of one task come in order. A node that
// cannot be reached is noted: the others' lines are worth having.
func (r *logRead) read(ctx context.Context, node model.NodeID, tasks []model.TaskID, tail int, out chan<- dockerapi.LogLine) {
	r.wg.Go(func() {
		defer close(out)
		req := dispatch.LogRequest{Tasks: tasks, Stdout: r.opt.Stdout, Stderr: r.opt.Stderr, Follow: r.opt.Follow, Tail: tail, Since: r.opt.Since, Until: r.opt.Until}
		err := r.a.dispatch.Logs(ctx, node, req, func(e *dispatch.LogEntry) error {
			line := dockerapi.LogLine{Task: e.Task, Node: node, Stderr: e.Stream == "stderr", Time: e.Time, Text: slices.Clone(e.Line), Attrs: e.Attrs}
			if !e.Partial {
				line.Text = append(line.Text, '\n')
			}
			select {
			case out <- line:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil && ctx.Err() == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.missing[node] = err
		}
	})
}

// merge gives the lines of all tasks in the order of time.
func (r *logRead) merge(ctx context.Context, yield func(dockerapi.LogLine, error) bool) error {
	type head struct {
		line dockerapi.LogLine
		from <-chan dockerapi.LogLine
	}
	var heads []head
	for _, t := range r.tasks(r.a.replica.Snapshot()) {
		ch := make(chan dockerapi.LogLine, lineBuffer)
		r.read(ctx, t.Node, []model.TaskID{t.ID}, r.opt.Tail, ch)
		heads = append(heads, head{from: ch})
	}
	live := heads[:0]
	for _, h := range heads {
		if line, ok := <-h.from; ok {
			live = append(live, head{line, h.from})
		}
	}
	for len(live) > 0 {
		first := 0
		for i := range live {
			if live[i].line.Time.Before(live[first].line.Time) {
				first = i
			}
		}
		if !yield(live[first].line, nil) {
			return errEnough
		}
		line, ok := <-live[first].from
		if ok {
			live[first].line = line
		} else {
			live = slices.Delete(live, first, first+1)
		}
	}
	return r.unreachable(ctx)
}

// follow gives lines as they arrive until the client goes; a task's log that ends, ends only itself.
func (r *logRead) follow(ctx context.Context, yield func(dockerapi.LogLine, error) bool) error {
	s, watch := r.a.replica.Watch()
	defer watch.Close()
	lines := make(chan dockerapi.LogLine, lineBuffer)
	start := func(tasks []*model.Task, tail int) {
		// One stream for a node's tasks: a node serves few streams, and a service may have hundreds of tasks there.
		byNode := map[model.NodeID][]model.TaskID{}
		for _, t := range tasks {
			byNode[t.Node] = append(byNode[t.Node], t.ID)
		}
		for node, all := range byNode {
			for ids := range slices.Chunk(all, dispatch.MaxLogTasks) {
				own := make(chan dockerapi.LogLine, lineBuffer)
				r.read(ctx, node, ids, tail, own)
				r.wg.Go(func() {
					for l := range own {
						select {
						case lines <- l:
						case <-ctx.Done():
						}
					}
				})
			}
		}
	}
	start(r.tasks(s), r.opt.Tail)
	for {
		select {
		case l := <-lines:
			if !yield(l, nil) {
				return errEnough
			}
		case <-watch.Ready():
			watch.Take()
			start(r.tasks(r.a.replica.Snapshot()), -1)
		case <-r.a.done:
			return model.Errorf(model.Unavailable, "this node left the swarm")
		case <-ctx.Done():
			return nil
		}
	}
}

// unreachable says which nodes' logs are not among the lines.
func (r *logRead) unreachable(ctx context.Context) error {
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.missing) == 0 || ctx.Err() != nil {
		return nil
	}
	id := slices.Min(slices.Collect(maps.Keys(r.missing)))
	name := fmt.Sprint(id)
	if n := r.a.replica.Snapshot().Node(id); n != nil {
		name = n.Hostname()
	}
	whose := "node " + name
	if n := len(r.missing); n > 1 {
		whose = fmt.Sprintf("%d nodes, %s among them,", n, name)
	}
	return fmt.Errorf("incomplete: the logs of %s could not be read: %w", whose, r.missing[id])
}
