package cli

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// raw is an HTTP client for the routes that Docker's client has no word for. It speaks over a unix socket only, so on
// the daemon's machine; the daemon serves them on all its listeners.
func (c *cli) raw() (*http.Client, string, *peer, error) {
	proto, addr, ok := strings.Cut(c.address(), "://")
	if !ok || proto != "unix" {
		return nil, "", nil, usageError{fmt.Errorf("this command works on the machine of the daemon only: use -H unix://… (it is %s)", c.address())}
	}
	p := new(peer)
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", addr)
			if err == nil {
				p.look(conn)
			}
			return conn, err
		},
	}}, "http://skep", p, nil
}

// peer is the process at the other end of the socket.
type peer struct{ fd atomic.Int64 } // a pidfd; 0 when it is unknown

// look remembers the daemon's process by a descriptor, which no later process can be taken for.
func (p *peer) look(conn net.Conn) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || cred.Pid == 0 {
			return
		}
		if pidfd, err := unix.PidfdOpen(int(cred.Pid), 0); err == nil {
			p.fd.Store(int64(pidfd))
		}
	})
}

const (
	// exitTimeout is how long a daemon that has said goodbye may take to end.
	exitTimeout = 20 * time.Second
	// reapTimeout is how long its parent may take to note that, before it is no matter of ours any more.
	reapTimeout = 2 * time.Second
)

// awaitExit waits until the process is gone, also from the lists of processes.
func (p *peer) awaitExit(ctx context.Context) error {
	fd := int(p.fd.Load())
	if fd == 0 {
		return nil
	}
	defer unix.Close(fd)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit, ended := time.After(exitTimeout), false
	for unix.PidfdSendSignal(fd, 0, nil, 0) != unix.ESRCH {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n > 0 && !ended {
			limit, ended = time.After(reapTimeout), true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit:
			if ended {
				return nil
			}
			return fmt.Errorf("the daemon did not end within %s", exitTimeout)
		case <-tick.C:
		}
	}
	return nil
}
