package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// A Host is one machine of a lab. Its methods may be called from several
// goroutines at once; Boot, Crash and PowerLoss wait for each other.
type Host struct {
	lab    *Lab
	name   string
	number int
	dir    string

	power sync.Mutex // held while the host boots or dies

	mu    sync.Mutex
	init  *process // pid 1, nil while the host is down
	net   netns.NsHandle
	space uint64 // inode of net
}

// Name is the host's name, inside and outside.
func (h *Host) Name() string { return h.name }

// Addr4 is the host's address on the bridge.
func (h *Host) Addr4() netip.Addr { return hostAddr(Subnet4, h.number).Addr() }

// Addr6 is the host's IPv6 address on the bridge.
func (h *Host) Addr6() netip.Addr { return hostAddr(Subnet6, h.number).Addr() }

// Group is the path of the host's cgroup below the root of each hierarchy. What is
// started by Command sits in its sub-group "init"; the host sees it as "/init".
func (h *Host) Group() string { return filepath.Join(h.lab.id, h.name) }

// Path returns where a file of the host is seen from outside, sockets in its /run
// too. It is valid until the host goes down.
func (h *Host) Path(inside string) string {
	return filepath.Join("/proc", strconv.Itoa(h.Pid()), "root", inside)
}

// Pid is the pid of the host's pid 1 as seen from outside, 0 while the host is down.
func (h *Host) Pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init == nil {
		return 0
	}
	return h.init.pid
}

// bootConfig is what pid 1 is told on its standard input.
type bootConfig struct {
	Name   string
	Dir    string
	Groups []groupMount
	Hosts  string
}

// Boot starts a host that is down. Files in its data root are as they were; its
// /run is empty, as after a real boot. ctx bounds the boot.
func (h *Host) Boot(ctx context.Context) (err error) {
	h.power.Lock()
	defer h.power.Unlock()
	if h.Pid() != 0 {
		return errors.New("the host is up already")
	}
	if err := os.MkdirAll(filepath.Join(h.dir, "data"), 0o755); err != nil {
		return err
	}
	// What the host left in its groups before it went down is not there after a boot.
	if err := removeGroups(h.Group()); err != nil {
		return err
	}
	if err := makeGroup(filepath.Join(h.Group(), initGroup)); err != nil {
		return err
	}
	groups, err := cgroupMounts()
	if err != nil {
		return err
	}
	ready, pid1, err := h.startInit(bootConfig{Name: h.name, Dir: h.dir, Groups: groups, Hosts: h.hostsFile()})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.kill())
		}
	}()
	h.mu.Lock()
	h.init = pid1
	h.mu.Unlock()
	if err := awaitReady(ctx, ready); err != nil {
		return err
	}
	ns, err := netns.GetFromPid(pid1.pid)
	if err != nil {
		return err
	}
	space, err := networkInode(pid1.pid)
	if err != nil {
		ns.Close()
		return err
	}
	h.mu.Lock()
	h.net, h.space = ns, space
	h.mu.Unlock()
	return h.plugIn(ns)
}

// startInit starts pid 1 in its namespaces and cgroups, and tells it what to be.
func (h *Host) startInit(cfg bootConfig) (io.ReadCloser, *process, error) {
	told, err := json.Marshal(cfg)
	if err != nil {
		return nil, nil, err
	}
	toldR, toldW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer toldR.Close()
	defer toldW.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer readyW.Close()
	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   []string{argInit, h.name},
		Env:    []string{"PATH=" + os.Getenv("PATH")},
		Stdin:  toldR,
		Stdout: readyW,
		Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
			Setsid:     true,
			// If this process dies, its hosts must not live on.
			Pdeathsig: syscall.SIGKILL,
		},
	}
	pid1, err := start(cmd)
	if err != nil {
		readyR.Close()
		return nil, nil, fmt.Errorf("starting pid 1: %w", err)
	}
	// The groups must be joined before pid 1 makes its cgroup namespace, and it
	// does so once it has been told what to be.
	if err = joinGroup(h.Group(), pid1.pid); err == nil {
		_, err = toldW.Write(told)
	}
	if err != nil {
		readyR.Close()
		return nil, nil, errors.Join(err, pid1.kill())
	}
	return readyR, pid1, nil
}

// awaitReady waits for pid 1 to say that its mounts are made, or what went wrong.
func awaitReady(ctx context.Context, ready io.ReadCloser) error {
	defer ready.Close()
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	answer, err := io.ReadAll(io.LimitReader(ready, 4096))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if string(answer) != readyWord {
		return fmt.Errorf("pid 1 says: %q", answer)
	}
	return nil
}

