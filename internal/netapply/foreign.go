package netapply

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Another program's chain that drops what is forwarded cannot be overridden
// from our own table: an accept ends only its own chain. So our accepts go
// into that chain, each with a comment that tells whose it is.

var forwardFamilies = []nftables.TableFamily{
	nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet,
}

func acceptTags(link string) []string {
	return []string{link + " out", link + " in"} // inserted in this order, so "in" comes first
}

// acceptForwarding inserts accepts for packets from and to link into every
// foreign chain that needs them, and returns how many it inserted.
func (f *filter) acceptForwarding(link string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return again(func() (int, error) { return f.acceptOnce(link) })
}

func (f *filter) acceptOnce(link string) (int, error) {
	chains, err := f.forwardChains()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, c := range chains {
		rules := c.rules
		if !drops(c.Chain, rules) {
			continue
		}
		for i, tag := range acceptTags(link) {
			at := slices.IndexFunc(rules, func(r *nftables.Rule) bool { return tagFrom(r.UserData) == tag })
			if at >= 0 && !dropsBefore(rules[:at]) {
				continue
			}
			if at >= 0 {
				if err := f.conn.DelRule(rules[at]); err != nil {
					return 0, fmt.Errorf("move accept in %s %s: %w", c.Table.Name, c.Name, err)
				}
			}
			key := expr.MetaKeyOIFNAME
			if i == 1 {
				key = expr.MetaKeyIIFNAME
			}
			f.conn.InsertRule(&nftables.Rule{
				Table: c.Table, Chain: c.Chain, UserData: tagData(tag),
				Exprs: []expr.Any{
					&expr.Meta{Key: key, Register: reg1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte(link + "\x00")},
					&expr.Counter{},
					&expr.Verdict{Kind: expr.VerdictAccept},
				},
			})
			n++
		}
	}
	if n == 0 {
		return 0, nil
	}
	if err := f.conn.Flush(); err != nil {
		return 0, fmt.Errorf("insert accepts for %s into the host's forward chains: %w", link, err)
	}
	return n, nil
}

// A foreignChain is another program's, with its rules.
type foreignChain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

// forwardChains lists the base chains on the forward hook that are not
// skep's, and Docker's chain for administrators, which comes before its own
// rules whenever it writes them anew.
func (f *filter) forwardChains() ([]foreignChain, error) {
	var out []foreignChain
	for _, fam := range forwardFamilies {
		chains, err := f.conn.ListChainsOfTableFamily(fam)
		if err != nil {
			return nil, fmt.Errorf("list nftables chains: %w", err)
		}
		for _, c := range chains {
			c.Table.Family = fam
			forward := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter
			if isOurs(c.Table.Name) || !forward && c.Name != dockerUser {
				continue
			}
			rules, err := f.conn.GetRules(c.Table, c)
			if err != nil {
				return nil, fmt.Errorf("list rules of %s %s: %w", c.Table.Name, c.Name, err)
			}
			out = append(out, foreignChain{c, rules})
		}
	}
	return out, nil
}

const dockerUser = "DOCKER-USER"

// isOurs tells whether a table is some instance's.
func isOurs(table string) bool { return len(table) == 11 && table[:5] == "skep-" }

// drops tells whether a chain keeps packets that no rule of it names.
func drops(c *nftables.Chain, rules []*nftables.Rule) bool {
	if c.Name == dockerUser || c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return true
	}
	return dropsBefore(rules)
}

// dropsBefore tells whether one of the rules ends the way of every packet.
func dropsBefore(rules []*nftables.Rule) bool {
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		for _, e := range r.Exprs {
			switch v := e.(type) {
			case *expr.Counter:
			case *expr.Reject:
				return true
			case *expr.Verdict:
				return v.Kind == expr.VerdictDrop
			default:
				return false
			}
		}
		return false
	})
}

// retractForwarding removes the accepts again.
func (f *filter) retractForwarding(link string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	chains, err := again(f.forwardChains)
	if err != nil {
		return err
	}
	n := 0
	for _, c := range chains {
		for _, r := range c.rules {
			if slices.Contains(acceptTags(link), tagFrom(r.UserData)) {
				if err := f.conn.DelRule(r); err != nil {
					return fmt.Errorf("remove accept from %s %s: %w", c.Table.Name, c.Name, err)
				}
				n++
			}
		}
	}
	if n == 0 {
		return nil
	}
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("remove accepts for %s from the host's forward chains: %w", link, err)
	}
	return nil
}
