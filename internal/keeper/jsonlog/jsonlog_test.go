package jsonlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)

type piece struct {
	text string
	end  bool
}

func TestSplitDoesNotDependOnChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []byte
		for range rapid.IntRange(0, 6).Draw(t, "lines") {
			size := rapid.SampledFrom([]int{0, 1, 100, MaxPiece - 1, MaxPiece, MaxPiece + 1, 2 * MaxPiece, 3*MaxPiece + 5}).Draw(t, "size")
			unit := rapid.SampledFrom([]string{"a", "é", "🐝", "\xff"}).Draw(t, "unit")
			in = append(in, strings.Repeat(unit, size/len(unit))...)
			if rapid.Bool().Draw(t, "newline") {
				in = append(in, '\n')
			}
		}
		split := func(cut func(left int) int) []piece {
			var out []piece
			var s Splitter
			emit := func(b []byte, end bool) { out = append(out, piece{string(b), end}) }
			for b := in; len(b) > 0; {
				n := cut(len(b))
				s.Split(b[:n], emit)
				b = b[n:]
			}
			s.Finish(emit)
			return out
		}
		whole := split(func(left int) int { return left })
		parts := split(func(left int) int { return rapid.IntRange(1, left).Draw(t, "chunk") })
		if !slices.Equal(whole, parts) {
			t.Fatalf("%d pieces of the whole, %d of the parts", len(whole), len(parts))
		}
		var back strings.Builder
		for _, p := range whole {
			if len(p.text) > MaxPiece || !p.end && len(p.text) <= MaxPiece-4 {
				t.Fatalf("a piece of %d bytes, end %v", len(p.text), p.end)
			}
			back.WriteString(p.text)
			if p.end {
				back.WriteByte('\n')
			}
		}
		if got := back.String(); got != string(in) && got != string(in)+"\n" {
			t.Fatal("the pieces do not make up the input")
		}
	})
}

func TestEncodeAgainstEncodingJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.OneOf(rapid.SliceOf(rapid.Byte()), rapid.Map(rapid.String(), func(s string) []byte { return []byte(s) }),
			rapid.SampledFrom([][]byte{[]byte("\u2028\u2029<>&\"\\\x00\x1f\x7f\r\t\n"), []byte("\xed\xa0\x80 lone surrogate"), {0xff}})).Draw(t, "raw")
		end := rapid.Bool().Draw(t, "end")
		attrs := rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, "attrs")
		line := appendEntry(nil, "stdout", raw, end, encodeAttrs(attrs), encodeStamp(nil, epoch))
		var got struct {
			Log, Stream string
			Attrs       map[string]string
			Time        time.Time
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		want := strings.Map(func(r rune) rune { return r }, string(raw)) // bad bytes to U+FFFD, one each
		if end {
			want += "\n"
		}
		if got.Log != want || got.Stream != "stdout" || !got.Time.Equal(epoch) || len(got.Attrs) != len(attrs) {
			t.Fatalf("%q reads back as %+v, want %q", line, got, want)
		}
		var d decoder
		if !d.quick(bytes.TrimSuffix(line, []byte("\n"))) {
			t.Fatalf("%q is not read the quick way", line)
		}
		if d.msg.Partial == (end || strings.HasSuffix(want, "\n")) || string(d.text) != want {
			t.Fatalf("%q is read the quick way as %+v", line, d.msg)
		}
	})
}

// FuzzDecode: what is quickly decoded is what encoding/json sees.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"log":"\ud83d\udc1d","stream":"stderr","attrs":{"a":"b"},"time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"log":"","stream":"stdout","time":"x","time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"log":"","stream":"stdout","time":"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var d decoder
		m, ok := d.decode(line)
		var e struct {
			Log, Stream string
			Time        time.Time
		}
		if err := json.Unmarshal(line, &e); err != nil || !ok {
			return
		}
		text := string(m.Line)
		if !m.Partial {
			text += "\n"
		}
		if utf8.Valid(line) && (text != e.Log || m.Stream != e.Stream) {
			t.Fatalf("%q: %q %q, want %q %q", line, text, m.Stream, e.Log, e.Stream)
		}
	})
}

// writeLines writes n numbered lines, one a second.
func writeLines(w *Writer, from, n int) {
	for i := from; i < from+n; i++ {
		now := epoch.Add(time.Duration(i) * time.Second)
		stream := "stdout"
		if i%3 == 0 {
			stream = "stderr"
		}
		w.Append(stream, fmt.Appendf(nil, "line %d %s", i, strings.Repeat("x", i%50)), true, now)
		w.Flush(now)
	}
}

