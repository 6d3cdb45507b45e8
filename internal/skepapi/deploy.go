package skepapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// action is one thing that a deploy does.
type action struct {
	verb, kind, name string
	// do does it on a server: this one, or one that only rehearses; nil for what is as it shall be.
	do func(context.Context, *server) error
	// before and after are a service's specs as they are stored, for a diff; nil when there is none.
	before, after json.RawMessage
	// spec is what a service is asked to be; credentials is true when it gets new ones.
	spec        json.RawMessage
	credentials bool
	warnings    []string
}

// stackPlan is all that a deploy does, in order.
type stackPlan struct {
	definition []byte
	actions    []*action
}

// Planned is an action as a client sees it.
type Planned struct {
	Action, Kind, Name string
	Before, After      json.RawMessage `json:",omitempty"`
	Warnings           []string        `json:",omitempty"`
}

func (p *stackPlan) view() []Planned {
	out := make([]Planned, 0, len(p.actions))
	for _, a := range p.actions {
		out = append(out, Planned{a.verb, a.kind, a.name, a.before, a.after, a.warnings})
	}
	return out
}

// actionError is what one part of a stack is refused for.
type actionError struct {
	kind, name string
	err        error
}

func (e *actionError) Error() string { return fmt.Sprintf("%s %s: %v", e.kind, e.name, e.err) }
func (e *actionError) Unwrap() error { return e.err }

var errNoSwarm = model.Errorf(model.Unavailable, `This node is not a swarm manager. Use "docker swarm init" or "skep up" to make it one and try again.`)

// maxDeployAttempts bounds how often a deploy is planned again because others write to its stack meanwhile.
const maxDeployAttempts = 4

// apply carries a deploy out, after those of the same stack that came before it. What another client writes meanwhile makes it
// plan again with what there is then.
func (s *server) apply(ctx context.Context, d *Deploy, say func(Step)) (uint64, error) {
	done, err := s.turns.take(ctx, d.Stack.Name)
	if err != nil {
		return 0, fmt.Errorf("wait for another deploy of stack %s: %w", d.Stack.Name, err)
	}
	defer done()
	said := map[string]bool{}
	once := func(st Step) {
		if key := st.Kind + " " + st.Name; !said[key] {
			said[key] = true
			say(st)
		}
	}
	for range maxDeployAttempts {
		num, again, err := s.applyOnce(ctx, d, once)
		if err == nil || !again {
			return num, err
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		d.last = err
	}
	return 0, model.Errorf(model.Unavailable, "others write to stack %s all the time: %v: please try again", d.Stack.Name, d.last)
}

// applyOnce plans a deploy, keeps it as a revision, and carries it out. What can be wrong is found before anything is written; a deploy
// that stopped half way is completed by deploying again. again is true when a new plan may do better.
func (s *server) applyOnce(ctx context.Context, d *Deploy, say func(Step)) (num uint64, again bool, err error) {
	p, err := s.plan(ctx, d)
	if err != nil {
		return 0, false, err
	}
	snap, err := s.b.State(ctx)
	if err != nil {
		return 0, false, err
	}
	if old := snap.Stack(d.Stack.Name); old == nil || !bytes.Equal(old.Current().Definition, p.definition) {
		if err := s.keep(ctx, snap, d, p.definition); err != nil {
			return 0, false, err
		}
	}
	for _, a := range p.actions {
		if a.do != nil {
			if err := a.do(ctx, s); err != nil {
				return 0, overtaken(err), &actionError{a.kind, a.name, err}
			}
		}
		say(Step{Action: a.verb, Kind: a.kind, Name: a.name, Warnings: a.warnings})
	}
	if snap, err = s.b.State(ctx); err != nil {
		return 0, false, err
	}
	if st := snap.Stack(d.Stack.Name); st != nil {
		return st.Current().Num, false, nil
	}
	return 0, false, model.Errorf(model.Stale, "stack %s was removed while it was deployed", d.Stack.Name)
}

// keep makes a definition the stack's newest revision. The first one follows what other clients had deployed, if they had.
func (s *server) keep(ctx context.Context, snap *state.Snapshot, d *Deploy, definition []byte) error {
	put := []*model.StackRevision{{Actor: actor, Reason: d.Reason, Definition: definition}}
	if snap.Stack(d.Stack.Name) == nil {
		before, err := found(snap, d.Stack.Name)
		if err != nil {
			return fmt.Errorf("keep what there is: %w", err)
		}
		if before != nil {
			put = slices.Insert(put, 0, before)
		}
	}
	var txn model.Txn
	for _, rev := range put {
		txn.Changes = append(txn.Changes, model.Change{PutStack: &model.StackRevisionPut{Stack: d.Stack.Name, Revision: *rev}})
	}
	return s.propose(ctx, d.Reason+" of stack "+d.Stack.Name, model.Time(time.Now().UnixNano()), txn)
}

// overtaken reports whether a write came too late, because somebody else had written.
func overtaken(err error) bool {
	switch model.KindOf(err) {
	case model.Conflict, model.Stale, model.NotFound:
		return true
	}
	return strings.Contains(err.Error(), "out of sequence")
}

// planner makes a plan from one snapshot.
type planner struct {
	*server
	ctx  context.Context
	snap *state.Snapshot
	d    *Deploy
	// asked are the images that were resolved for this plan.
	asked map[string]meaning
	stackPlan
}

// plan says what a deploy does, and has rehearsed it.
func (s *server) plan(ctx context.Context, d *Deploy) (*stackPlan, error) {
	snap, err := s.b.State(ctx)
	if err != nil {
		return nil, err
	}
	if snap.Cluster() == nil {
		return nil, errNoSwarm
	}
	p := &planner{server: s, ctx: ctx, snap: snap, d: d, asked: map[string]meaning{}}
	keep := *d.Stack.WithoutData()
	keep.Warnings = nil
	keep.Services = slices.Clone(keep.Services)
	keep.Configs = slices.Clone(keep.Configs)
	for i, c := range keep.Configs {
		if c.Spec != nil {
			spec := *c.Spec
			spec.Data = nil
			keep.Configs[i].Spec = &spec
		}
	}
	for _, step := range []func() error{p.networks, p.payloads, func() error { return p.services(keep.Services) }} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if d.Prune {
		p.prune()
	}
	if p.definition, err = json.Marshal(&keep); err != nil {
		return nil, fmt.Errorf("encode the stack: %w", err)
	}
	if len(p.definition) > model.MaxStackBytes {
		return nil, model.Invalidf("the stack's definition has %d bytes, more than %d: split it into several stacks", len(p.definition), model.MaxStackBytes)
	}
	if err := s.rehearse(ctx, snap, d, &p.stackPlan); err != nil {
		return nil, err
	}
	return &p.stackPlan, nil
}

// partOf refuses what a stack is made of when it is there already and is another's. Without a label it is nobody's.
func (p *planner) partOf(labels map[string]string) error {
	other := labels[stackLabel]
	if other == "" || other == p.d.Stack.Name {
		return nil
	}
	return model.Conflictf("it exists already and is stack %s's: give this one another name, or use that one with 'external: true'", other)
}

func revisionNumber(text string) (uint64, error) {
	num, err := strconv.ParseUint(text, 10, 64)
	if err != nil || num == 0 {
		return 0, model.Invalidf("%q is not the number of a revision", text)
	}
	return num, nil
}

// partAt is which part of a stack an error is about, empty when it is about none.
func partAt(err error) (kind, name string) {
	var a *actionError
	if errors.As(err, &a) {
		return a.kind, a.name
	}
	return "", ""
}
