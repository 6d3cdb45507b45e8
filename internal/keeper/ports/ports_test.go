package ports

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	playHolder = "play-holder" // the program that has a port already
	inside     = "SKEP_TEST_INSIDE_NETNS"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == playHolder {
		os.Exit(holderMain(os.Args[2]))
	}
	if os.Getenv(inside) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "loopback:", err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// TestInNamespace runs all the other tests in a network namespace of its own.
func TestInNamespace(t *testing.T) {
	if os.Getenv(inside) != "" {
		t.Skip("is in it")
	}
	if os.Getuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

func needNamespace(t *testing.T) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("runs in TestInNamespace")
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// holderMain listens until its input ends. arg is NETWORK/ADDRESS.
func holderMain(arg string) int {
	network, addr, _ := strings.Cut(arg, "/")
	var c io.Closer
	var err error
	if strings.HasPrefix(network, "tcp") {
		c, err = net.Listen(network, addr)
	} else {
		c, err = net.ListenPacket(network, addr)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer c.Close()
	fmt.Println("ok")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func startHolder(t *testing.T, arg string) (pid int, stop func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], playHolder, arg)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if word, _ := bufio.NewReader(out).ReadString('\n'); word != "ok\n" {
		t.Fatalf("holder: %s", word)
	}
	return cmd.Process.Pid, func() { in.Close(); cmd.Wait() }
}

func newHolder(t *testing.T) *Holder {
	h := NewHolder()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		h.Close(ctx)
	})
	return h
}

func mustHold(t *testing.T, h *Holder, ps ...Port) {
	t.Helper()
	for i, err := range h.Hold(context.Background(), ps) {
		if err != nil {
			t.Fatalf("%s: %v", ps[i], err)
		}
	}
}

func TestConflictNamesTheProgram(t *testing.T) {
	needNamespace(t)
	for _, c := range []struct{ arg, proto string }{
		{"tcp4/127.0.0.1:8080", "tcp"}, {"tcp6/[::]:8080", "tcp"}, {"tcp/:8080", "tcp"}, {"udp4/0.0.0.0:8080", "udp"}, {"udp6/[::1]:8080", "udp"},
	} {
		t.Run(c.arg, func(t *testing.T) {
			pid, stop := startHolder(t, c.arg)
			h := newHolder(t)
			p := Port{Proto: c.proto, Port: 8080}
			want := fmt.Sprintf("port 8080/%s is already in use on this host by ports.test (pid %d)", c.proto, pid)
			for what, errs := range map[string][]error{
				"hold": h.Hold(context.Background(), []Port{p}), "probe": h.Probe(context.Background(), []Port{p})} {
				if errs[0] == nil || errs[0].Error() != want {
					t.Errorf("%s: %v, want %s", what, errs[0], want)
				}
			}
			stop()
			mustHold(t, h, p)
		})
	}
}

func TestHeldPortIsTaken(t *testing.T) {
	needNamespace(t)
	h := newHolder(t)
	tcp, udp := Port{Proto: "tcp", Port: 8080}, Port{Proto: "udp", Port: 8080}
	mustHold(t, h, tcp, udp, tcp)
	if got := fmt.Sprint(h.List()); got != "[8080/tcp 8080/udp]" {
		t.Errorf("list: %s", got)
	}
	busy := func() {
		t.Helper()
		for _, network := range []string{"tcp4", "tcp6", "tcp"} {
			if l, err := net.Listen(network, ":8080"); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("listening on %s: %v", network, err)
				l.Close()
			}
		}
		for _, network := range []string{"udp4", "udp6", "udp"} {
			if c, err := net.ListenPacket(network, ":8080"); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("listening on %s: %v", network, err)
				c.Close()
			}
		}
	}
	busy()
	if _, err := net.Dial("tcp4", "127.0.0.1:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connecting without a backend: %v", err)
	}
	c, err := net.Dial("tcp6", "[::1]:8080")
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("connecting from [::1] without a backend: %v", err)
	}

	// The sockets go to another holder and the ports are never free.
	h.Pause()
	busy()
	next := newHolder(t)
	next.Pause()
	for _, p := range h.List() {
		kinds, files := h.Sockets(p)
		var dups []*os.File
		for _, f := range files {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.SetNonblock(fd, true)
			dups = append(dups, os.NewFile(uintptr(fd), "dup"))
		}
		if err := next.Adopt(p, kinds, dups); err != nil {
			t.Fatal(err)
		}
	}
	h.Release(h.List())
	busy()
	if err := next.Resume(); err != nil {
		t.Fatal(err)
	}
	busy()
	next.Release([]Port{tcp, udp, tcp})
	mustHold(t, newHolder(t), tcp, udp) // free again
}