func collect(t interface{ Fatal(...any) }, dir string, o ReadOptions) []string {
	var r Reader
	out := []string{}
	err := r.Read(context.Background(), dir, "c", o, func(m *Message) error {
		out = append(out, fmt.Sprint(m.Time.Unix(), m.Stream, string(m.Line), m.Partial))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestReadAgainstNaiveReader(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "jsonlog")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := NewWriter(Path(dir, "c"), Config{
			MaxSize:  int64(rapid.SampledFrom([]int{0, 1, 200, 1000, 5000}).Draw(t, "size")),
			MaxFiles: rapid.IntRange(1, 5).Draw(t, "files"),
		}, new(Buffers))
		n := rapid.IntRange(0, 60).Draw(t, "n")
		if err := w.Open(); err != nil {
			t.Fatal(err)
		}
		writeLines(w, 0, n)
		w.Close(epoch)
		garbage := rapid.SampledFrom([]string{"", `{"log":"torn`, "\x00\x00\x00", "not json\n", "\n\n"}).Draw(t, "garbage")
		appendTo(t, Path(dir, "c"), garbage)
		o := ReadOptions{Tail: rapid.IntRange(-1, 70).Draw(t, "tail"),
			Stdout: rapid.Bool().Draw(t, "stdout"), Stderr: rapid.Bool().Draw(t, "stderr")}
		if rapid.Bool().Draw(t, "bounded") {
			o.Since = epoch.Add(time.Duration(rapid.IntRange(-1, 60).Draw(t, "since")) * time.Second)
			o.Until = o.Since.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "until")) * time.Second)
		}
		got, want := collect(t, dir, o), naive(t, dir, o)
		if !slices.Equal(got, want) {
			t.Fatalf("%+v:\n got %q\nwant %q", o, got, want)
		}
	})
}

func appendTo(t interface{ Fatal(...any) }, path, text string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// naive reads everything and then thinks.
func naive(t *rapid.T, dir string, o ReadOptions) []string {
	var all []byte
	for i := 20; i >= 0; i-- {
		name := Path(dir, "c")
		if i > 0 {
			name = Rotated(name, i)
		}
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	lines := strings.Split(string(all), "\n")
	lines = lines[:len(lines)-1] // empty or torn
	if o.Tail >= 0 {
		lines = lines[max(0, len(lines)-o.Tail):]
	}
	out := []string{}
	for _, line := range lines {
		var e struct {
			Log, Stream string
			Time        time.Time
		}
		if json.Unmarshal([]byte(line), &e) != nil || e.Time.Before(o.Since) {
			continue
		}
		if !o.Until.IsZero() && e.Time.After(o.Until) {
			break
		}
		if o.Stdout == o.Stderr || o.Stdout == (e.Stream == "stdout") {
			text, whole := strings.CutSuffix(e.Log, "\n")
			out = append(out, fmt.Sprint(e.Time.Unix(), e.Stream, text, !whole))
		}
	}
	return out
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(Path(dir, "c"), Config{MaxSize: 1000, MaxFiles: 3}, new(Buffers))
	writeLines(w, 0, 200)
	w.Close(epoch)
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if st, _ := e.Info(); st.Size() > 1200 {
			t.Errorf("%s has %d bytes", e.Name(), st.Size())
		}
	}
	if want := []string{"c-json.log", "c-json.log.1", "c-json.log.2"}; !slices.Equal(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
	if err := Remove(Path(dir, "c")); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestTornEndIsMended(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(Path(dir, "c"), Config{}, new(Buffers))
	writeLines(w, 0, 3)
	w.Abandon()
	for _, torn := range []string{`{"log":"to`, strings.Repeat("x", 10_000)} {
		appendTo(t, Path(dir, "c"), torn)
		w = NewWriter(Path(dir, "c"), Config{}, new(Buffers))
		if err := w.Open(); err != nil {
			t.Fatal(err)
		}
		w.Abandon()
	}
	writeLines(w, 3, 3)
	w.Close(epoch)
	b, _ := os.ReadFile(Path(dir, "c"))
	for i, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		if !json.Valid([]byte(line)) || !strings.Contains(line, fmt.Sprintf("line %d ", i)) {
			t.Errorf("line %d is %q", i, line)
		}
	}
}

func TestLongLinesAreSkipped(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(Path(dir, "c"), Config{}, new(Buffers))
	writeLines(w, 0, 1)
	w.Close(epoch)
	appendTo(t, Path(dir, "c"), strings.Repeat("y", 3*MaxEntry+17)+"\n")
	writeLines(w, 1, 1)
	w.Close(epoch)
	if got := collect(t, dir, ReadOptions{Tail: All}); len(got) != 2 {
		t.Errorf("%d entries, want 2", len(got))
	}
}

func TestNoLog(t *testing.T) {
	var r Reader
	err := r.Read(context.Background(), t.TempDir(), "c", ReadOptions{Tail: All}, nil)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading no log: %v", err)
	}
	if err := Remove(filepath.Join(t.TempDir(), "gone", "x")); err != nil {
		t.Errorf("removing no log: %v", err)
	}
}
