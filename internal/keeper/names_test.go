package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/keeper/dns"
)

// taskNS is a network namespace that lives as long as a thread of the test.
type taskNS struct {
	path string
	jobs chan func()
}

func newTaskNS(t testing.TB) *taskNS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ns := &taskNS{jobs: make(chan func())}
	ready, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopbackUp()
		}
		ns.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		for f := range ns.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(ns.jobs); <-ended })
	return ns
}

func loopbackUp() error {
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

// do runs f in the namespace.
func (n *taskNS) do(f func() error) error {
	done := make(chan error)
	n.jobs <- func() { done <- f() }
	return <-done
}

// resolve asks from inside the namespace and returns the addresses, or the error's text. It asks once: a lost question is an error.
func (n *taskNS) resolve(p dns.Ports, name string) string {
	var conn net.Conn
	err := n.do(func() (err error) {
		conn, err = net.Dial("udp4", fmt.Sprintf("127.0.0.11:%d", p.UDP))
		return err
	})
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	msg, err := q.Pack()
	if err == nil {
		_, err = conn.Write(msg)
	}
	buf := make([]byte, 4096)
	size := 0
	if err == nil {
		size, err = conn.Read(buf)
	}
	var m dnsmessage.Message
	if err == nil {
		err = m.Unpack(buf[:size])
	}
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, a := range m.Answers {
		if a, ok := a.Body.(*dnsmessage.AResource); ok {
			out = append(out, netip.AddrFrom4(a.A).String())
		}
	}
	return strings.Join(out, " ")
}

func namesTable() dns.Table {
	return dns.Table{Network: 5, Complete: true, Name: "net", Services: []dns.ServiceRow{
		{Service: 1, Names: []string{"web"}, VIP: true, Addr4: netip.MustParseAddr("10.0.0.2")}}}
}

func openNames(t testing.TB, c *Client, ns *taskNS) dns.Ports {
	t.Helper()
	ctx := context.Background()
	if err := c.SetNames(ctx, namesTable()); err != nil {
		t.Fatal(err)
	}
	p, err := c.OpenNames(ctx, dns.TaskNames{ID: "task", NetNS: ns.path, Networks: []uint64{5}, Inside: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNamesLife(t *testing.T) {
	ns, c, ctx := newTaskNS(t), newClient(t, "", "1"), context.Background()
	p := openNames(t, c, ns)
	if again := openNames(t, c, ns); again != p {
		t.Errorf("opening again gives ports %v, not %v", again, p)
	}
	if p.UDP != p.TCP || p.UDP == 53 {
		t.Errorf("ports %v", p)
	}
	// A container may have a server of its own on all addresses.
	err := ns.do(func() error {
		l, err := net.ListenPacket("udp4", "0.0.0.0:53")
		if err == nil {
			err = l.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("a server of the task's own on port 53: %v", err)
	}
	if got := ns.resolve(p, "web."); got != "10.0.0.2" {
		t.Errorf("web is %q", got)
	}
	list, err := c.List(ctx)
	if err != nil || len(list.Names) != 1 || list.Names[0] != (Named{"task", p}) || fmt.Sprint(list.Networks) != "[5]" {
		t.Errorf("list: %+v, %v", list, err)
	}
	for range 2 {
		if err := c.CloseNames(ctx, "task"); err != nil {
			t.Fatal(err)
		}
		if err := c.SetNames(ctx, dns.Table{Network: 5, Gone: true}); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(c.cfg.Dir, "names")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	err = ns.do(func() error {
		l, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.11:%d", p.UDP))
		if err == nil {
			err = l.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("the port is still taken: %v", err)
	}
	if _, err := c.OpenNames(ctx, dns.TaskNames{ID: "lost", NetNS: "/run/no/such"}); err == nil {
		t.Error("names were opened in a namespace that is not there")
	}
	if err := c.SetNames(ctx, dns.Table{Network: 9, TasksRemoved: []dns.TaskKey{{Service: 1, Num: 1}}}); err == nil {
		t.Error("changes to an unknown table were taken")
	}
}

// TestNamesOverUpgrades asks all the time while keepers replace each other: no question may be lost.
func TestNamesOverUpgrades(t *testing.T) {
	ns, c, ctx := newTaskNS(t), newClient(t, "", "0"), context.Background()
	p := openNames(t, c, ns)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asked := 0
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			asked++
			if got := ns.resolve(p, "web."); got != "10.0.0.2" {
				t.Errorf("question %d: %s", asked, got)
				return
			}
		}
	})
	pids := map[int]bool{pid(t, c): true}
	for i := range 5 {
		if err := newClientIn(t, c, fmt.Sprint("build-", i)).Ensure(ctx); err != nil {
			t.Fatal(err)
		}
		pids[pid(t, c)] = true
	}
	close(stop)
	asking.Wait()
	t.Logf("%d questions over 5 upgrades", asked)
	if len(pids) != 6 {
		t.Errorf("%d processes, want 6", len(pids))
	}
}

// TestNamesKeeperKilled kills the keeper: the next one answers on the same ports, with changes that came since the complete table.
func TestNamesKeeperKilled(t *testing.T) {
	ns, c := newTaskNS(t), newClient(t, "", "1")
	ctx, cancel := context.WithCancel(context.Background())
	p := openNames(t, c, ns)
	lines := dns.Table{Network: 5, Services: []dns.ServiceRow{{Service: 2, Names: []string{"db"}, VIP: true, Addr4: netip.MustParseAddr("10.0.0.3")}}}
	for range 4000 { // enough to have the journal written anew
		if err := c.SetNames(ctx, lines); err != nil {
			t.Fatal(err)
		}
	}
	journal := filepath.Join(c.cfg.Dir, "names", "5.net")
	if st, err := os.Stat(journal); err != nil || st.Size() > 2*minJournal {
		t.Fatalf("the journal: %v, %v", st, err)
	}
	watched := make(chan error, 1)
	go func() { watched <- c.Run(ctx) }()
	for i := range 3 {
		if i == 1 { // torn in the middle of a message
			f, err := os.OpenFile(journal, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Write([]byte{0, 0, 0, 99, '{'})
			f.Close()
		}
		old := pid(t, c)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the next keeper", func() bool {
			h, err := c.hello(ctx)
			return err == nil && h.PID != old
		})
		for name, want := range map[string]string{"web.": "10.0.0.2", "db.net.": "10.0.0.3"} {
			if got := ns.resolve(p, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	}
	cancel()
	if err := <-watched; err != context.Canceled {
		t.Errorf("Run returned %v", err)
	}
}

// What a full disk cut short hides nothing that is written when there is room again.
func TestJournalOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	runtime.LockOSThread() // for good: the thread must not serve others
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skip("no mount namespace: ", err)
	}
	dir := t.TempDir()
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k")); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "7.net")
	table := func(svc uint64) dns.Table {
		return dns.Table{Network: 7, Services: []dns.ServiceRow{{Service: svc, Names: []string{strings.Repeat("a", 200)}}}}
	}
	filler := filepath.Join(dir, "filler")
	if err := errors.Join(appendFrame(path, table(1)), os.WriteFile(filler, make([]byte, 40<<10), 0o600)); err != nil {
		t.Fatal(err)
	}
	n, err := 1, error(nil)
	for ; err == nil && n < 1000; n++ {
		err = appendFrame(path, table(uint64(n+1)))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk was not full: %v", err)
	}
	if err := errors.Join(os.Remove(filler), appendFrame(path, table(5000))); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	last := uint64(0)
	for {
		var got dns.Table
		if err = readFrame(f, &got); err != nil {
			break
		}
		last = got.Services[0].Service
	}
	if !errors.Is(err, io.EOF) || last != 5000 {
		t.Errorf("the last row is %d of 5000: %v", last, err)
	}
}
