package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/embedded"
	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/keeper/dns"
)

const (
	dnsRounds  = 5
	dnsRound   = time.Second
	dnsClients = 4
	dnsWindow  = 32 // questions that a client has under way
	dnsRows    = 1000
)

// reportDNS measures the keeper's DNS beside dnsmasq: one name of a thousand, asked for by UDP in a network namespace of its own,
// in turns. Each figure is a median.
func reportDNS(ctx context.Context, w io.Writer) error {
	masq, err := exec.LookPath("dnsmasq")
	if err != nil {
		fmt.Fprintln(w, "DNS: not measured, dnsmasq is not installed (make install-deps)")
		return nil
	}
	dir, err := os.MkdirTemp("", "skep-bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	defer ns.close()
	ours, stop, err := startKeeper(ctx, dir, ns)
	if err != nil {
		return err
	}
	defer stop()
	theirs, stopMasq, err := startDnsmasq(dir, masq, ns)
	if err != nil {
		return err
	}
	defer stopMasq()
	servers := []*dnsServer{ours, theirs}
	for range dnsRounds {
		for _, s := range servers {
			if err := s.round(ns); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(w, "\nDNS, one of %d names by UDP, %d clients, medians of %d rounds of %v in turns\n", dnsRows, dnsClients, dnsRounds, dnsRound)
	fmt.Fprintf(w, "%-10s %12s %24s\n", "", "questions/s", "questions/CPU-second")
	for _, s := range servers {
		fmt.Fprintf(w, "%-10s %12.0f %24.0f\n", s.name, median(s.rate), median(s.perCPU))
	}
	_, err = fmt.Fprintf(w, "%-10s %12.2f %24.2f\n", "ratio", median(ours.rate)/median(theirs.rate), median(ours.perCPU)/median(theirs.perCPU))
	return err
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// namespace is a network namespace that lives as long as one locked thread.
type namespace struct {
	path  string
	jobs  chan func()
	ended chan struct{}
}

func newNamespace() (*namespace, error) {
	n := &namespace{jobs: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(n.ended)
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = exec.Command("ip", "link", "set", "lo", "up").Run()
		}
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		for f := range n.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		n.close()
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	return n, nil
}

func (n *namespace) close() {
	close(n.jobs)
	<-n.ended
}

func (n *namespace) do(f func() error) error {
	done := make(chan error)
	n.jobs <- func() { done <- f() }
	return <-done
}

// dnsServer is one of those compared.
type dnsServer struct {
	name, addr   string
	pid          int
	rate, perCPU []float64
}

func startKeeper(ctx context.Context, dir string, ns *namespace) (*dnsServer, func(), error) {
	paths, err := embedded.Write(filepath.Join(dir, "bin"))
	if err != nil {
		return nil, nil, err
	}
	c := keeper.NewClient(keeper.Config{Dir: filepath.Join(dir, "keeper"), Binary: paths.Keeper})
	table := dns.Table{Network: 1, Complete: true, Name: "net"}
	for i := range dnsRows {
		table.Services = append(table.Services, dns.ServiceRow{Service: uint64(i + 1), Names: []string{fmt.Sprintf("svc%d", i)}, VIP: true, Addr4: benchAddr(i)})
	}
	err = c.SetNames(ctx, table)
	var ports dns.Ports
	if err == nil {
		ports, err = c.OpenNames(ctx, dns.TaskNames{ID: "bench", NetNS: ns.path, Networks: []uint64{1}, Inside: true})
	}
	stop := func() { c.Shutdown(context.WithoutCancel(ctx)) }
	var pid int
	if err == nil {
		pid, err = pidOf(paths.Keeper)
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return &dnsServer{name: "skep", addr: fmt.Sprintf("127.0.0.11:%d", ports.UDP), pid: pid}, stop, nil
}

func benchAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }

// pidOf finds the process that runs a program.
func pidOf(program string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range all {
		if target, rerr := os.Readlink(link); rerr == nil && target == program {
			return strconv.Atoi(strings.Split(link, "/")[2])
		}
	}
	return 0, errors.Join(fmt.Errorf("no process runs %s", program), err)
}

func startDnsmasq(dir, program string, ns *namespace) (*dnsServer, func(), error) {
	hosts := filepath.Join(dir, "hosts")
	var b strings.Builder
	for i := range dnsRows {
		fmt.Fprintf(&b, "%s svc%d\n", benchAddr(i), i)
	}
	if err := os.WriteFile(hosts, []byte(b.String()), 0o644); err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(program, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file",
		"--addn-hosts="+hosts, "--port=5353", "--listen-address=127.0.0.1", "--bind-interfaces", "--cache-size=10000")
	if err := ns.do(cmd.Start); err != nil { // from its thread: the child is in the namespace too
		return nil, nil, fmt.Errorf("starting dnsmasq: %w", err)
	}
	stop := func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	s := &dnsServer{name: "dnsmasq", addr: "127.0.0.1:5353", pid: cmd.Process.Pid}
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := s.client(ns)
		if err == nil {
			c.SetDeadline(time.Now().Add(100 * time.Millisecond))
			err = flood(c, 1, func() bool { return false })
			c.Close()
		}
		if err == nil {
			return s, stop, nil
		}
		if time.Now().After(deadline) {
			stop()
			return nil, nil, fmt.Errorf("dnsmasq does not answer: %w", err)
		}
	}
}

func (s *dnsServer) client(ns *namespace) (c net.Conn, err error) {
	err = ns.do(func() error {
		c, err = net.Dial("udp4", s.addr)
		return err
	})
	return c, err
}

// round asks for one round's time.
func (s *dnsServer) round(ns *namespace) error {
	var clients []net.Conn
	for range dnsClients {
		c, err := s.client(ns)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(dnsRound + 5*time.Second))
		clients = append(clients, c)
	}
	before, err := processCPU(s.pid)
	if err != nil {
		return err
	}
	var asked atomic.Int64
	errs := make([]error, dnsClients)
	var wg sync.WaitGroup
	began := time.Now()
	for i, c := range clients {
		wg.Go(func() {
			errs[i] = flood(c, dnsWindow, func() bool { asked.Add(dnsWindow); return time.Since(began) < dnsRound })
		})
	}
	wg.Wait()
	took := time.Since(began).Seconds()
	after, err := processCPU(s.pid)
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("asking %s: %w", s.name, err)
	}
	s.rate = append(s.rate, float64(asked.Load())/took)
	s.perCPU = append(s.perCPU, float64(asked.Load())/(after-before))
	return nil
}

// flood asks window questions and awaits their answers, again and again while more says so. A datagram lost on the way would be
// waited for in vain, but loopback with windows this small loses none.
func flood(c net.Conn, window int, more func() bool) error {
	msg := []byte("\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06svc500\x00\x00\x01\x00\x01")
	buf := make([]byte, 1500)
	for ok := true; ok; ok = more() {
		for i := range window {
			msg[0], msg[1] = byte(i>>8), byte(i)
			if _, err := c.Write(msg); err != nil {
				return err
			}
		}
		for range window {
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			if n < 12 || buf[3]&0xf != 0 || buf[7] != 1 {
				return fmt.Errorf("a wrong answer: %x", buf[:n])
			}
		}
	}
	return nil
}

// processCPU is the CPU time that a process has used, in seconds.
func processCPU(pid int) (float64, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	var sum float64
	for _, path := range tasks {
		text, rerr := os.ReadFile(path)
		if f := strings.Fields(string(text)); rerr == nil && len(f) == 3 {
			ns, perr := strconv.ParseFloat(f[0], 64)
			if perr != nil {
				return 0, perr
			}
			sum += ns / 1e9
		}
	}
	if len(tasks) == 0 {
		err = fmt.Errorf("process %d has ended", pid)
	}
	return sum, err
}
