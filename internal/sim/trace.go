package sim

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// keepLines is how much of its past a failure tells.
const keepLines = 60

// line is one event as numbers; it becomes text only when somebody reads it.
type line struct {
	at      int64
	kind    string
	a, b, c uint64
	batch   *model.Batch
	out     *model.Outcome
}

// trace remembers the last events and hashes all of them.
type trace struct {
	hash uint64
	ring [keepLines]line
	n    int
	out  io.Writer
}

func (t *trace) mix(v uint64) {
	t.hash ^= v
	t.hash *= 0x9e3779b97f4a7c15
	t.hash ^= t.hash >> 29
}

func (t *trace) add(l line) {
	t.mix(uint64(l.at))
	for i := 0; i < len(l.kind); i++ {
		t.hash = (t.hash ^ uint64(l.kind[i])) * 0x100000001b3
	}
	t.mix(l.a)
	t.mix(l.b)
	t.mix(l.c)
	t.ring[t.n%keepLines] = l
	t.n++
	if t.out != nil {
		fmt.Fprintln(t.out, l)
	}
}

// note writes an event into the trace.
func (w *world) note(kind string, a, b, c uint64) {
	w.trace.add(line{at: w.now, kind: kind, a: a, b: b, c: c})
}

func (l line) String() string {
	s := fmt.Sprintf("%12s  %s", time.Duration(l.at).Round(time.Microsecond), l.kind)
	if strings.Contains(l.kind, "%") {
		args := []any{l.a, l.b, l.c}
		s = fmt.Sprintf("%12s  "+l.kind, append([]any{time.Duration(l.at).Round(time.Microsecond)}, args[:strings.Count(l.kind, "%")]...)...)
	}
	if l.batch != nil {
		s += describe(l.batch, l.out)
	}
	return s
}

// describe is a batch as a reader can follow it.
func describe(b *model.Batch, out *model.Outcome) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, " %s/%s", b.Actor, b.Reason)
	if out.Repeated {
		return sb.String() + " (again, changes nothing)"
	}
	for i := range b.Txns {
		sb.WriteString("\n                ")
		if out.Results[i] != nil {
			fmt.Fprintf(&sb, "REFUSED (%v)", out.Results[i])
		}
		for j := range b.Txns[i].Changes {
			sb.WriteString(" " + describeChange(&b.Txns[i].Changes[j]))
		}
	}
	return sb.String()
}

