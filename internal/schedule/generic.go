package schedule

import (
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// genericColumn is what the nodes have left of one kind of generic resource.
type genericColumn struct {
	free  []int64
	names map[int][]string // by row, of nodes that name theirs: those not assigned yet
}

// genericOf makes the column when the first task asks for the kind; few ever do.
func (c *columns) genericOf(kind string) *genericColumn {
	if col, ok := c.generic[kind]; ok {
		return col
	}
	col := &genericColumn{free: make([]int64, len(c.nodes)), names: map[int][]string{}}
	for i, n := range c.nodes {
		if len(n.Description.Resources.GenericResources) == 0 {
			continue
		}
		names, free := model.FreeGeneric(n.Description.Resources.GenericResources, c.snap.Load(n.ID).Generic, kind)
		col.free[i] = free
		if len(names) > 0 {
			col.names[i] = names
		}
	}
	c.generic[kind] = col
	return col
}

// assign picks what a task of the need gets on node i: names where the node has them. How many are
// left was counted by take.
func (c *columns) assign(n *need, i int) []swarm.GenericResource {
	if len(n.generic) == 0 {
		return nil
	}
	var out []swarm.GenericResource
	for _, g := range n.generic {
		col := c.genericOf(g.Kind)
		names := col.names[i]
		if len(names) == 0 {
			out = append(out, g.API())
			continue
		}
		for _, name := range names[:g.N] {
			out = append(out, model.Generic{Kind: g.Kind, Name: name, N: 1}.API())
		}
		col.names[i] = names[g.N:]
	}
	return out
}