// redirect stands for the packet rules that send a published port to a task.
func redirect(t *testing.T, from, to int) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	rules := fmt.Sprintf(`table ip test {
		chain out { type nat hook output priority -100;
			tcp dport %d redirect to :%d
			udp dport %d redirect to :%d
		}
	}`, from, to, from, to)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("nft: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("nft", "delete", "table", "ip", "test").Run() })
}

func TestTCPFromLoopback6(t *testing.T) {
	needNamespace(t)
	redirect(t, 8080, 9090)
	l, err := net.Listen("tcp4", "127.0.0.1:9090")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { // answers only when the request's end has come
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes", len(b))
			c.Close()
		}
	}()
	defer func() { l.Close(); <-served }()
	h := newHolder(t)
	mustHold(t, h, Port{Proto: "tcp", Port: 8080})
	for range 20 {
		c, err := net.Dial("tcp6", "[::1]:8080")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(c)
		c.Close()
		if string(b) != "1048576 bytes" || err != nil {
			t.Fatalf("answer %q, %v", b, err)
		}
	}
	// What the carried connections leave behind is not in the way.
	h.Release(h.List())
	mustHold(t, h, Port{Proto: "tcp", Port: 8080})
}

func TestUDPFromLoopback6(t *testing.T) {
	needNamespace(t)
	redirect(t, 8080, 9090)
	s, err := net.ListenPacket("udp4", "127.0.0.1:9090")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		buf := make([]byte, 2000)
		for {
			n, from, err := s.ReadFrom(buf)
			if err != nil {
				return
			}
			s.WriteTo(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	defer func() { s.Close(); <-served }()
	h := newHolder(t)
	mustHold(t, h, Port{Proto: "udp", Port: 8080})
	for i := range 10 {
		c, err := net.Dial("udp6", "[::1]:8080")
		if err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			text := fmt.Sprint(i, j)
			fmt.Fprint(c, text)
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err != nil || string(buf[:n]) != "re: "+text {
				t.Fatalf("answer %q, %v", buf[:n], err)
			}
		}
		c.Close()
	}
}

func TestRefused(t *testing.T) {
	needNamespace(t)
	h := newHolder(t)
	for _, c := range []struct {
		p    Port
		want string
	}{
		{Port{Proto: "sctp", Port: 80}, "invalid port: 80/sctp: sctp ports cannot be published, use tcp or udp"},
		{Port{Proto: "tcp"}, "invalid port: port 0/tcp"},
		{Port{Proto: "tcp", Port: 80, HostIP: "192.0.2.1"}, "port 192.0.2.1:80/tcp: this host has no address 192.0.2.1"},
		{Port{Proto: "tcp", Port: 80, HostIP: "2001:db8::1"}, "port [2001:db8::1]:80/tcp: this host has no address 2001:db8::1"},
	} {
		if err := h.Hold(context.Background(), []Port{c.p})[0]; err == nil || err.Error() != c.want {
			t.Errorf("%+v: %v, want %s", c.p, err, c.want)
		}
	}
	if len(h.List()) != 0 {
		t.Errorf("held: %v", h.List())
	}
}

func TestWithoutIPv6(t *testing.T) {
	needNamespace(t)
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o644); err != nil {
		t.Skipf("cannot switch IPv6 off: %v", err)
	}
	defer os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0o644)
	h := newHolder(t)
	mustHold(t, h, Port{Proto: "tcp", Port: 8080}, Port{Proto: "udp", Port: 8080})
}
