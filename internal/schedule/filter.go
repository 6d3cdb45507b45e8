package schedule

import (
	"fmt"
	"slices"
	"strings"
)

// filterKind numbers the filters in the order in which they are asked.
type filterKind int

const (
	filterReady filterKind = iota
	filterResources
	filterConstraints
	filterPlatform
	filterPorts
	filterReplicas
	filterAddrs
	numFilters
)

// refusals counts the nodes that each filter was the first to refuse.
type refusals [numFilters]int

// text is Docker's explanation of a filter that refused n nodes; Docker's nodes own no addresses.
func (k filterKind) text(n int) string {
	nodes := fmt.Sprintf("%d nodes", n)
	if n == 1 {
		nodes = "1 node"
	}
	switch k {
	case filterReady:
		return nodes + " not available for new tasks"
	case filterResources:
		return "insufficient resources on " + nodes
	case filterConstraints:
		return "scheduling constraints not satisfied on " + nodes
	case filterPlatform:
		return "unsupported platform on " + nodes
	case filterPorts:
		return "host-mode port already in use on " + nodes
	case filterAddrs:
		return "no free gateway address on " + nodes
	}
	return "max replicas per node limit exceed"
}

// explain lists the refusals, the most frequent first.
func (r refusals) explain() string {
	var kinds []filterKind
	for k, n := range r {
		if n > 0 {
			kinds = append(kinds, filterKind(k))
		}
	}
	slices.SortStableFunc(kinds, func(a, b filterKind) int { return r[b] - r[a] })
	parts := make([]string, len(kinds))
	for i, k := range kinds {
		parts[i] = k.text(r[k])
	}
	return strings.Join(parts, "; ")
}

func noSuitableNode(r refusals) string {
	if why := r.explain(); why != "" {
		return "no suitable node (" + why + ")"
	}
	return "no suitable node"
}

// filter is the set of nodes that can take a task of the need, and how many each filter
// refused.
func (c *columns) filter(n *need, have *counts) (set, refusals) {
	fit := slices.Clone(c.all)
	var r refusals
	for k := filterReady; k < numFilters; k++ {
		before := fit.len()
		if before == 0 {
			break
		}
		c.apply(k, n, have, fit)
		r[k] = before - fit.len()
	}
	return fit, r
}

// apply takes the nodes that one filter refuses out of fit.
func (c *columns) apply(k filterKind, n *need, have *counts, fit set) {
	switch k {
	case filterReady:
		fit.intersect(c.ready)
	case filterResources:
		if n.cpu > 0 || n.mem > 0 {
			c.keep(fit, func(i int) bool {
				return (n.cpu <= 0 || c.cpu[i] >= n.cpu) && (n.mem <= 0 || c.mem[i] >= n.mem)
			})
		}
		for _, g := range n.generic {
			col := c.genericOf(g.Kind)
			c.keep(fit, func(i int) bool { return col.free[i] >= g.N })
		}
	case filterConstraints:
		for _, k := range n.constraints {
			fit.intersect(c.match(k))
		}
	case filterPlatform:
		if len(n.platforms) > 0 {
			fit.intersect(c.platform(n.platforms))
		}
	case filterPorts:
		if len(n.ports) > 0 {
			c.keep(fit, func(i int) bool { return c.portsFree(n, i) })
		}
	case filterReplicas:
		if n.maxReplicas > 0 {
			c.keep(fit, func(i int) bool { return have.tasks[i] < n.maxReplicas })
		}
	case filterAddrs:
		if n.addr && c.addrs.dry {
			c.keep(fit, func(i int) bool { return c.addrsLeft(i) > 0 })
		}
	}
}

func (c *columns) keep(fit set, ok func(i int) bool) {
	fit.each(func(i int) {
		if !ok(i) {
			fit[i>>6] &^= 1 << (i & 63)
		}
	})
}

// refusal is why node i cannot take a task of the need, "" when it can.
func (c *columns) refusal(n *need, have *counts, i int) string {
	one := newSet(len(c.nodes))
	one.add(i)
	for k := filterReady; k < numFilters; k++ {
		if c.apply(k, n, have, one); !one.has(i) {
			return k.text(1)
		}
	}
	return ""
}
