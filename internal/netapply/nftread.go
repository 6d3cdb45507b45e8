package netapply

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// tableState is what the kernel holds of a table.
type tableState struct {
	exists bool
	chains map[string]chainState
	sets   map[string]*nftables.Set
	ports  map[string]map[netplan.PortKey]string // set → key → chain
}

type chainState struct {
	base string // type, hook and priority
	tags []string
}

func (f *filter) read(t *netplan.Table) (tableState, error) {
	st := tableState{
		chains: map[string]chainState{}, sets: map[string]*nftables.Set{},
		ports: map[string]map[netplan.PortKey]string{},
	}
	tables, err := f.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return st, fmt.Errorf("list nftables tables: %w", err)
	}
	st.exists = slices.ContainsFunc(tables, func(h *nftables.Table) bool { return h.Name == t.Name })
	if !st.exists {
		return st, nil
	}
	table := inetTable(t.Name)
	chains, err := f.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return st, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		cs := chainState{base: baseOf(c)}
		if c.Name != netplan.AdminChain {
			rules, err := f.conn.GetRules(table, c)
			if err != nil {
				return st, fmt.Errorf("list rules of chain %s: %w", c.Name, err)
			}
			for _, r := range rules {
				cs.tags = append(cs.tags, tagFrom(r.UserData))
			}
		}
		st.chains[c.Name] = cs
	}
	return st, f.readSets(t, &st)
}

func (f *filter) readSets(t *netplan.Table, st *tableState) error {
	if !t.Mapped {
		return nil
	}
	sets, err := f.conn.GetSets(inetTable(t.Name))
	if err != nil {
		return fmt.Errorf("list nftables sets: %w", err)
	}
	for _, s := range sets {
		if s.Name != netplan.PortSet && s.Name != netplan.PortMap {
			continue
		}
		els, err := f.conn.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("list elements of set %s: %w", s.Name, err)
		}
		keys := map[netplan.PortKey]string{}
		for _, el := range els {
			if k, ok := keyFrom(el.Key); ok {
				keys[k] = verdictChain(el.Val)
			}
		}
		st.sets[s.Name], st.ports[s.Name] = s, keys
	}
	return nil
}

// verdictChain is the chain that an element of a verdict map, as it was read,
// jumps to.
func verdictChain(val []byte) string {
	chain := ""
	attrs(val, func(t uint16, v []byte) {
		if t == unix.NFTA_VERDICT_CHAIN {
			chain = strings.TrimRight(string(v), "\x00")
		}
	})
	return chain
}

func baseOf(c *nftables.Chain) string {
	if c.Hooknum == nil {
		return ""
	}
	prio := int32(0)
	if c.Priority != nil {
		prio = int32(*c.Priority)
	}
	policy := nftables.ChainPolicyAccept
	if c.Policy != nil {
		policy = *c.Policy
	}
	return fmt.Sprintf("%s %d %d %d", c.Type, *c.Hooknum, prio, policy)
}
