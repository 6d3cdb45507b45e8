package netapply

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// The tests run in a copy of the test binary with a network and a mount
// namespace of its own, so that nothing they make can stay behind or be seen
// outside.
const insideEnv = "SKEP_NETAPPLY_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(max(1, exit.ExitCode()))
		}
		fmt.Fprintln(os.Stderr, "run the tests in namespaces:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A lab is a client's machine and a host on one wire, each a namespace.
type lab struct {
	t            testing.TB
	dir          string
	host, client int
	net          *Network
	in           netplan.Input
}

const (
	hostIP4, clientIP4 = "192.0.2.1", "192.0.2.2"
	hostIP6, clientIP6 = "2001:db8::1", "2001:db8::2"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root: makes network namespaces")
	}
	for _, b := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(b); err != nil {
			t.Skipf("needs the program %s to look at the kernel", b)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLab(t testing.TB) *lab {
	needRoot(t)
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	l := &lab{t: t, dir: t.TempDir()}
	l.host, l.client = l.namespace("host"), l.namespace("client")
	l.sh(l.host, "ip link add eth0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), l.client)
	for _, v := range []struct {
		ns     int
		a4, a6 string
	}{{l.host, hostIP4, hostIP6}, {l.client, clientIP4, clientIP6}} {
		l.sh(v.ns, "ip link set lo up")
		l.sh(v.ns, "sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
		l.sh(v.ns, "ip link set eth0 up")
		l.sh(v.ns, "ip addr add %s/24 dev eth0", v.a4)
		l.sh(v.ns, "ip addr add %s/64 dev eth0 nodad", v.a6)
	}
	for _, ns := range []int{l.host, l.client} {
		l.sh(ns, "ip link show dev eth0") // see awaitLink
	}
	l.net, l.in = l.instance("abc123", 1)
	return l
}

// instance is a network beside others on the lab's host.
func (l *lab) instance(name string, number int) (*Network, netplan.Input) {
	l.t.Helper()
	n, err := New(Config{Dir: filepath.Join(l.dir, "run-"+name), HostNS: l.host})
	must(l.t, err)
	pool6 := netplan.Pool6("cluster" + name)
	link4, err := netplan.ChooseLink4(nil, name)
	must(l.t, err)
	pool4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(256 - number), 0, 0}), 16)
	block, _ := netplan.Block4(pool4, 1)
	l.t.Cleanup(func() {
		must(l.t, n.Destroy(context.Background(), name))
		must(l.t, n.Close())
	})
	return n, netplan.Input{Node: netplan.Node{
		Instance: name, Link4: link4, Link6: netplan.Link6(name), Pool4: pool4, Pool6: pool6,
		Blocks4: []netip.Prefix{block}, Block6: netplan.Block6(pool6, 1),
	}}
}

func (l *lab) namespace(name string) int {
	path := filepath.Join(l.dir, "ns-"+name)
	must(l.t, newNS(path, func() error { return nil }))
	fd, err := openNS(path)
	must(l.t, err)
	l.t.Cleanup(func() {
		_ = unix.Close(fd)
		must(l.t, dropNS(path))
	})
	return fd
}

// sh runs a command in a namespace and returns its output.
func (l *lab) sh(ns int, format string, args ...any) string {
	l.t.Helper()
	out, err := l.try(ns, fmt.Sprintf(format, args...))
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", fmt.Sprintf(format, args...), err, out)
	}
	return out
}

func (l *lab) try(ns int, line string) (string, error) {
	var out []byte
	err := inNS(ns, func() (err error) {
		out, err = exec.Command("sh", "-c", line).CombinedOutput()
		return err
	})
	return string(out), err
}

// task is the i-th task of the lab, from 0.
func (l *lab) task(i int) netplan.Task { return taskOf(l.in.Node, i) }

func taskOf(n netplan.Node, i int) netplan.Task {
	sum := sha256.Sum256(fmt.Append(nil, n.Instance, i))
	a := n.Blocks4[0].Addr()
	for range i + 10 {
		a = a.Next()
	}
	return netplan.Task{ID: hex.EncodeToString(sum[:]), Addr4: a, Addr6: netplan.Addr6(n.Block6, a)}
}

func (l *lab) sync() int {
	l.t.Helper()
	c, err := l.net.Sync(context.Background(), l.in)
	must(l.t, err)
	return c
}

// addTask adds the i-th task and returns its namespace.
func (l *lab) addTask(i int) (netplan.Task, int) {
	l.t.Helper()
	t := l.task(i)
	path, err := l.net.AddTask(context.Background(), t)
	must(l.t, err)
	fd, err := openNS(path)
	must(l.t, err)
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	return t, fd
}

func (l *lab) setPorts(ports ...netplan.Port) {
	l.t.Helper()
	must(l.t, l.net.SetPorts(context.Background(), ports, nil))
}

// port publishes number on tasks that listen on 8080.
func port(proto netplan.Proto, number uint16, tasks ...netplan.Task) netplan.Port {
	p := netplan.Port{PortKey: netplan.PortKey{Proto: proto, Number: number}}
	for _, t := range tasks {
		p.Backends4 = append(p.Backends4, netip.AddrPortFrom(t.Addr4, 8080))
		p.Backends6 = append(p.Backends6, netip.AddrPortFrom(t.Addr6, 8080))
	}
	return p
}

// serve answers on a port of a namespace with a name and the address it sees
// the client at, over TCP (and then waits for the client to close) and UDP.
func (l *lab) serve(ns int, name string, number int) {
	l.t.Helper()
	l.serveAt(ns, name, fmt.Sprintf(":%d", number))
}

func (l *lab) serveAt(ns int, name, at string) {
	l.t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	must(l.t, inNS(ns, func() (err error) {
		if tcp, err = net.Listen("tcp", at); err != nil {
			return err
		}
		udp, err = net.ListenPacket("udp", at)
		return err
	}))
	l.t.Cleanup(func() { _, _ = tcp.Close(), udp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					if _, err := r.ReadString('\n'); err != nil {
						return
					}
					fmt.Fprintf(c, "%s %s\n", name, host(c.RemoteAddr()))
				}
			}()
		}
	}()
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(fmt.Appendf(nil, "%s %s\n", name, host(from)), from)
		}
	}()
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// dial connects from a namespace. The socket stays in it.
func (l *lab) dial(ns int, network, addr string) (net.Conn, error) {
	return l.dialFor(ns, network, addr, 2*time.Second)
}

// tryAsk asks where no answer is expected.
func (l *lab) tryAsk(ns int, addr string) (string, error) {
	c, err := l.dialFor(ns, "tcp", addr, 500*time.Millisecond)
	if err != nil {
		return "", err
	}
	return ask(c)
}

func (l *lab) dialFor(ns int, network, addr string, limit time.Duration) (c net.Conn, err error) {
	err = inNS(ns, func() error {
		// The address is a literal, so the socket is made on this very thread.
		d := net.Dialer{Timeout: limit}
		c, err = d.Dial(network, addr)
		return err
	})
	if err == nil {
		l.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// ask asks once over an open connection.
func ask(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "who\n"); err != nil {
		return "", err
	}
	s, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(s), err
}

func (l *lab) ask(ns int, network, addr string) (string, error) {
	c, err := l.dial(ns, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return ask(c)
}

func (l *lab) wantAnswer(ns int, network, addr, want string) {
	l.t.Helper()
	got, err := l.ask(ns, network, addr)
	if err != nil || got != want {
		l.t.Errorf("%s %s: got %q, %v; want %q", network, addr, got, err, want)
	}
}

// within waits for a condition.
func within(t testing.TB, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}
