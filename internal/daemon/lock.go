package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/durable"
)

// lockRoot takes the data root for this process. The lock goes with the process, however it ends.
func lockRoot(cfg *Config) (*os.File, error) {
	if err := durable.MkdirAll(cfg.DataRoot, 0o711); err != nil {
		return nil, fmt.Errorf("data root: %w", err)
	}
	f, err := os.OpenFile(cfg.data("skep.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data root: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data root %s is in use by another skep daemon (pid %s): stop it, or give this one its own --data-root and --exec-root", cfg.DataRoot, holder(f))
		}
		return nil, fmt.Errorf("lock the data root: %w", err)
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data root: %w", err), f.Close())
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data root: %w", err), f.Close())
	}
	return f, nil
}

func holder(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}

// writePid writes the pid file and returns what removes it.
func writePid(path string) (remove func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d", os.Getpid()), 0o644); err != nil {
		return nil, fmt.Errorf("pid file: %w", err)
	}
	return func() { os.Remove(path) }, nil
}
