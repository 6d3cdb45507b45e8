// Command netbench measures what virtual addresses and published ports cost: new connections a second and throughput
// through them, each as a ratio to the direct way in the same run.
//
// It runs itself again in network and mount namespaces of its own, makes a client's machine, a host and two tasks there
// with package netapply, and sends traffic between those only. It refuses to send anything when it is not in a
// namespace of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

const (
	insideEnv = "SKEP_NETBENCH_OUTSIDE" // holds the namespace that the first process was in
	rounds    = 7
	perRound  = 3000                   // connections
	flowTime  = 400 * time.Millisecond // of one round of throughput
	port      = 8080
)

func main() {
	err := errors.New("it needs root: it makes network namespaces")
	switch {
	case os.Getenv(insideEnv) != "":
		err = inside(context.Background())
	case os.Geteuid() == 0:
		err = outside()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}

// outside runs the program again in namespaces of its own.
func outside() error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	// Go's own signals would interrupt calls that wait with a limit.
	cmd.Env = append(os.Environ(), insideEnv+"="+own, "GODEBUG=asyncpreemptoff=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

// A way is one path that is measured.
type way struct {
	name   string
	from   int // the client's namespace
	to     netip.AddrPort
	direct string // the way it is compared with; empty for one that is itself direct
	conns  []float64
	bytes  []float64
}

func inside(ctx context.Context) error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil || own == os.Getenv(insideEnv) {
		return fmt.Errorf("not in a network namespace of its own (%s), so nothing is sent: %w", own, err)
	}
	w, err := build(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.serve(); err != nil {
		return err
	}
	ways := w.ways()
	for range rounds {
		for _, v := range ways { // in turns, so that other work of the machine meets all
			n, err := connections(v)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			b, err := throughput(v)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			v.conns, v.bytes = append(v.conns, n), append(v.bytes, b)
		}
	}
	return report(ways)
}

func report(ways []*way) error {
	fmt.Printf("TCP in namespaces of this machine, medians of %d rounds in turns (×: ratio to the direct way)\n\n", rounds)
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "\tnew connections/s\t×\tGB/s\t×\t")
	byName := map[string]*way{}
	for _, v := range ways {
		byName[v.name] = v
		fmt.Fprintf(out, "%s\t%.0f\t", v.name, median(v.conns))
		if d := byName[v.direct]; d != nil {
			fmt.Fprintf(out, "%.2f\t%.2f\t%.2f\t\n", median(v.conns)/median(d.conns), median(v.bytes)/1e9, median(v.bytes)/median(d.bytes))
		} else {
			fmt.Fprintf(out, "-\t%.2f\t-\t\n", median(v.bytes)/1e9)
		}
	}
	return out.Flush()
}

func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return s[len(s)/2]
}

// onNS runs f on a thread in a namespace. The sockets that it makes stay there.
func onNS(ns int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter a namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// connections makes connections one after another; each waits for one byte, so that the server has taken it up, and is
// reset, so that no port is kept. It returns how many a second.
func connections(v *way) (rate float64, err error) {
	err = onNS(v.from, func() error {
		start := time.Now()
		for range perRound {
			fd, err := dial(v.to, 'c')
			if err != nil {
				return err
			}
			var b [1]byte
			n, err := unix.Read(fd, b[:])
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(fd)
			if n != 1 || err != nil {
				return fmt.Errorf("no answer: %w", err)
			}
		}
		rate = perRound / time.Since(start).Seconds()
		return nil
	})
	return rate, err
}

// throughput reads from one connection for a while and returns bytes a second.
func throughput(v *way) (rate float64, err error) {
	err = onNS(v.from, func() error {
		fd, err := dial(v.to, 't')
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		buf := make([]byte, 256<<10)
		total, start := 0, time.Now()
		for time.Since(start) < flowTime {
			n, err := unix.Read(fd, buf)
			if n <= 0 || err != nil {
				return fmt.Errorf("the stream ended: %w", err)
			}
			total += n
		}
		rate = float64(total) / time.Since(start).Seconds()
		return nil
	})
	return rate, err
}

// dial connects and says what it wants: 'c' a byte, 't' a stream.
func dial(to netip.AddrPort, want byte) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	limit := unix.Timeval{Sec: 5}
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err == nil {
		_, err = unix.Write(fd, []byte{want})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %v: %w", to, err)
	}
	return fd, nil
}
