package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Dispatch()
	os.Exit(m.Run())
}

// newLab makes a lab and checks, when the test ends, that it leaves nothing behind.
func newLab(t *testing.T) *Lab {
	t.Helper()
	if err := Available(); err != nil {
		t.Skip("no lab here: ", err)
	}
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func addHost(t *testing.T, l *Lab, name string) *Host {
	t.Helper()
	h, err := l.AddHost(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func output(t *testing.T, h *Host, name string, args ...string) string {
	t.Helper()
	out, err := h.Output(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// eventually polls a condition that has no event to wait for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never happened: ", what)
		}
	}
}

func TestHostIsAMachineOfItsOwn(t *testing.T) {
	l := newLab(t)
	a, b := addHost(t, l, "a"), addHost(t, l, "b")

	if got := output(t, a, "hostname"); got != "a" {
		t.Errorf("host name %q", got)
	}
	if got := output(t, a, "sh", "-c", "cat /proc/1/comm; ls /run | wc -l; ls /var/lib/skep | wc -l; ls -d /var/lib/dpkg"); !strings.HasSuffix(got, "\n0\n0\n/var/lib/dpkg") {
		t.Errorf("pid 1, files in /run, in /var/lib/skep, and dpkg's: %q", got)
	}
	output(t, a, "sh", "-c", "echo from-a >/run/file; echo data >/var/lib/skep/file")
	if got := output(t, b, "sh", "-c", "ls /run/file /var/lib/skep/file 2>&1 || true"); strings.Contains(got, "\n/run/file") {
		t.Errorf("b sees a's files: %q", got)
	}
	if got, err := os.ReadFile(a.Path("/run/file")); err != nil || string(got) != "from-a\n" {
		t.Errorf("from outside: %q, %v", got, err)
	}
	if got := output(t, a, "cat", "/sys/class/net/eth0/operstate"); got != "up" {
		t.Errorf("eth0 is %q", got)
	}
	if got := output(t, b, "getent", "hosts", "a"); !strings.Contains(got, a.Addr6().String()) && !strings.Contains(got, a.Addr4().String()) {
		t.Errorf("b finds a at %q", got)
	}
	if got := output(t, a, "sh", "-c", "cat /proc/self/cgroup | cut -d: -f3 | sort -u"); got != "/init" {
		t.Errorf("a program's cgroups: %q", got)
	}
	if got := output(t, a, "sh", "-c", "ip -o link | wc -l; mount | grep -c cgroup"); strings.HasSuffix(got, "\n0") {
		t.Errorf("links and cgroup mounts: %q", got)
	}
}

func TestCommand(t *testing.T) {
	h := addHost(t, newLab(t), "a")
	for _, tt := range []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 3", 3}, {"kill -9 $$", 128 + 9}} {
		err := h.Command(t.Context(), "sh", "-c", tt.script).Run()
		code := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != tt.want {
			t.Errorf("%q ended with %d, want %d", tt.script, code, tt.want)
		}
	}
	if _, err := h.Output(t.Context(), "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a missing program: %v", err)
	}

	dir := t.TempDir()
	cmd := h.Command(t.Context(), "sh", "-c", "pwd; echo $COLOUR; cat; cat <&3")
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), "COLOUR=green"), strings.NewReader("in\n")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{r}
	fmt.Fprintln(w, "three")
	w.Close()
	out, err := cmd.Output()
	if want := dir + "\ngreen\nin\nthree\n"; err != nil || string(out) != want {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
}

func TestCommandPassesSignalsOn(t *testing.T) {
	h := addHost(t, newLab(t), "a")
	cmd := h.Command(t.Context(), "sh", "-c", "trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.01; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if string(rest) != "got it\n" || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("printed %q, ended with %d", rest, cmd.ProcessState.ExitCode())
	}
}

func TestOrphansAreReaped(t *testing.T) {
	h := addHost(t, newLab(t), "a")
	output(t, h, "sh", "-c", "for i in 1 2 3 4 5; do (sh -c 'sleep 0.01' >/dev/null 2>&1 &) ; done")
	eventually(t, "all orphans gone", func() bool {
		return output(t, h, "sh", "-c", "cat /proc/[0-9]*/comm | grep -c sleep || true") == "0"
	})
}

