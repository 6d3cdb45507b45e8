package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netapply"
	"github.com/skep-swarm/skep/internal/netplan"
)

const (
	hostIP, clientIP = "192.0.2.1", "192.0.2.2"
	vip              = "10.0.1.2"
	published        = 80
	vipPort          = 8081 // another than on the direct way, whose flows are still remembered
	network          = 7
	instance         = "beefed"
)

// A world is a client's machine, a host that a wire joins to it, and two tasks on the host.
type world struct {
	dir          string
	host, client int
	net          *netapply.Network
	tasks        [2]netplan.Task
	ns           [2]int
}

// build makes the world. The process's own namespace, which is empty, is the host.
func build(ctx context.Context) (*world, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, err
	}
	w := &world{}
	var err error
	if w.dir, err = os.MkdirTemp("", "skep-netbench-"); err != nil {
		return nil, err
	}
	if err := w.fill(ctx); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) fill(ctx context.Context) error {
	var err error
	if w.host, err = unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if w.client, err = w.clientNS(); err != nil {
		return err
	}
	if w.net, err = netapply.New(netapply.Config{Dir: filepath.Join(w.dir, "netns"), HostNS: w.host}); err != nil {
		return err
	}
	pool := netip.MustParsePrefix("10.255.0.0/16")
	block, _ := netplan.Block4(pool, 1)
	link, err := netplan.ChooseLink4(nil, instance)
	if err != nil {
		return err
	}
	subnet := netip.MustParsePrefix("10.0.1.0/24")
	in := netplan.Input{
		Node: netplan.Node{Instance: instance, Link4: link, Pool4: pool, Blocks4: []netip.Prefix{block}},
		Overlays: []netplan.Overlay{{Num: network, VNI: 4097, Subnets: []netip.Prefix{subnet}, VIPs: []netplan.VIP{
			{Addr: netip.MustParseAddr(vip), Backends: []netip.Addr{netip.MustParseAddr("10.0.1.11")}},
		}}},
	}
	for i := range w.tasks {
		w.tasks[i] = netplan.Task{ID: strings.Repeat(fmt.Sprint(i+1), 64), Addr4: netip.AddrFrom4([4]byte{10, 255, 1, byte(10 + i)}),
			Nets: []netplan.Attachment{{Network: network, Addr4: netip.AddrFrom4([4]byte{10, 0, 1, byte(10 + i)})}}}
		in.Tasks = append(in.Tasks, w.tasks[i])
	}
	in.Ports = []netplan.Port{{PortKey: netplan.PortKey{Proto: netplan.TCP, Number: published},
		Backends4: []netip.AddrPort{netip.AddrPortFrom(w.tasks[1].Addr4, port)}}}
	if _, err := w.net.Sync(ctx, in); err != nil {
		return err
	}
	for i, t := range w.tasks {
		if w.ns[i], err = unix.Open(w.net.Path(t), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
	}
	return nil
}

// clientNS makes the client's machine and the wire.
func (w *world) clientNS() (int, error) {
	ns := -1
	err := onNS(w.host, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	wire := fmt.Sprintf("ip link add eth0 type veth peer name eth0 netns /proc/%d/fd/%d && ip link set lo up && ip addr add %s/24 dev eth0 && ip link set eth0 up",
		os.Getpid(), ns, hostIP)
	if err := sh(w.host, wire); err != nil {
		return ns, err
	}
	return ns, sh(ns, "ip link set lo up && ip addr add "+clientIP+"/24 dev eth0 && ip link set eth0 up")
}

func sh(ns int, line string) error {
	return onNS(ns, func() error {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
		return nil
	})
}

// close takes all of it down; what is not reached ends with the namespaces of the process.
func (w *world) close() {
	if w.net != nil {
		_ = errors.Join(w.net.Destroy(context.Background(), instance), w.net.Close())
	}
	_ = os.RemoveAll(w.dir)
}

// serve answers in the second task and on the host itself.
func (w *world) serve() error {
	for _, v := range []struct {
		ns   int
		port uint16
	}{{w.ns[1], port}, {w.ns[1], vipPort}, {w.host, port}} {
		var l net.Listener
		err := onNS(v.ns, func() (err error) {
			l, err = net.Listen("tcp4", fmt.Sprintf(":%d", v.port))
			return err
		})
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go answer(c)
			}
		}()
	}
	return nil
}

// answer gives a connection what it asks for.
func answer(c net.Conn) {
	defer c.Close()
	var want [1]byte
	if _, err := c.Read(want[:]); err != nil {
		return
	}
	if want[0] == 'c' {
		_, _ = c.Write(want[:])
		_, _ = c.Read(want[:]) // until the client is done
		return
	}
	zeros := make([]byte, 256<<10)
	for {
		if _, err := c.Write(zeros); err != nil {
			return
		}
	}
}

func (w *world) ways() []*way {
	at := func(addr string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
	}
	const overlay, host = "task to task, direct", "client to a program of the host, direct"
	return []*way{
		{name: overlay, from: w.ns[0], to: netip.AddrPortFrom(w.tasks[1].Nets[0].Addr4, port)},
		{name: "task to task, by virtual address", from: w.ns[0], to: at(vip, vipPort), direct: overlay},
		{name: host, from: w.client, to: at(hostIP, port)},
		{name: "client to task, by published port", from: w.client, to: at(hostIP, published), direct: host},
	}
}
