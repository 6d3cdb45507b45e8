package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
	"github.com/skep-swarm/skep/internal/keeper/ports"
)

const inside = "SKEP_TEST_INSIDE_NS"

// inNamespaces runs the calling test again in mount and network namespaces of
// its own and tells the caller to return; in there it tells it to go on.
func inNamespaces(t *testing.T) (goOn bool) {
	t.Helper()
	if os.Getenv(inside) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("making namespaces needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

func TestFullDisk(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	c, ctx := newClient(t, "", "1"), context.Background()
	dir := filepath.Join(disk, "c")
	files := mustOpen(t, c, LogSpec{ContainerID: "c", Dir: dir})
	const lines = 50_000                  // 5 MB, and more in JSON
	startWriter(t, files.Stdout, lines)() // does not block
	next := newClientIn(t, c, "2")        // the count goes over
	if err := next.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	// All that was written before is whole; now there is space again.
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	note := regexp.MustCompile(`^stderr:skep: (\d+) lines dropped, disk full$`)
	var dropped, kept int
	defer func() { t.Logf("%d kept, %d dropped", kept, dropped) }()
	eventually(t, "the note", func() bool {
		got := readLog(t, dir, "c")
		dropped, kept = 0, 0
		for _, line := range got {
			if m := note.FindStringSubmatch(line); m != nil {
				n, _ := strconv.Atoi(m[1])
				dropped += n
			} else {
				kept++
			}
		}
		return dropped > 0 && kept+dropped == lines
	})
	fmt.Fprintln(shim(t, files.Stdout), "after")
	if err := c.Close(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if got := readLog(t, dir, "c"); got[len(got)-1] != "stdout:after" {
		t.Errorf("the last line is %q", got[len(got)-1])
	}
	b, _ := os.ReadFile(jsonlog.Path(dir, "c"))
	if bytes.Contains(b, []byte("}{")) || b[len(b)-1] != '\n' {
		t.Error("there are torn lines")
	}
}

// TestPortsOutliveEverything holds a port through upgrades and crashes.
func TestPortsOutliveEverything(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	c, ctx := newClient(t, "", "0"), context.Background()
	list := []ports.Port{{Proto: "tcp", Port: 8080}, {Proto: "udp", Port: 8081}, {Proto: "sctp", Port: 1}}
	errs, err := c.Hold(ctx, list)
	if err != nil || errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], ports.ErrInvalid) {
		t.Fatal(errs, err)
	}
	stop, tried := make(chan struct{}), make(chan int)
	go func() { // an intruder who never gets in
		n := 0
		for {
			select {
			case <-stop:
				tried <- n
				return
			default:
			}
			if l, err := net.Listen("tcp", ":8080"); err == nil {
				l.Close()
				t.Error("the port was free for a moment")
				<-stop
				tried <- n
				return
			}
			n++
		}
	}()
	for i := range 5 {
		if err := newClientIn(t, c, fmt.Sprint(i+1)).Ensure(ctx); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	t.Logf("%d attempts to take the port", <-tried)
	c.cfg.Build = "5"
	old := pid(t, c)
	syscall.Kill(old, syscall.SIGKILL)
	eventually(t, "the next keeper", func() bool { return c.Ensure(ctx) == nil && pid(t, c) != old })
	got, err := c.List(ctx)
	if want := "[8080/tcp 8081/udp]"; err != nil || fmt.Sprint(got.Ports) != want {
		t.Errorf("held after a crash: %v, %v", got.Ports, err)
	}
	if _, err := net.Listen("tcp", ":8080"); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening: %v", err)
	}
	if err := c.Release(ctx, list); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	errs, err = c.Probe(ctx, list[:1])
	var used *ports.InUseError
	if err != nil || !errors.As(errs[0], &used) || used.PID != os.Getpid() {
		t.Errorf("probe: %v, %v", errs, err)
	}
}

// TestConnectionOutlivesUpgrade has a connection from [::1] go on while the
// keeper that carries it is replaced.
func TestConnectionOutlivesUpgrade(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	cmd := exec.Command("sh", "-c", "ip link set lo up && nft -f -")
	cmd.Stdin = strings.NewReader("table ip test { chain out { type nat hook output priority -100; tcp dport 8080 redirect to :9090; } }")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("needs ip and nft: %v: %s", err, out)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:9090")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, ctx := newClient(t, "", "1"), context.Background()
	if errs, err := c.Hold(ctx, []ports.Port{{Proto: "tcp", Port: 8080}}); err != nil || errs[0] != nil {
		t.Fatal(errs, err)
	}
	client, err := net.Dial("tcp6", "[::1]:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	old := pid(t, c)
	for i, text := range []string{"before", "after"} {
		buf := make([]byte, 10)
		fmt.Fprint(client, text)
		n, err := server.Read(buf)
		if err != nil || string(buf[:n]) != text {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if i == 0 {
			if err := newClientIn(t, c, "2").Ensure(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	client.Close()
	server.Close()
	eventually(t, "the old process's end", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", old))
		return err != nil || bytes.Contains(b, []byte(") Z "))
	})
}

// TestFailedUpgrade breaks handoffs off at every message.
func TestFailedUpgrade(t *testing.T) {
	c, ctx := newClient(t, "", "1"), context.Background()
	dir := t.TempDir()
	files := mustOpen(t, c, LogSpec{ContainerID: "c", Dir: dir})
	const lines = 300_000
	written := startWriter(t, files.Stdout, lines)
	first := pid(t, c)
	for read := range 4 { // core, log, end, and then no "ready"
		conn, err := dial(c.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFrame(conn, request{Version: Protocol, Op: opHandoff}); err != nil {
			t.Fatal(err)
		}
		for range read {
			_, got, err := receiveItem(conn)
			if err != nil {
				t.Fatal(err)
			}
			closeFiles(got)
		}
		conn.Close()
	}
	written()
	if err := c.Close(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	checkNumbered(t, readLog(t, dir, "c"), lines)
	if now := pid(t, c); now != first {
		t.Errorf("process %d, was %d", now, first)
	}
}

// daemonMain opens a log, says where, and waits to be killed.
func daemonMain(args []string) int {
	self, _ := os.Executable()
	c := NewClient(Config{Dir: args[0], Binary: self, Args: []string{playKeeper}, Build: "1"})
	files, err := c.Open(context.Background(), LogSpec{ContainerID: "c", Dir: args[1]})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(files.Stdout)
	select {}
}

func TestDaemonKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keeper")
	logDir := t.TempDir()
	self, _ := os.Executable()
	cmd := exec.Command(self, playDaemon, dir, logDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, dir, "1")
	path, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	keeper := pid(t, c)
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its whole group
	cmd.Wait()
	const lines = 10_000
	startWriter(t, strings.TrimSpace(path), lines)()
	eventually(t, "the lines", func() bool { return len(readLog(t, logDir, "c")) == lines })
	if now := pid(t, c); now != keeper {
		t.Errorf("process %d, was %d", now, keeper)
	}
	if sid, err := unix.Getsid(keeper); err != nil || sid != keeper {
		t.Errorf("the keeper %d is in session %d, %v", keeper, sid, err)
	}
}

func TestCgroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	mounts, err := cgroupMounts()
	if err != nil || len(mounts) == 0 {
		t.Skipf("no cgroups: %v", err)
	}
	c, ctx := newClient(t, "", "1"), context.Background()
	c.cfg.Cgroup = fmt.Sprintf("/skep-test-%d/keeper", os.Getpid())
	if err := c.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid(t, c)))
	if !bytes.Contains(b, []byte(c.cfg.Cgroup)) {
		t.Errorf("the keeper is in\n%s", b)
	}
	if err := c.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		dir := filepath.Join(m, c.cfg.Cgroup)
		eventually(t, "an empty cgroup", func() bool { err := os.Remove(dir); return err == nil || os.IsNotExist(err) })
		os.Remove(filepath.Dir(dir))
	}
}

// When Shutdown returns there is no process any more that could hold anything.
func TestShutdownWaitsForTheProcess(t *testing.T) {
	c, ctx := newClient(t, "", "1"), context.Background()
	for range 5 {
		if err := c.Ensure(ctx); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid(t, c), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n != 1 {
			t.Errorf("the keeper's process lives on: %v", err)
		}
		unix.Close(fd)
	}
}

func TestAwaitEnd(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	short, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := awaitEnd(short, fd); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it runs: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"as a zombie", "when it is gone"} {
		if err := awaitEnd(context.Background(), fd); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		_ = cmd.Wait()
	}
}

func TestLongSocketPath(t *testing.T) {
	c := newClient(t, filepath.Join(t.TempDir(), strings.Repeat("long/", 40), "keeper"), "1")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(c.cfg.Dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v, %v", st.Mode(), err)
	}
}