func describeChange(c *model.Change) string {
	switch {
	case c.PutNode != nil:
		return fmt.Sprintf("node %d joins", c.PutNode.ID)
	case c.SetNodeSpec != nil:
		return fmt.Sprintf("node %d: %s %v", c.SetNodeSpec.Node, c.SetNodeSpec.Spec.Availability, c.SetNodeSpec.Spec.Labels)
	case c.SetNodeState != nil:
		return fmt.Sprintf("node %d is %s", c.SetNodeState.Node, c.SetNodeState.State)
	case c.SetNodeBlocks != nil:
		return fmt.Sprintf("node %d has %v", c.SetNodeBlocks.Node, c.SetNodeBlocks.Blocks)
	case c.DeleteNode != 0:
		return fmt.Sprintf("node %d removed", c.DeleteNode)
	case c.NewRevision != nil:
		return fmt.Sprintf("service %d: %s", c.NewRevision.Service, c.NewRevision.Spec.Raw)
	case c.DeleteService != 0:
		return fmt.Sprintf("service %d removed", c.DeleteService)
	case c.SetUpdate != nil:
		if c.SetUpdate.Update == nil {
			return fmt.Sprintf("service %d: no update", c.SetUpdate.Service)
		}
		return fmt.Sprintf("service %d: %s (%s)", c.SetUpdate.Service, c.SetUpdate.Update.State, c.SetUpdate.Update.Message)
	case c.PutTask != nil:
		t := c.PutTask
		return fmt.Sprintf("+%s slot %d tpl %d %s→%s node %d %s", short(t.ID), t.Slot, t.Template, t.State, t.Desired, t.Node, t.Gateway4)
	case c.PutTasks != nil:
		s := fmt.Sprintf("+%d tasks tpl %d →%s:", len(c.PutTasks.Tasks), c.PutTasks.Template, c.PutTasks.Desired)
		for i, t := range c.PutTasks.Tasks {
			s += fmt.Sprintf(" +t%d.%d slot %d %s node %d %s", c.PutTasks.Service, c.PutTasks.First+uint64(i), t.Slot, t.State, t.Node, t.Gateway4)
		}
		return s
	case c.SetTaskDesired != nil:
		return fmt.Sprintf("%s→%s", short(c.SetTaskDesired.Task), c.SetTaskDesired.Desired)
	case c.SetTaskPlace != nil:
		return fmt.Sprintf("%s on node %d %s", short(c.SetTaskPlace.Task), c.SetTaskPlace.Node, c.SetTaskPlace.Gateway4)
	case c.SetTaskStatus != nil:
		return fmt.Sprintf("%s=%s (%s)", short(c.SetTaskStatus.Task), c.SetTaskStatus.State, c.SetTaskStatus.Err)
	case c.DeleteTask != nil:
		return "-" + short(*c.DeleteTask)
	case c.Report != nil:
		s := fmt.Sprintf("node %d %d/%d:", c.Report.Node, c.Report.Session, c.Report.Seq)
		for _, r := range c.Report.Tasks {
			s += fmt.Sprintf(" %s=%s", short(r.Task), r.State)
		}
		return s
	case c.SetPorts != nil:
		return fmt.Sprintf("service %d has ports %v %s", c.SetPorts.Service, published(c.SetPorts.Ports), c.SetPorts.Err)
	case c.SetVIPs != nil:
		return fmt.Sprintf("service %d has virtual addresses %v %s", c.SetVIPs.Service, c.SetVIPs.VIPs, c.SetVIPs.Err)
	case c.PutNetwork != nil:
		return fmt.Sprintf("network %d %v", c.PutNetwork.ID, c.PutNetwork.IPAM)
	case c.DeleteNetwork != 0:
		return fmt.Sprintf("-network %d", c.DeleteNetwork)
	case c.SetNotice != nil:
		return fmt.Sprintf("service %d: notice %q", c.SetNotice.Service, c.SetNotice.Text)
	case c.PutCluster != nil:
		return fmt.Sprintf("swarm: incarnation %d", c.PutCluster.Incarnation)
	}
	return "…"
}

func published(ports []swarm.PortConfig) []uint32 {
	var out []uint32
	for _, p := range ports {
		out = append(out, p.PublishedPort)
	}
	return out
}

func short(id model.TaskID) string { return fmt.Sprintf("t%d.%d", id.Service, id.Num) }

// Failure is a broken law with what led to it.
type Failure struct {
	Seed     uint64
	Mutation Mutation
	Step     int
	At       time.Duration
	// Law is what was broken, in one line.
	Law  string
	Past []string
}

func (w *world) fail(format string, args ...any) {
	if w.failure != nil {
		return
	}
	f := &Failure{Seed: w.opt.Seed, Mutation: w.opt.Mutation, Step: w.steps, At: time.Duration(w.now), Law: fmt.Sprintf(format, args...)}
	for i := max(0, w.trace.n-keepLines); i < w.trace.n; i++ {
		f.Past = append(f.Past, w.trace.ring[i%keepLines].String())
	}
	w.failure = f
}

// Error is the whole story: the law, how it came to that, and how to see it again.
func (f *Failure) Error() string {
	replay := fmt.Sprintf("make sim SEED=%d", f.Seed)
	if f.Mutation != "" {
		replay += fmt.Sprintf(" MUTATION=%s", f.Mutation)
	}
	return fmt.Sprintf("seed %d, step %d, after %s: %s\nwhat happened before:\n%s\nto see it again: %s",
		f.Seed, f.Step, f.At.Round(time.Millisecond), f.Law, strings.Join(f.Past, "\n"), replay)
}
