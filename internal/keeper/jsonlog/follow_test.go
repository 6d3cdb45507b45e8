package jsonlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestFollow has several readers follow one log from before its first line
// over many rotations, none of which may cost a line.
func TestFollow(t *testing.T) {
	for _, files := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(files, " files"), func(t *testing.T) {
			dir := t.TempDir()
			var r Reader
			done := make(chan struct{})
			const followers, lines = 3, 4000
			counts := make([]int, followers)
			errs := make([]error, followers)
			seen := make(chan int, followers*lines)
			var wg sync.WaitGroup
			for i := range followers {
				wg.Go(func() {
					errs[i] = r.Read(context.Background(), dir, "c", ReadOptions{Tail: All, Follow: true, Done: done}, func(m *Message) error {
						if want := fmt.Sprintf("line %d ", counts[i]); !strings.HasPrefix(string(m.Line), want) {
							return fmt.Errorf("got %q, want %q", m.Line, want)
						}
						counts[i]++
						seen <- i
						return nil
					})
				})
			}
			w := NewWriter(Path(dir, "c"), Config{MaxSize: 40_000, MaxFiles: files}, new(Buffers))
			if err := w.Open(); err != nil {
				t.Fatal(err)
			}
			deadline := time.After(30 * time.Second)
			// A reader that is slower than the rotation loses lines by
			// design, so each hundred waits to be read.
			for at := 0; at < lines; at += 100 {
				writeLines(w, at, 100)
				for range 100 * followers {
					select {
					case <-seen:
					case <-deadline:
						t.Fatalf("stuck at %d, %v %v", at, counts, errs)
					}
				}
			}
			writeLines(w, lines, 1) // still to come when Done is closed
			w.Close(epoch)
			close(done)
			wg.Wait()
			for i := range followers {
				if errs[i] != nil || counts[i] != lines+1 {
					t.Errorf("follower %d: %d lines, %v", i, counts[i], errs[i])
				}
			}
		})
	}
}

func TestFollowEnds(t *testing.T) {
	ways := map[string]func(dir string, cancel func(), o *ReadOptions) (want error){
		"context": func(_ string, cancel func(), _ *ReadOptions) error {
			time.AfterFunc(10*time.Millisecond, cancel)
			return context.Canceled
		},
		"until": func(_ string, _ func(), o *ReadOptions) error {
			o.Until = time.Now().Add(10 * time.Millisecond)
			return nil
		},
		"removed": func(dir string, _ func(), _ *ReadOptions) error {
			time.AfterFunc(10*time.Millisecond, func() { os.RemoveAll(dir) })
			return nil
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := NewWriter(Path(dir, "c"), Config{}, new(Buffers))
			writeLines(w, 0, 2)
			w.Close(epoch)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			o := ReadOptions{Tail: All, Follow: true}
			want := way(dir, cancel, &o)
			n := 0
			var r Reader
			err := r.Read(ctx, dir, "c", o, func(*Message) error { n++; return nil })
			if n != 2 || !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("%d entries, %v; want 2, %v", n, err, want)
			}
		})
	}
}
