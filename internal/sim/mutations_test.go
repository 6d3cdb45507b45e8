package sim

import (
	"strings"
	"testing"
)

// TestMutations shows that the judge sees: each law broken on purpose is caught by a seed.
func TestMutations(t *testing.T) {
	const enough = 60
	for _, m := range Mutations() {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= enough; seed++ {
				if f := Run(Options{Seed: seed, Mutation: m}).Failure; f != nil {
					if sane := Run(Options{Seed: seed}).Failure; sane != nil {
						t.Errorf("seed %d fails without the mutation too: %s", seed, sane.Law)
					}
					t.Logf("caught by seed %d: %s", seed, f.Law)
					if !strings.HasPrefix(f.Law, "law: ") {
						t.Errorf("not a broken law: %s", f.Law)
					}
					return
				}
			}
			t.Errorf("not caught by %d seeds", enough)
		})
	}
}
