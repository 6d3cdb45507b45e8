package keeper

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
)

// Words that make the test program play another part.
const (
	playKeeper = "play-keeper"
	playWriter = "play-writer"
	playDaemon = "play-daemon"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case playKeeper:
			os.Exit(Main(os.Args[2:]))
		case playWriter:
			os.Exit(writerMain(os.Args[2:]))
		case playDaemon:
			os.Exit(daemonMain(os.Args[2:]))
		}
	}
	goleak.VerifyTestMain(m)
}

// newClient makes a client with a keeper directory of its own; the keeper
// that it starts ends with the test.
func newClient(t testing.TB, dir, build string) *Client {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "keeper")
	}
	c := NewClient(Config{Dir: dir, Binary: self, Args: []string{playKeeper}, Build: build,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	t.Cleanup(func() {
		if err := c.Shutdown(context.Background()); err != nil {
			t.Errorf("shutting the keeper down: %v", err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "keeper.log"))
			t.Logf("keeper.log:\n%s", b)
		}
	})
	return c
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func pid(t testing.TB, c *Client) int {
	t.Helper()
	h, err := c.hello(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return h.PID
}

// shim opens a FIFO as a container's shim does: for writing, and for reading
// so that it never breaks.
func shim(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mustOpen(t testing.TB, c *Client, spec LogSpec) Files {
	t.Helper()
	files, err := c.Open(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// readLog returns the lines of a log, as stream:text.
func readLog(t testing.TB, dir, id string) []string {
	t.Helper()
	var r jsonlog.Reader
	var out []string
	err := r.Read(context.Background(), dir, id, jsonlog.ReadOptions{Tail: jsonlog.All}, func(m *jsonlog.Message) error {
		out = append(out, m.Stream+":"+string(m.Line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestLogLife(t *testing.T) {
	c, ctx := newClient(t, "", "1"), context.Background()
	dir := filepath.Join(t.TempDir(), "containers", "abc")
	files := mustOpen(t, c, LogSpec{ContainerID: "abc", Dir: dir, Labels: map[string]string{"k": "v"}, Options: map[string]string{"labels": "k"}})
	if again := mustOpen(t, c, LogSpec{ContainerID: "abc", Dir: dir}); again != files {
		t.Errorf("opening again gives %v, not %v", again, files)
	}
	out, errs := shim(t, files.Stdout), shim(t, files.Stderr)
	began := time.Now()
	fmt.Fprint(out, "hello\nwor")
	eventually(t, "the first line", func() bool {
		b, _ := os.ReadFile(jsonlog.Path(dir, "abc"))
		return bytes.Contains(b, []byte(`{"log":"hello\n","stream":"stdout","attrs":{"k":"v"},"time":"`))
	})
	if d := time.Since(began); d > time.Second {
		t.Errorf("the line took %v to be seen", d)
	}
	fmt.Fprint(errs, "oops\n")
	eventually(t, "the second line", func() bool { return len(readLog(t, dir, "abc")) == 2 })
	list, err := c.List(ctx)
	if err != nil || len(list.Logs) != 1 || list.Logs[0] != "abc" {
		t.Errorf("list: %v, %v", list, err)
	}
	fmt.Fprint(out, "ld\nend")
	if err := c.Close(ctx, "abc"); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(readLog(t, dir, "abc"), " ")
	if want := "stdout:hello stderr:oops stdout:world stdout:end"; got != want {
		t.Errorf("log is %q, want %q", got, want)
	}
	if _, err := os.Stat(files.Stdout); !os.IsNotExist(err) {
		t.Errorf("the FIFO is still there: %v", err)
	}
	for range 2 {
		if err := c.Remove(ctx, dir, "abc"); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := c.Close(ctx, "abc"); err != nil {
		t.Errorf("closing what is not open: %v", err)
	}
}