// serve answers every connection to the host at port with "hello from NAME".
func serve(t *testing.T, h *Host, network, address string) net.Listener {
	t.Helper()
	ln, err := h.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "hello from %s to %s", h.Name(), c.RemoteAddr())
			c.Close()
		}
	}()
	return ln
}

func ask(ctx context.Context, h *Host, network, address string) (string, error) {
	return heard(h.Dial(ctx, network, address))
}

// heard is all that the other end of a connection says.
func heard(c net.Conn, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestHostsTalk(t *testing.T) {
	l := newLab(t)
	a, b := addHost(t, l, "a"), addHost(t, l, "b")
	serve(t, a, "tcp", "0.0.0.0:80")
	serve(t, a, "tcp", "[::1]:81")
	serve(t, a, "unix", "/run/a.sock")

	got, err := ask(t.Context(), b, "tcp", a.Addr4().String()+":80")
	if err != nil || !strings.HasPrefix(got, "hello from a to "+b.Addr4().String()) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := ask(t.Context(), a, "tcp", "[::1]:81"); err != nil || !strings.HasPrefix(got, "hello from a") {
		t.Errorf("over IPv6 loopback: %q, %v", got, err)
	}
	if got, err := ask(t.Context(), a, "unix", "/run/a.sock"); err != nil || !strings.HasPrefix(got, "hello from a") {
		t.Errorf("over the unix socket: %q, %v", got, err)
	}
	if _, err := ask(t.Context(), b, "tcp", "127.0.0.1:80"); err == nil {
		t.Error("b reached a's port at its own loopback")
	}
	if _, err := b.Dial(t.Context(), "tcp", "a:80"); err == nil {
		t.Error("a name was accepted; it would have been looked up outside of the host")
	}
}

func TestTwoLabsDoNotSeeEachOther(t *testing.T) {
	a := addHost(t, newLab(t), "a")
	other := newLab(t)
	addHost(t, other, "x")
	b := addHost(t, other, "b")
	serve(t, a, "tcp", "0.0.0.0:80") // a's address is x's in the other lab
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if got, err := ask(ctx, b, "tcp", a.Addr4().String()+":80"); err == nil {
		t.Errorf("a host of the other lab answered: %q", got)
	}
}

// connect makes a connection from client to a program that runs inside server, so
// that it dies with it.
func connect(t *testing.T, client, server *Host) net.Conn {
	t.Helper()
	cmd := server.Command(t.Context(), "busybox", "nc", "-l", "-p", "80")
	stdin, hold, err := os.Pipe() // nc ends when its input does
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); hold.Close() })
	cmd.Stdin = stdin
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var conn net.Conn
	eventually(t, "server listens", func() bool {
		var err error
		conn, err = client.Dial(t.Context(), "tcp", server.Addr4().String()+":80")
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestCrashIsNoticedAtOnceAndPowerLossIsNot(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed: apt-get install busybox-static")
	}
	l := newLab(t)
	client := addHost(t, l, "client")

	crashed := addHost(t, l, "crashed")
	conn := connect(t, client, crashed)
	if err := crashed.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a crash the peer noticed nothing: %v", err)
	}

	dark := addHost(t, l, "dark")
	conn = connect(t, client, dark)
	if err := dark.PowerLoss(); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a power loss the peer heard something: %v", err)
	}
}

func TestLinkDownAndUp(t *testing.T) {
	l := newLab(t)
	a, b := addHost(t, l, "a"), addHost(t, l, "b")
	serve(t, a, "tcp", "0.0.0.0:80")
	reach := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := ask(ctx, b, "tcp", a.Addr4().String()+":80")
		return err
	}
	eventually(t, "a answers", func() bool { return reach() == nil })
	if err := a.LinkDown(); err != nil {
		t.Fatal(err)
	}
	if reach() == nil {
		t.Error("a answers without its cable")
	}
	if err := a.LinkUp(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a answers again", func() bool { return reach() == nil })
}

