package schedule

import (
	"cmp"
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

// fill pours k tasks and returns how many each vessel got. The result is that of k single
// choices of the vessel that is least by (penalty, have, total, order), found without
// making them: the level to which all rise by search, the rest by selection.
func fill(vs []vessel, k int) []int32 {
	got := make([]int32, len(vs))
	order := make([]int, len(vs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(vs[a].penalty, vs[b].penalty) })
	for len(order) > 0 && k > 0 {
		n := 1
		for n < len(order) && vs[order[n]].penalty == vs[order[0]].penalty {
			n++
		}
		k -= fillLevel(vs, order[:n], got, k)
		order = order[n:]
	}
	return got
}

// fillLevel fills vessels of one penalty and returns how many tasks they took.
func fillLevel(vs []vessel, idx []int, got []int32, k int) int {
	poured := func(level int64) (sum int64) {
		for _, i := range idx {
			sum += min(max(level-int64(vs[i].have), 0), int64(vs[i].room))
		}
		return sum
	}
	lo, hi := int64(vs[idx[0]].have), int64(0)
	for _, i := range idx {
		lo = min(lo, int64(vs[i].have))
		hi = max(hi, int64(vs[i].have))
	}
	// The highest level that takes no more than k lies in [lo, hi): nothing fits below lo, and
	// above the highest vessel plus k there is more than k, unless all are full.
	hi += int64(k) + 1
	if full := poured(hi); full <= int64(k) {
		lo = hi
	}
	for lo+1 < hi {
		mid := (lo + hi) / 2
		if poured(mid) <= int64(k) {
			lo = mid
		} else {
			hi = mid
		}
	}
	taken := 0
	var edge []int
	for _, i := range idx {
		got[i] = int32(min(max(lo-int64(vs[i].have), 0), int64(vs[i].room)))
		taken += int(got[i])
		if int64(vs[i].have)+int64(got[i]) == lo && got[i] < vs[i].room {
			edge = append(edge, i)
		}
	}
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

// selectLeast moves the k least elements to the front, in any order (quickselect; the middle
// element as pivot, so that sorted input, the usual one, costs no more).
func selectLeast(s []int, k int, less func(a, b int) bool) {
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

// spread shares k tasks out over the nodes that fit: evenly over the values of the first
// preference's label, within each over the next one's, within the last over nodes.
func (p *planner) spread(n *need, fit set, k int) []int32 {
	var rows []int
	fit.each(func(i int) { rows = append(rows, i) })
	placed := make([]int32, len(p.nodes.nodes))
	p.spreadOver(n, rows, n.spread, k, placed)
	return placed
}

func (p *planner) spreadOver(n *need, rows []int, labels []string, k int, placed []int32) {
	if len(labels) == 0 {
		vs := make([]vessel, len(rows))
		for j, i := range rows {
			vs[j] = vessel{p.have.penalty(i), p.have.tasks[i], p.nodes.total[i], p.nodes.room(n, &p.have, i)}
		}
		for j, got := range fill(vs, k) {
			placed[rows[j]] = got
		}
		return
	}
	branches := map[string][]int{}
	for _, i := range rows {
		v := labelValue(p.nodes.nodes[i], labels[0])
		branches[v] = append(branches[v], i)
	}
	names := make([]string, 0, len(branches))
	for v := range branches {
		names = append(names, v)
	}
	slices.Sort(names)
	vs := make([]vessel, len(names))
	for j, name := range names {
		var room int64
		for _, i := range branches[name] {
			vs[j].have += p.have.tasks[i]
			vs[j].total += p.nodes.total[i]
			room += int64(p.nodes.room(n, &p.have, i))
		}
		vs[j].room = int32(min(room, 1<<30))
	}
	for j, got := range fill(vs, k) {
		if got > 0 {
			p.spreadOver(n, branches[names[j]], labels[1:], int(got), placed)
		}
	}
}

// labelValue reads the label that a spread descriptor names; nodes without it are a branch of
// their own.
func labelValue(n *model.Node, descriptor string) string {
	const node, engine = "node.labels.", "engine.labels."
	switch {
	case len(descriptor) > len(node) && strings.EqualFold(descriptor[:len(node)], node):
		return n.Spec.Labels[descriptor[len(node):]]
	case len(descriptor) > len(engine) && strings.EqualFold(descriptor[:len(engine)], engine):
		return n.Description.Engine.Labels[descriptor[len(engine):]]
	}
	return ""
}
