package schedule

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
)

// vessel is a node, or a branch of nodes, that tasks are poured into.
type vessel struct {
	penalty int32 // lower ones are filled first, to the brim
	have    int32 // tasks of this service: the level
	total   int32 // tasks of all: breaks ties, then the order of the vessels does
	room    int32
}

// filler pours tasks. It keeps its arrays from one filling to the next; the zero value is ready.
type filler struct {
	got         []int32
	order, edge []int
}

// fill pours k tasks and returns how many each vessel got, until the next call. The result is that of k single
// choices of the vessel that is least by (penalty, have, total, order), found without
// making them: the level to which all rise by search, the rest by selection.
func (f *filler) fill(vs []vessel, k int) []int32 {
	f.got, f.order = slices.Grow(f.got[:0], len(vs))[:len(vs)], f.order[:0]
	clear(f.got)
	alike := true
	for i := range vs {
		f.order = append(f.order, i)
		alike = alike && vs[i].penalty == vs[0].penalty
	}
	if !alike {
		slices.SortStableFunc(f.order, func(a, b int) int { return cmp.Compare(vs[a].penalty, vs[b].penalty) })
	}
	for order := f.order; len(order) > 0 && k > 0; {
		n := 1
		for n < len(order) && vs[order[n]].penalty == vs[order[0]].penalty {
			n++
		}
		k -= f.fillLevel(vs, order[:n], k)
		order = order[n:]
	}
	return f.got
}

// poured is how many tasks the vessels take up to a level.
func poured(vs []vessel, idx []int, level int64) (sum int64) {
	for _, i := range idx {
		sum += min(max(level-int64(vs[i].have), 0), int64(vs[i].room))
	}
	return sum
}

