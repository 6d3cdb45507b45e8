package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
)

// All labs keep their groups below one group, a lab below that has a group named
// after its process, so that a later lab can remove what a killed one left.
const labsGroup = "skep-lab"

// initGroup is the sub-group of a host in which its pid 1 and all Commands sit.
const initGroup = "init"

// groupMount is one mounted cgroup hierarchy.
type groupMount struct {
	Path    string // where it is mounted
	Type    string // "cgroup" or "cgroup2"
	Options string // what to mount it with: its controllers or name
	root    string // what of the hierarchy is mounted, "/" for all
}

// cgroupMounts lists the machine's cgroup hierarchies, each once.
func cgroupMounts() ([]groupMount, error) {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("listing cgroup mounts: %w", err)
	}
	var mounts []groupMount
	seen := map[string]bool{}
	for _, m := range infos {
		var opts []string
		for _, o := range strings.Split(m.VFSOptions, ",") {
			// Other options (release_agent, nsdelegate, …) belong to the machine.
			if o != "rw" && o != "ro" && m.FSType == "cgroup" && !strings.Contains(o, "release_agent") &&
				o != "xattr" && o != "clone_children" && o != "noprefix" {
				opts = append(opts, o)
			}
		}
		key := m.FSType + strings.Join(opts, ",")
		if seen[key] || !strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup") {
			continue
		}
		seen[key] = true
		mounts = append(mounts, groupMount{Path: m.Mountpoint, Type: m.FSType, Options: strings.Join(opts, ","), root: m.Root})
	}
	return mounts, nil
}

// makeLabGroup makes the lab's group in every hierarchy and returns its path below
// the hierarchies' roots.
func makeLabGroup(name string) (string, error) {
	id := filepath.Join(labsGroup, strconv.Itoa(os.Getpid())+"-"+name)
	return id, makeGroup(id)
}

// makeGroup makes a group with its parents in every hierarchy.
func makeGroup(group string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		dir := m.Path
		for _, part := range strings.Split(group, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			// Where v2 is the only tree, controllers must be handed down. Best effort:
			// one that cannot be is missing below, and whoever needs it says so. A
			// host's own group hands nothing to "init": pid 1 enters it first, and a
			// group that hands controllers on takes no process.
			if m.Path == "/sys/fs/cgroup" && part != initGroup {
				delegateControllers(parent)
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := inheritCpuset(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func delegateControllers(dir string) {
	names, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, name := range strings.Fields(string(names)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0)
	}
}

// inheritCpuset fills a new v1 cpuset group, which takes no process while it is empty.
func inheritCpuset(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		want, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil || len(bytes.TrimSpace(want)) == 0 {
			continue // cgroup v2: empty means the parent's
		}
		if err := os.WriteFile(filepath.Join(dir, file), want, 0); err != nil {
			return err
		}
	}
	return nil
}

// joinGroup moves a process into a group in every hierarchy.
func joinGroup(group string, pid int) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		file := filepath.Join(m.Path, group, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("joining a cgroup: %w", err)
		}
	}
	return nil
}

// groupGrace is how long the kernel may take to let go of a dead process's group.
const groupGrace = 5 * time.Second

// removeGroups removes a group and all below it in every hierarchy, deepest first.
func removeGroups(group string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		errs = append(errs, removeTree(filepath.Join(m.Path, group)))
		// The common parent goes when the last lab has gone; until then this fails.
		_ = os.Remove(filepath.Join(m.Path, labsGroup))
	}
	return errors.Join(errs...)
}

func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	deadline := time.Now().Add(groupGrace)
	for _, dir := range slices.Backward(dirs) {
		for {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
				return err
			}
			time.Sleep(2 * time.Millisecond) // no event tells when a group is free
		}
	}
	return nil
}

// sweepGroups removes the groups of labs whose process has died.
func sweepGroups() error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		entries, err := os.ReadDir(filepath.Join(m.Path, labsGroup))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			owner, _, _ := strings.Cut(e.Name(), "-")
			pid, err := strconv.Atoi(owner)
			if err != nil || !e.IsDir() || syscall.Kill(pid, 0) == nil {
				continue
			}
			if err := removeTree(filepath.Join(m.Path, labsGroup, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
