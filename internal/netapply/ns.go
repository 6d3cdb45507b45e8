package netapply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// onThread runs f on an operating-system thread whose network namespace f may
// change. A thread that does not find its way back is thrown away.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		err = f()
		back := unix.Setns(home, unix.CLONE_NEWNET)
		_ = unix.Close(home)
		if back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// inNS runs f on a thread inside the namespace that fd refers to.
func inNS(fd int, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// newNS makes a network namespace, holds it by a bind mount at path, and runs
// inside in it. It leaves nothing behind when it fails.
func newNS(path string, inside func() error) error {
	if err := touch(path); err != nil {
		return err
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace to %s: %w", path, err)
		}
		return inside()
	})
	if err != nil {
		return errors.Join(err, dropNS(path))
	}
	return nil
}

// touch makes an empty file to bind a namespace to.
func touch(path string) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("make namespace file %s: %w", path, err)
	}
	return unix.Close(fd)
}

// dropNS removes a namespace file with whatever is mounted on it. The
// namespace lives on while a process is in it.
func dropNS(path string) error {
	for range 16 { // mounts can be stacked
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err == unix.EINVAL || err == unix.ENOENT {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace file: %w", err)
	}
	return nil
}

// isNS tells whether a namespace is bound to path.
func isNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// sameNS tells whether two files are the same namespace.
func sameNS(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Ino == y.Ino && x.Dev == y.Dev
}

func openNS(path string) (int, error) {
	if !isNS(path) {
		return -1, fmt.Errorf("open namespace %s: %w", path, fs.ErrNotExist)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open namespace %s: %w", path, err)
	}
	return fd, nil
}

// writeSysctls brings sysctls of the calling thread's namespace to their
// values and returns how many it had to write.
func writeSysctls(list []netplan.Sysctl) (int, error) {
	n := 0
	var errs []error
	for _, s := range list {
		wrote, err := writeSysctl(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("set sysctl %s to %s: %w", s.Path, s.Value, err))
		}
		n += b2i(wrote)
	}
	return n, errors.Join(errs...)
}

// writeSysctl uses the bare system calls: every task costs some of these.
func writeSysctl(s netplan.Sysctl) (bool, error) {
	fd, err := unix.Open("/proc/sys/"+s.Path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if s.Optional && err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return false, err
	}
	if strings.TrimSpace(string(buf[:n])) == s.Value {
		return false, nil
	}
	if s.Path == "net/ipv6/conf/all/forwarding" {
		if err := keepRouterAdvertisements(); err != nil {
			return false, err
		}
	}
	_, err = unix.Pwrite(fd, []byte(s.Value), 0)
	return err == nil, err
}

// keepRouterAdvertisements lets interfaces that get their routes from router
// advertisements go on doing so when the host begins to forward: the kernel
// would stop listening, and the host would lose its default route.
func keepRouterAdvertisements() error {
	files, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, f := range files {
		if filepath.Base(filepath.Dir(f)) == "all" {
			continue
		}
		if v, err := os.ReadFile(f); err != nil || strings.TrimSpace(string(v)) != "1" {
			continue
		}
		if err := os.WriteFile(f, []byte("2"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep router advertisements on %s: %w", f, err)
		}
	}
	return nil
}