// level is the highest level that takes no more than k tasks, or any above when there is room for no more than k.
func level(vs []vessel, idx []int, k int) int64 {
	lo, highest := int64(vs[idx[0]].have), int64(0)
	for _, i := range idx {
		lo = min(lo, int64(vs[i].have))
		highest = max(highest, int64(vs[i].have))
	}
	// It lies in [lo, hi): nothing fits below lo, and above the highest vessel plus k there is more than k, unless all
	// are full. The steps grow, because few tasks for many vessels do not rise far.
	hi := highest + int64(k) + 1
	for step := int64(1); ; step *= 2 {
		at := min(lo+step, hi)
		if poured(vs, idx, at) > int64(k) {
			hi = at
			break
		}
		if lo = at; at == hi {
			return hi
		}
	}
	for lo+1 < hi {
		if mid := (lo + hi) / 2; poured(vs, idx, mid) <= int64(k) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// fillLevel fills vessels of one penalty and returns how many tasks they took.
func (f *filler) fillLevel(vs []vessel, idx []int, k int) int {
	got, lo, taken := f.got, level(vs, idx, k), 0
	edge := f.edge[:0]
	for _, i := range idx {
		got[i] = int32(min(max(lo-int64(vs[i].have), 0), int64(vs[i].room)))
		taken += int(got[i])
		if int64(vs[i].have)+int64(got[i]) == lo && got[i] < vs[i].room {
			edge = append(edge, i)
		}
	}
	f.edge = edge
	rest := min(k-taken, len(edge))
	selectLeast(edge, rest, func(a, b int) bool {
		ta, tb := vs[a].total+got[a], vs[b].total+got[b]
		return ta < tb || ta == tb && a < b
	})
	for _, i := range edge[:rest] {
		got[i]++
	}
	return taken + rest
}

// fewLeast is up to how many elements are selected by keeping the least ones in order.
const fewLeast = 16

// selectLeast moves the k least elements to the front, in any order (quickselect; the middle
// element as pivot, so that sorted input, the usual one, costs no more).
func selectLeast(s []int, k int, less func(a, b int) bool) {
	if k <= fewLeast {
		selectFew(s, k, less)
		return
	}
	lo, hi := 0, len(s)
	for hi-lo > 1 && k > lo && k < hi {
		mid := lo + (hi-lo)/2
		s[mid], s[hi-1] = s[hi-1], s[mid]
		at := lo
		for i := lo; i < hi-1; i++ {
			if less(s[i], s[hi-1]) {
				s[i], s[at] = s[at], s[i]
				at++
			}
		}
		s[at], s[hi-1] = s[hi-1], s[at]
		if k <= at {
			hi = at
		} else {
			lo = at + 1
		}
	}
}

// selectFew is selectLeast for a small k: most elements are only compared with the last of those kept.
func selectFew(s []int, k int, less func(a, b int) bool) {
	for i := 0; k > 0 && i < len(s); i++ {
		if i >= k {
			if !less(s[i], s[k-1]) {
				continue
			}
			s[i], s[k-1] = s[k-1], s[i]
		}
		for j := min(i, k-1); j > 0 && less(s[j], s[j-1]); j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
}

// spread shares k tasks out over the nodes that fit: evenly over the values of the first
// preference's label, within each over the next one's, within the last over nodes. What a branch has
// are the tasks on all its nodes, those too that are full or do not fit.
func (p *planner) spread(n *need, fit set, k int) []int32 {
	n.most = int32(min(k, 1<<30)) + 1
	p.placed = slices.Grow(p.placed[:0], len(p.nodes.nodes))[:len(p.nodes.nodes)]
	clear(p.placed)
	p.spreadOver(n, p.nodes.branches(n.spread), fit, k)
	return p.placed
}

func (p *planner) spreadOver(n *need, b *branch, fit set, k int) {
	if len(b.kids) == 0 {
		p.spreadNodes(n, b.rows, fit, k)
		return
	}
	vs := make([]vessel, len(b.kids))
	for j, kid := range b.kids {
		var room int64
		for _, i := range kid.rows {
			vs[j].have += p.have.tasks[i]
			vs[j].total += p.nodes.total[i]
			if room < int64(n.most) && fit.has(i) {
				room += int64(p.nodes.room(n, &p.have, i, n.most))
			}
		}
		vs[j].room = int32(min(room, 1<<30))
	}
	for j, got := range new(filler).fill(vs, k) {
		if got > 0 {
			p.spreadOver(n, b.kids[j], fit, int(got))
		}
	}
}

func (p *planner) spreadNodes(n *need, among []int, fit set, k int) {
	vs, rows := p.vessels[:0], p.among[:0]
	for _, i := range among {
		if fit.has(i) {
			vs = append(vs, vessel{p.have.penalty(i), p.have.tasks[i], p.nodes.total[i], p.nodes.room(n, &p.have, i, n.most)})
			rows = append(rows, i)
		}
	}
	p.vessels, p.among = vs, rows
	for j, got := range p.filler.fill(vs, k) {
		p.placed[rows[j]] = got
	}
}

// branch is the nodes of one value of a spread preference's label, split further by the next one's.
type branch struct {
	rows []int
	kids []*branch // in the order of their values; none below the last preference
}

// branches is the tree that some spread preferences make of all nodes. Services share a few of them.
func (c *columns) branches(labels []string) *branch {
	key := strings.Join(labels, "\x00")
	if b, ok := c.trees[key]; ok {
		return b
	}
	all := make([]int, len(c.nodes))
	for i := range all {
		all[i] = i
	}
	b := &branch{rows: all}
	c.split(b, labels)
	c.trees[key] = b
	return b
}

func (c *columns) split(b *branch, labels []string) {
	if len(labels) == 0 {
		return
	}
	kids := map[string]*branch{}
	for _, i := range b.rows {
		v := labelValue(c.nodes[i], labels[0])
		if kids[v] == nil {
			kids[v] = &branch{}
		}
		kids[v].rows = append(kids[v].rows, i)
	}
	for _, v := range slices.Sorted(maps.Keys(kids)) {
		c.split(kids[v], labels[1:])
		b.kids = append(b.kids, kids[v])
	}
}

// ValidSpread reports whether a spread descriptor names a label of nodes.
func ValidSpread(descriptor string) bool {
	_, _, ok := spreadLabel(descriptor)
	return ok
}

func spreadLabel(descriptor string) (name string, engine, ok bool) {
	for _, kind := range []string{"node.labels.", "engine.labels."} {
		if len(descriptor) > len(kind) && strings.EqualFold(descriptor[:len(kind)], kind) {
			return descriptor[len(kind):], kind == "engine.labels.", true
		}
	}
	return "", false, false
}

// labelValue reads the label that a spread descriptor names; nodes without it are a branch of
// their own.
func labelValue(n *model.Node, descriptor string) string {
	name, engine, ok := spreadLabel(descriptor)
	switch {
	case !ok:
		return ""
	case engine:
		return n.Description.Engine.Labels[name]
	}
	return n.Spec.Labels[name]
}
