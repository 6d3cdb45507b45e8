package ports

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFlows bounds the clients of one udp port; datagrams of further
	// ones are dropped.
	maxFlows = 512
	// flowIdle is how long a flow is kept without traffic.
	flowIdle = 90 * time.Second
)

// A udpProxy carries datagrams from [::1] to 127.0.0.1 and back.
type udpProxy struct {
	conn   *net.UDPConn
	target *net.UDPAddr
	wg     sync.WaitGroup

	mu      sync.Mutex
	flows   map[netip.AddrPort]*net.UDPConn
	stopped bool
}

// run reads until the socket is closed.
func (u *udpProxy) run() {
	defer u.wg.Done()
	var buf []byte
	for {
		if err := waitReadable(u.conn); errors.Is(err, net.ErrClosed) {
			return
		}
		if buf == nil {
			buf = make([]byte, 64<<10) // only once there is traffic
		}
		n, from, err := u.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an earlier answer could not be delivered
		}
		if !from.Addr().IsLoopback() {
			continue
		}
		if flow := u.flow(from); flow != nil {
			flow.SetReadDeadline(time.Now().Add(flowIdle))
			flow.Write(buf[:n]) // a datagram may be lost
		}
	}
}

// flow returns the socket that stands for a client, or nil.
func (u *udpProxy) flow(client netip.AddrPort) *net.UDPConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flows[client]; f != nil || u.stopped || len(u.flows) >= maxFlows {
		return f
	}
	f, err := net.DialUDP("udp4", nil, u.target)
	if err != nil {
		return nil
	}
	u.flows[client] = f
	u.wg.Add(1)
	go u.answers(f, client)
	return f
}

// answers carries a flow's replies back until it is idle or refused.
func (u *udpProxy) answers(f *net.UDPConn, client netip.AddrPort) {
	defer u.wg.Done()
	defer func() {
		u.mu.Lock()
		delete(u.flows, client)
		u.mu.Unlock()
		f.Close()
	}()
	var buf []byte
	for {
		if err := waitReadable(f); err != nil {
			return
		}
		if buf == nil {
			buf = make([]byte, 64<<10)
		}
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		f.SetReadDeadline(time.Now().Add(flowIdle))
		u.conn.WriteToUDPAddrPort(buf[:n], client)
	}
}

// stop ends all flows and joins them.
func (u *udpProxy) stop() {
	u.conn.Close()
	u.mu.Lock()
	u.stopped = true
	for _, f := range u.flows {
		f.Close()
	}
	u.mu.Unlock()
	u.wg.Wait()
}

// waitReadable waits, without holding a buffer, until there is something to
// read, or returns the socket's error.
func waitReadable(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peek [1]byte
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		_, _, failed = unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err != nil {
		return err
	}
	return failed
}

func newUDPProxy(c *net.UDPConn, port int) *udpProxy {
	return &udpProxy{
		conn:   c,
		target: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port},
		flows:  make(map[netip.AddrPort]*net.UDPConn),
	}
}
