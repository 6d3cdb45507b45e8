package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// handlesTERM waits until a container's program has a handler for SIGTERM or ignores it. For a moment after the start the
// process is still the OCI runtime's, which handles every signal.
func handlesTERM(ctx context.Context, pid int) error {
	return poll(ctx, func() (bool, error) {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if err != nil {
			return false, fmt.Errorf("look at the container's process: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			name, mask, _ := strings.Cut(strings.TrimSpace(line), ":")
			if name == "Name" && strings.HasPrefix(strings.TrimSpace(mask), "runc") {
				return false, nil
			}
			if name != "SigCgt" && name != "SigIgn" {
				continue
			}
			bits, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			if err == nil && bits&(1<<(syscall.SIGTERM-1)) != 0 {
				return true, nil
			}
		}
		return false, nil
	})
}

// awaitEnd waits until a container's first process has ended, while no daemon watches it.
func awaitEnd(ctx context.Context, h Host, id string, pid int) error {
	if e, ok := h.(interface {
		AwaitEnd(context.Context, string) error
	}); ok {
		return e.AwaitEnd(ctx, id)
	}
	return poll(ctx, func() (bool, error) {
		_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
		return os.IsNotExist(err), nil
	})
}

// poll asks until the answer is yes.
func poll(ctx context.Context, ask func() (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
