package state

import (
	"iter"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
)

// maxStacks bounds how many stacks are known, those whose services are gone included.
const maxStacks = 1000

// Stack finds a stack by its name, or returns nil.
func (s *Snapshot) Stack(name string) *model.Stack {
	v, _ := s.stacks.Get(name)
	return v
}

// Stacks goes over all stacks by name.
func (s *Snapshot) Stacks() iter.Seq[*model.Stack] {
	return func(yield func(*model.Stack) bool) {
		s.stacks.Scan(func(_ string, v *model.Stack) bool { return yield(v) })
	}
}

func (w *writer) putStackRevision(c *model.StackRevisionPut) error {
	size := len(c.Revision.Definition)
	switch {
	case c.Stack == "":
		return model.Invalidf("a stack needs a name")
	case size > model.MaxStackBytes:
		return model.Errorf(model.Exhausted, "the stack's definition has %d bytes, more than %d", size, model.MaxStackBytes)
	}
	old := w.s.Stack(c.Stack)
	if old == nil && w.s.stacks.Len() >= maxStacks {
		return model.Errorf(model.Exhausted, "the swarm knows %d stacks, the most it can hold: remove some (skep stack rm)", maxStacks)
	}
	rev := c.Revision
	rev.At, rev.Num = w.now, 1
	next := model.Stack{Name: c.Stack, CreatedAt: w.now}
	if old != nil {
		next = *old
		rev.Num = old.Current().Num + 1
		next.Revisions = slices.Clone(old.Revisions[max(0, len(old.Revisions)+1-model.MaxStackRevisions):])
	}
	next.Revisions = append(next.Revisions, &rev)
	next.UpdatedAt, next.Version = w.now, w.stamp(max(next.Version, 1))
	w.setStack(&next)
	return nil
}

func (w *writer) setStack(s *model.Stack) {
	w.s.stacks.Set(s.Name, s)
	w.touch(model.StackKey(s.Name))
}

func (w *writer) deleteStack(name string) error {
	if _, ok := w.s.stacks.Delete(name); !ok {
		return model.NotFoundf("stack %s not found", name)
	}
	w.touch(model.StackKey(name))
	return nil
}

// stackLabel names the stack that an object belongs to. Docker's clients set and look for it.
const stackLabel = "com.docker.stack.namespace"

// leaveStack forgets a stack when the last object that had its label is gone: who removes a stack with Docker's client removes its parts
// one by one, and knows of nothing else.
func (w *writer) leaveStack(labels map[string]string) {
	name := labels[stackLabel]
	if name == "" || w.s.Stack(name) == nil || w.s.inStack(name) {
		return
	}
	w.s.stacks.Delete(name)
	w.touch(model.StackKey(name))
}

// inStack reports whether something has a stack's label.
func (s *Snapshot) inStack(name string) bool {
	for v := range s.Services() {
		if v.Spec().Labels[stackLabel] == name {
			return true
		}
	}
	for n := range s.Networks() {
		if n.Labels[stackLabel] == name {
			return true
		}
	}
	for _, kind := range []model.Kind{model.KindSecret, model.KindConfig} {
		for p := range s.Payloads(kind) {
			if p.Spec.Typed.Labels[stackLabel] == name {
				return true
			}
		}
	}
	return false
}
