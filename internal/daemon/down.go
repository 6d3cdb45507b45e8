package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Down stops the tasks, leaves the swarm, ends the keeper and then the daemon, whose API layer
// ends when it sees that the ones below it did.
func (b *backend) Down(ctx context.Context, step func(string)) error {
	if b.active() != nil {
		step("stopping tasks and leaving the swarm …")
		if err := b.LeaveSwarm(ctx, true); err != nil {
			return err
		}
	}
	step("ending the daemon …")
	return errors.Join(b.clear(ctx), b.below(), b.shutdown(ctx))
}

// shutdown ends what outlives the daemon; the parts of the host must not run any more.
func (h *host) shutdown(ctx context.Context) error {
	err := errors.Join(h.keeper.Shutdown(ctx), h.network.Close(), h.vault.Clear(), removeCgroups("/skep/"+h.cfg.Instance()))
	for _, dir := range []string{"keeper", "containerd", "netns"} {
		err = errors.Join(err, removeUnmounted(h.cfg.exec(dir)))
	}
	return err
}

// removeUnmounted removes a directory in which nothing is mounted: removing what is would delete files of containers, volumes or the host.
func removeUnmounted(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mounted, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return fmt.Errorf("read the mounts: %w", err)
	}
	if len(mounted) > 0 {
		return fmt.Errorf("%s is left, for something is mounted at %s: unmount that first", dir, mounted[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}

// removeCgroups removes a group and all below it from every hierarchy, and its parent if it was
// the last in it. The kernel removes only what is empty.
func removeCgroups(group string) error {
	const root = "/sys/fs/cgroup"
	hierarchies, err := filepath.Glob(filepath.Join(root, "*", filepath.Dir(group)))
	if err != nil {
		return fmt.Errorf("remove cgroups: %w", err)
	}
	if _, err := os.Stat(filepath.Join(root, filepath.Dir(group))); err == nil {
		hierarchies = append(hierarchies, filepath.Join(root, filepath.Dir(group)))
	}
	var errs []error
	for _, parent := range hierarchies {
		errs = append(errs, removeTree(filepath.Join(parent, filepath.Base(group))))
		_ = os.Remove(parent) // stays when another daemon has its groups there
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove cgroups: %w", err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := removeGroup(d); err != nil {
			return err
		}
	}
	return nil
}

// groupTimeout is how long a process that was told to end may keep its group busy.
const groupTimeout = 5 * time.Second

// removeGroup waits for the last process in a group to be gone: the kernel tells nobody.
func removeGroup(dir string) error {
	for deadline := time.Now().Add(groupTimeout); ; time.Sleep(5 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}
