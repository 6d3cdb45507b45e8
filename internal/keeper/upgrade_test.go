package keeper

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writerMain writes numbered lines of 100 bytes to a FIFO: args are its path
// and the number of lines.
func writerMain(args []string) int {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	n, _ := strconv.Atoi(args[1])
	w := bufio.NewWriterSize(f, 32<<10)
	for i := range n {
		fmt.Fprintf(w, "%09d %s\n", i, filler)
	}
	if w.Flush() != nil {
		return 1
	}
	fmt.Println("written")
	io.Copy(io.Discard, os.Stdin) // a shim keeps the FIFO open
	return 0
}

var filler = strings.Repeat("x", 89)

// startWriter runs writerMain; written waits until all is in the FIFO.
func startWriter(t testing.TB, path string, lines int) (written func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, playWriter, path, strconv.Itoa(lines))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return func() {
		word, err := bufio.NewReader(stdout).ReadString('\n')
		if err != nil || word != "written\n" {
			t.Fatalf("the writer says %q, %v", word, err)
		}
	}
}

func checkNumbered(t testing.TB, got []string, lines int) {
	t.Helper()
	if len(got) != lines {
		t.Errorf("%d lines in the log, want %d", len(got), lines)
	}
	for i, line := range got {
		if want := fmt.Sprintf("stdout:%09d %s", i, filler); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
}

func TestUpgradeLosesNothing(t *testing.T) {
	const lines = 1_500_000 // 150 MB
	c, ctx := newClient(t, "", "build-0"), context.Background()
	dir := filepath.Join(t.TempDir(), "c")
	files := mustOpen(t, c, LogSpec{ContainerID: "busy", Dir: dir})
	quiet := mustOpen(t, c, LogSpec{ContainerID: "quiet", Dir: dir + "2", TTY: true})
	fmt.Fprint(shim(t, quiet.Stdout), "half a ")
	began := time.Now()
	written := startWriter(t, files.Stdout, lines)
	pids := map[int]bool{pid(t, c): true}
	for i := 1; i <= 8; i++ {
		next := newClientIn(t, c, fmt.Sprintf("build-%d", i))
		if err := next.Ensure(ctx); err != nil {
			t.Fatal(err)
		}
		pids[pid(t, c)] = true
		if i == 4 {
			fmt.Fprint(shim(t, quiet.Stdout), "line")
		}
	}
	if len(pids) != 9 {
		t.Errorf("%d processes, want 9", len(pids))
	}
	written()
	if err := c.Close(ctx, "busy"); err != nil { // c finds the latest keeper
		t.Fatal(err)
	}
	t.Logf("150 MB over 8 upgrades in %v", time.Since(began))
	checkNumbered(t, readLog(t, dir, "busy"), lines)
	if err := c.Close(ctx, "quiet"); err != nil {
		t.Fatal(err)
	}
	if got := readLog(t, dir+"2", "quiet"); len(got) != 1 || got[0] != "stdout:half a line" {
		t.Errorf("the line that arrived in halves is %q", got)
	}
}

// newClientIn makes another client for a client's directory.
func newClientIn(t testing.TB, c *Client, build string) *Client {
	cfg := c.cfg
	cfg.Build = build
	return NewClient(cfg)
}

func TestKeeperKilled(t *testing.T) {
	const lines = 300_000
	c := newClient(t, "", "1")
	ctx, cancel := context.WithCancel(context.Background())
	dir := filepath.Join(t.TempDir(), "c")
	files := mustOpen(t, c, LogSpec{ContainerID: "busy", Dir: dir})
	watched := make(chan error, 1)
	go func() { watched <- c.Run(ctx) }()
	// The writer stops while the keeper is killed: what a keeper has read
	// and not yet written dies with it.
	for i := range 3 {
		written := startWriter(t, files.Stdout, 100)
		written()
		eventually(t, "lines", func() bool { return len(readLog(t, dir, "busy")) == 100*(i+1) })
		old := pid(t, c)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the next keeper", func() bool {
			h, err := c.hello(ctx)
			return err == nil && h.PID != old
		})
	}
	written := startWriter(t, files.Stdout, lines)
	written()
	if err := c.Close(ctx, "busy"); err != nil {
		t.Fatal(err)
	}
	got := readLog(t, dir, "busy")
	checkNumbered(t, got[len(got)-lines:], lines)
	if len(got) != lines+300 {
		t.Errorf("%d lines, want %d", len(got), lines+300)
	}
	cancel()
	if err := <-watched; err != context.Canceled {
		t.Errorf("Run returned %v", err)
	}
}

// TestUpgradeManyLogs hands over a full node's logs.
func TestUpgradeManyLogs(t *testing.T) {
	const logs = 1000
	c, ctx := newClient(t, "", "1"), context.Background()
	dir := t.TempDir()
	last := Files{}
	for i := range logs {
		last = mustOpen(t, c, LogSpec{ContainerID: fmt.Sprint("c", i), Dir: filepath.Join(dir, fmt.Sprint("c", i))})
	}
	began := time.Now()
	if err := newClientIn(t, c, "2").Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d logs handed over in %v", logs, time.Since(began))
	if list, err := c.List(ctx); err != nil || len(list.Logs) != logs {
		t.Fatalf("%d logs, %v", len(list.Logs), err)
	}
	fmt.Fprintln(shim(t, last.Stdout), "hello")
	id := fmt.Sprint("c", logs-1)
	if err := c.Close(ctx, id); err != nil {
		t.Fatal(err)
	}
	if got := readLog(t, filepath.Join(dir, id), id); len(got) != 1 || got[0] != "stdout:hello" {
		t.Errorf("the log is %q", got)
	}
}