func TestRebootKeepsTheDisk(t *testing.T) {
	l := newLab(t)
	a, b := addHost(t, l, "a"), addHost(t, l, "b")
	output(t, a, "sh", "-c", "echo kept >/var/lib/skep/file; echo lost >/run/file")
	if err := a.PowerLoss(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Output(t.Context(), "true"); err == nil {
		t.Error("a host that is down ran a program")
	}
	if err := a.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := output(t, a, "sh", "-c", "cat /var/lib/skep/file; cat /run/file 2>/dev/null || echo none"); got != "kept\nnone" {
		t.Errorf("after the reboot: %q", got)
	}
	serve(t, a, "tcp", "0.0.0.0:80")
	if _, err := ask(t.Context(), b, "tcp", a.Addr4().String()+":80"); err != nil {
		t.Errorf("after the reboot: %v", err)
	}
}

func TestGuard(t *testing.T) {
	h := addHost(t, newLab(t), "a")
	if err := Inside(); err == nil {
		t.Error("the machine's own network passed for a lab's")
	}
	if err := h.InNetNS(Inside); err != nil {
		t.Errorf("inside a host: %v", err)
	}
	// A namespace that somebody else made, with a copied mark, must not pass.
	err := onThread(func() error {
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			return err
		}
		if err := exec.Command("ip", "link", "set", "lo", "alias", markPrefix+"1").Run(); err != nil {
			return err
		}
		if Inside() == nil {
			return errors.New("a copied mark passed")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Whichever threads were inside of a host, none stays there, the process's first one neither.
func TestThreadsComeHome(t *testing.T) {
	h := addHost(t, newLab(t), "a")
	space, err := networkInode(h.Pid())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			if err := h.InNetNS(func() error { return exec.Command("true").Run() }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		link, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/net")
		if err == nil && link == fmt.Sprintf("net:[%d]", space) {
			t.Errorf("thread %s is still in the host (of process %d)", thread.Name(), os.Getpid())
		}
	}
}

func TestSnapshotFindsEachKind(t *testing.T) {
	h := addHost(t, newLab(t), "a")
	snap := func() Snapshot {
		s, err := h.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := snap()
	if diff := snap().Diff(before); len(diff) != 0 {
		t.Errorf("an idle host differs from itself: %q", diff)
	}
	output(t, h, "sh", "-ec", `
		ip netns add left
		ip link add left0 type veth peer name left1
		ip addr add 203.0.113.1/24 dev left0
		ip link set left0 up; ip link set left1 up
		ip rule add fwmark 0x99 lookup 99
		ip route add 203.0.113.9/32 dev left0 table 99
		nft add table ip left
		g=$(ls -d /sys/fs/cgroup/*/ | head -1); mkdir $g/left
		mkdir /run/left; mount -t tmpfs left /run/left`)
	left := h.Command(t.Context(), "sleep", "1000")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = left.Process.Kill(); _ = left.Wait() }()
	eventually(t, "sleep runs", func() bool {
		return slices.Contains(snap()["process"], "sleep 1000")
	})
	diff := strings.Join(snap().Diff(before), "\n")
	for _, kind := range []string{"netns", "link", "address", "rule", "route", "nft", "cgroup", "mount", "process"} {
		if !strings.Contains(diff, "+ "+kind+": ") {
			t.Errorf("a new %s was not found in:\n%s", kind, diff)
		}
	}
	if back := strings.Join(before.Diff(snap()), "\n"); !strings.Contains(back, "- link: ") {
		t.Errorf("what is missing was not found in:\n%s", back)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip("no lab here: ", err)
	}
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	h := addHost(t, l, "a")
	output(t, h, "sh", "-c", "for g in /sys/fs/cgroup/*/; do mkdir -p $g/skep/x/y 2>/dev/null; done; sleep 1000 >/dev/null 2>&1 & ip netns add x; mount -t tmpfs x /mnt")
	group, dir, pid := l.id, l.dir, h.Pid()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mounts, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if _, err := os.Stat(filepath.Join(m.Path, group)); err == nil {
			t.Errorf("cgroup %s is left in %s", group, m.Path)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("directory %s is left", dir)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("pid 1 is left")
	}
	if _, err := l.AddHost(t.Context(), "b"); err == nil {
		t.Error("a closed lab made a host")
	}
}

func TestStillInsideFindsAProcess(t *testing.T) {
	h := addHost(t, newLab(t), "a")
	if stillInside(h.space) == nil {
		t.Error("pid 1 of a running host was not found")
	}
}
