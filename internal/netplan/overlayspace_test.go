package netplan

import (
	"net/netip"
	"testing"
)

// TestTurns: each task goes through all backends, and tasks whose addresses follow each other begin at different ones.
func TestTurns(t *testing.T) {
	for _, n := range []int{2, 3, 8, 20} {
		v := VIP{Addr: netip.MustParseAddr("10.0.1.2")}
		for i := range n {
			v.Backends = append(v.Backends, netip.AddrFrom4([4]byte{10, 0, 1, byte(10 + i)}))
		}
		begun := map[netip.AddrPort]int{}
		for i := range Turns {
			m := VIPChain(v, Task{Addr4: netip.AddrFrom4([4]byte{10, 255, 1, byte(77 + i)})}.Turn()).Rules[0]
			if m.Verb != Balance || len(uniq(m.To)) != n {
				t.Fatalf("%d backends: %s", n, m)
			}
			begun[m.To[0]]++
		}
		if len(begun) != min(n, Turns) {
			t.Errorf("%d backends: the first ones are %v", n, begun)
		}
		for first, tasks := range begun {
			if tasks > (Turns+n-1)/n {
				t.Errorf("%d of %d tasks begin at %s, one of %d", tasks, Turns, first, n)
			}
		}
	}
}
