package sim

import "testing"

// TestKnownGaps is strict about what the product is known not to do right, one seed for each. A gap
// that is closed makes its seed pass: then the gap leaves known.go.
func TestKnownGaps(t *testing.T) {
	t.Skip("the gaps are known; see docs/simulator.md")
	seeds := map[gap]uint64{olderStays: 451, surgeThird: 891}
	for g, seed := range seeds {
		if f := Run(Options{Seed: seed, strict: map[gap]bool{g: true}}).Failure; f != nil {
			t.Errorf("%s: %v", g, f)
		}
	}
}
