package agent

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

func reopen(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	return maps.Clone(s.table)
}

func sameTable(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// Whatever is written is there again after a kill at any moment; a torn tail costs the torn record only.
func TestStoreSurvivesAnyCut(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []map[string][]byte{maps.Clone(s.table)}
	sizes := []int64{s.size}
	for i := range 20 {
		ops := []op{{fmt.Sprint("k", i%5), []byte{byte(i)}}, {Key: fmt.Sprint("k", (i+1)%5)}}
		if err := s.write(ops...); err != nil {
			t.Fatal(err)
		}
		want, sizes = append(want, maps.Clone(s.table)), append(sizes, s.size)
	}
	s.close()
	whole, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	for cut := sizes[0]; cut <= int64(len(whole)); cut++ {
		at := 0
		for at+1 < len(sizes) && sizes[at+1] <= cut {
			at++
		}
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, journalName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if got := reopen(t, d); !sameTable(got, want[at]) {
			t.Fatalf("cut at %d: %v, want %v", cut, got, want[at])
		}
	}
}

func TestStoreProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		want := map[string][]byte{}
		for range rapid.IntRange(1, 5).Draw(rt, "lives") {
			s, err := openStore(dir)
			if err != nil {
				rt.Fatal(err)
			}
			if !sameTable(s.table, want) {
				rt.Fatalf("%v, want %v", s.table, want)
			}
			for range rapid.IntRange(0, 12).Draw(rt, "writes") {
				k := fmt.Sprint(rapid.IntRange(0, 9).Draw(rt, "key"))
				v := bytes.Repeat([]byte{'x'}, rapid.SampledFrom([]int{0, 1, 100, 300_000}).Draw(rt, "size"))
				if rapid.Bool().Draw(rt, "delete") {
					v = nil
					delete(want, k)
				} else {
					want[k] = v
				}
				if err := s.write(op{k, v}); err != nil {
					rt.Fatal(err)
				}
			}
			if s.size > 2*s.live+2*compactSlack {
				rt.Fatalf("a journal of %d bytes for %d alive", s.size, s.live)
			}
			s.close()
		}
	})
}

func FuzzStore(f *testing.F) {
	rec, err := record([]op{{"a", []byte("b")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec)
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0, 5})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, journalName), append([]byte(journalMagic), data...), 0o600); err != nil {
			t.Fatal(err)
		}
		first := reopen(t, dir)
		if again := reopen(t, dir); !sameTable(first, again) {
			t.Fatal("reading it changed it")
		}
	})
}
