package jsonlog

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// BenchmarkWrite splits, encodes and writes chunks of a FIFO's size.
func BenchmarkWrite(b *testing.B) {
	for _, length := range []int{20, 100, 1000} {
		b.Run(fmt.Sprint(length, " byte lines"), func(b *testing.B) {
			chunk := bytes.Repeat(append(bytes.Repeat([]byte("x"), length-1), '\n'), 64<<10/length)
			w := NewWriter(Path(b.TempDir(), "c"), Config{MaxSize: 64 << 20, MaxFiles: 2}, new(Buffers))
			var s Splitter
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			for b.Loop() {
				now := time.Now()
				s.Split(chunk, func(p []byte, end bool) { w.Append("stdout", p, end, now) })
				w.Flush(now)
			}
			w.Close(time.Now())
		})
	}
}

// BenchmarkRead reads a log of 10 MB of text, and its last lines.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	w := NewWriter(Path(dir, "c"), Config{}, new(Buffers))
	line := []byte(strings.Repeat("x", 99))
	for i := range 100_000 {
		w.Append("stdout", line, true, epoch.Add(time.Duration(i)*time.Millisecond))
	}
	w.Close(epoch)
	for _, tail := range []int{All, 10, 1000} {
		b.Run(fmt.Sprint("tail ", tail), func(b *testing.B) {
			var r Reader
			n := 0
			for b.Loop() {
				n = 0
				err := r.Read(context.Background(), dir, "c", ReadOptions{Tail: tail}, func(*Message) error { n++; return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(n) * 100)
		})
	}
}