// plugIn gives the host its cable, addresses, routes and the mark that it is a lab's.
func (h *Host) plugIn(ns netns.NsHandle) error {
	sw, err := netlink.NewHandleAt(h.lab.bridge)
	if err != nil {
		return err
	}
	defer sw.Close()
	br, err := sw.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	// The other end of a host that died may still be on its way out.
	if old, err := sw.LinkByName(h.cable()); err == nil {
		if err := sw.LinkDel(old); err != nil {
			return err
		}
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: h.cable(), MasterIndex: br.Attrs().Index},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(int(ns)),
	}
	if err := sw.LinkAdd(veth); err != nil {
		return fmt.Errorf("making the cable: %w", err)
	}
	if err := sw.LinkSetUp(veth); err != nil {
		return err
	}
	return h.configure(ns)
}

func (h *Host) configure(ns netns.NsHandle) error {
	nl, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := errors.Join(nl.LinkSetUp(lo), nl.LinkSetUp(eth)); err != nil {
		return err
	}
	for _, subnet := range []string{Subnet4, Subnet6} {
		addr, err := netlink.ParseAddr(hostAddr(subnet, h.number).String())
		if err != nil {
			return err
		}
		addr.Flags = ifaNoDAD
		if err := nl.AddrAdd(eth, addr); err != nil {
			return err
		}
		gw := hostAddr(subnet, 1).Addr().AsSlice()
		if err := nl.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gw}); err != nil {
			return fmt.Errorf("adding the default route: %w", err)
		}
	}
	mark, err := markOf(ns)
	if err != nil {
		return err
	}
	return nl.LinkSetAlias(lo, mark)
}

// cable is the name of the bridge's end of the host's link.
func (h *Host) cable() string { return "h" + strconv.Itoa(h.number) }

// hostsFile names every host that the lab has so far.
func (h *Host) hostsFile() string {
	text := "127.0.0.1 localhost\n::1 localhost\n"
	for _, o := range h.lab.Hosts() {
		text += fmt.Sprintf("%s %s\n%s %s\n", o.Addr4(), o.name, o.Addr6(), o.name)
	}
	return text
}

// LinkDown pulls the host's cable: its peers get no packet more, not even a FIN.
func (h *Host) LinkDown() error { return h.setCable(false) }

// LinkUp puts the cable back.
func (h *Host) LinkUp() error { return h.setCable(true) }

func (h *Host) setCable(up bool) error {
	sw, err := netlink.NewHandleAt(h.lab.bridge)
	if err != nil {
		return fmt.Errorf("lab: cable of %s: %w", h.name, err)
	}
	defer sw.Close()
	link, err := sw.LinkByName(h.cable())
	if err == nil && up {
		err = sw.LinkSetUp(link)
	} else if err == nil {
		err = sw.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("lab: cable of %s: %w", h.name, err)
	}
	return nil
}

// Crash kills the host's pid 1 and with it all its processes, and returns when they
// are gone. The kernel still closes their connections, so peers notice at once; for
// a silent death use PowerLoss. A host that is down stays so.
func (h *Host) Crash() error {
	h.power.Lock()
	defer h.power.Unlock()
	if err := h.kill(); err != nil {
		return fmt.Errorf("lab: crashing %s: %w", h.name, err)
	}
	return nil
}

// PowerLoss pulls the cable before it kills the host: its peers see silence. The
// cable is new when the host boots again.
func (h *Host) PowerLoss() error {
	if h.Pid() == 0 {
		return nil
	}
	return errors.Join(h.LinkDown(), h.Crash())
}

func (h *Host) kill() error {
	h.mu.Lock()
	pid1, ns, space := h.init, h.net, h.space
	h.init, h.net = nil, 0
	h.mu.Unlock()
	if pid1 == nil {
		return nil
	}
	err := pid1.kill()
	if ns > 0 {
		err = errors.Join(err, awaitEmpty(space), ns.Close())
	}
	return err
}

// A process is a child that is waited for by the thread that started it.
type process struct {
	pid  int
	done chan struct{} // closed when it has been reaped
	cmd  *exec.Cmd
	err  error // of the wait; read after done
}

// start starts a command on a thread that stays until the command has ended: a
// parent-death signal is sent when the *thread* that started a child ends, and
// Go's threads come and go.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{}), cmd: cmd}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	return p, <-started
}

// kill kills the process and waits for it. Pid 1 of a host is reaped only after the
// kernel has killed everything in its namespace.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		return p.err
	}
	return nil
}
