package cli

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dyingSocket tells a copy of the test's program that it is a daemon, and where it listens.
const dyingSocket = "SKEP_TEST_DYING_DAEMON"

// TestDyingDaemon is no test but the daemon of TestDownWaitsForTheDaemon: it says that all is done, and lives on until its input ends.
func TestDyingDaemon(t *testing.T) {
	socket := os.Getenv(dyingSocket)
	if socket == "" {
		t.Skip("the daemon of another test")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { // ends with the process
		fmt.Fprint(w, `{"stream":"stopping\n"}`, `{"stream":"done\n"}`, `{"stream":"nearly\n"}`)
	}))
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// output is what a command has printed so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// The word that all is done comes when the daemon's process is in no list any more: not when it says so, nor
// when it has ended and its parent has not noted that yet.
func TestDownWaitsForTheDaemon(t *testing.T) {
	dir, err := os.MkdirTemp("", "sk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	daemon := exec.Command(os.Args[0], "-test.run=^TestDyingDaemon$")
	daemon.Env = append(os.Environ(), dyingSocket+"="+socket)
	life, err := daemon.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	reaped := sync.OnceFunc(func() { _ = daemon.Wait() })
	t.Cleanup(func() { _ = daemon.Process.Kill(); reaped() })
	until(t, "the daemon", func() bool { // the file is there before anybody listens
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	var out output
	ended := make(chan int, 1)
	go func() {
		ended <- Run(t.Context(), Config{Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }}, []string{"-H", "unix://" + socket, "down"})
	}()
	until(t, "the progress", func() bool { return strings.Contains(out.String(), "nearly") })
	if got := out.String(); got != "stopping\nnearly\n" {
		t.Errorf("while the daemon runs: %q", got)
	}
	life.Close()
	fd, err := unix.PidfdOpen(daemon.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	until(t, "the daemon's end", func() bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
	select {
	case code := <-ended:
		t.Fatalf("it ended with %d before the daemon was gone", code)
	case <-time.After(50 * time.Millisecond): // not a wait for something: the time in which it must not end
	}
	reaped()
	if code := <-ended; code != 0 || out.String() != "stopping\nnearly\ndone\n" {
		t.Errorf("%d %q", code, out.String())
	}
}
