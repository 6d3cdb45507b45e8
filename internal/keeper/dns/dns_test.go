package dns

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// inside tells the test program that it is in namespaces of its own.
const inside = "SKEP_DNS_TEST_INSIDE"

// TestMain runs the tests in network and mount namespaces of their own: resolvers are faked on port 53 of its loopback.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		if err := loopback(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		goleak.VerifyTestMain(m)
		return
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // what needs no namespace; the rest skips
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

// loopback brings up lo of the thread's namespace.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// newNS makes a network namespace and returns its path.
func newNS(t testing.TB) string {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopback()
		}
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func newServer(t testing.TB) *Server {
	t.Helper()
	s := New()
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := deadline(time.Second)
		defer cancel()
		s.Shutdown(ctx)
	})
	return s
}

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func set(t testing.TB, s *Server, tables ...Table) {
	t.Helper()
	for _, tab := range tables {
		if err := s.Set(&tab); err != nil {
			t.Fatal(err)
		}
	}
}

// task is an open task to ask from.
type task struct {
	t    testing.TB
	path string
	port Ports
}

func open(t testing.TB, s *Server, cfg TaskNames) *task {
	t.Helper()
	if cfg.ID == "" {
		cfg.ID = "task"
	}
	if cfg.NetNS == "" {
		cfg.NetNS = newNS(t)
	}
	p, err := s.Open(cfg, Ports{})
	if err != nil {
		t.Fatal(err)
	}
	return &task{t, cfg.NetNS, p}
}

// question packs one.
func question(t testing.TB, name string, typ dnsmessage.Type, edns int) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: uint16(time.Now().UnixNano()), RecursionDesired: true})
	err = b.StartQuestions()
	if err == nil {
		err = b.Question(dnsmessage.Question{Name: n, Type: typ, Class: dnsmessage.ClassINET})
	}
	if err == nil {
		err = b.StartAdditionals()
	}
	if err == nil && edns > 0 {
		var h dnsmessage.ResourceHeader
		if err = h.SetEDNS0(edns, 0, false); err == nil {
			err = b.OPTResource(h, dnsmessage.OPTResource{})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (k *task) dial(kind int) *os.File {
	k.t.Helper()
	port := k.port.UDP
	if kind == unix.SOCK_STREAM {
		port = k.port.TCP
	}
	f, err := connect(k.path, kind, netip.AddrPortFrom(netip.AddrFrom4(listenAddr()), port))
	if err != nil {
		k.t.Fatal(err)
	}
	f.SetDeadline(time.Now().Add(15 * time.Second))
	return f
}

// udp sends a message and returns what comes back.
func (k *task) udp(msg []byte) []byte {
	k.t.Helper()
	f := k.dial(unix.SOCK_DGRAM)
	defer f.Close()
	buf := make([]byte, 65536)
	if _, err := f.Write(msg); err != nil {
		k.t.Fatal(err)
	}
	n, err := f.Read(buf)
	if err != nil {
		k.t.Fatal(err)
	}
	return buf[:n]
}

func (k *task) tcp(msg []byte) []byte {
	k.t.Helper()
	f := k.dial(unix.SOCK_STREAM)
	defer f.Close()
	return speak(k.t, f, msg)
}

func speak(t testing.TB, f *os.File, msg []byte) []byte {
	t.Helper()
	if _, err := f.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)); err != nil {
		t.Fatal(err)
	}
	var head [2]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, binary.BigEndian.Uint16(head[:]))
	if _, err := io.ReadFull(f, buf); err != nil {
		t.Fatal(err)
	}
	return buf
}

func unpack(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("the reply %x: %v", b, err)
	}
	return m
}

// say writes a reply as a test compares it: the code if it is an error, the answers sorted, "nothing" for none.
func say(m dnsmessage.Message) string {
	if m.RCode != dnsmessage.RCodeSuccess {
		return strings.TrimPrefix(m.RCode.String(), "RCode")
	}
	var out []string
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			out = append(out, b.PTR.String())
		default:
			out = append(out, r.Header.Type.String())
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, " ")
}

func (k *task) ask(name string, typ dnsmessage.Type) string {
	k.t.Helper()
	return say(unpack(k.t, k.udp(question(k.t, name, typ, 0))))
}

// upstream is a resolver that a test plays, on port 53 of an address of loopback.
type upstream struct {
	asked, tcp atomic.Int32
	// answer returns the reply to a question; nil is silence.
	answer func(m dnsmessage.Message, tcp bool) []byte
	wg     sync.WaitGroup
	pc     net.PacketConn
	l      net.Listener
}

func startUpstream(t testing.TB, ip string, answer func(m dnsmessage.Message, tcp bool) []byte) *upstream {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root")
	}
	u := &upstream{answer: answer}
	var err error
	if u.pc, err = net.ListenPacket("udp", net.JoinHostPort(ip, "53")); err != nil {
		t.Fatal(err)
	}
	if u.l, err = net.Listen("tcp", net.JoinHostPort(ip, "53")); err != nil {
		t.Fatal(err)
	}
	u.wg.Go(u.serveUDP)
	u.wg.Go(u.serveTCP)
	t.Cleanup(func() {
		u.pc.Close()
		u.l.Close()
		u.wg.Wait()
	})
	return u
}

func (u *upstream) serveUDP() {
	buf := make([]byte, 65536)
	for {
		n, from, err := u.pc.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil {
			continue
		}
		u.asked.Add(1)
		u.wg.Go(func() {
			if r := u.answer(m, false); r != nil {
				u.pc.WriteTo(r, from)
			}
		})
	}
}

func (u *upstream) serveTCP() {
	for {
		c, err := u.l.Accept()
		if err != nil {
			return
		}
		u.wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			var head [2]byte
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return
			}
			buf := make([]byte, binary.BigEndian.Uint16(head[:]))
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf) != nil {
				return
			}
			u.tcp.Add(1)
			if r := u.answer(m, true); r != nil {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...))
			}
		})
	}
}

// fixed answers everything with one address and TTL.
func fixed(ip string, ttl uint32) func(dnsmessage.Message, bool) []byte {
	return func(m dnsmessage.Message, _ bool) []byte { return addresses(m, ttl, ip) }
}

func addresses(m dnsmessage.Message, ttl uint32, ips ...string) []byte {
	m.Response, m.RecursionAvailable = true, true
	for _, ip := range ips {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(ip).As4()}})
	}
	out, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return out
}

// rcode answers everything with an error.
func rcode(code dnsmessage.RCode) func(dnsmessage.Message, bool) []byte {
	return func(m dnsmessage.Message, _ bool) []byte {
		m.Response, m.RCode = true, code
		out, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return out
	}
}

func resolvConf(t testing.TB, servers ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeResolv(t, path, servers...)
	return path
}

func writeResolv(t testing.TB, path string, servers ...string) {
	t.Helper()
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readAddrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
