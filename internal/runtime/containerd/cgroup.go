package containerd

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroupParent is the group that holds this instance's containers, in every hierarchy.
func (r *Runtime) cgroupParent() string { return filepath.Join("/skep", r.cfg.Instance) }

func (r *Runtime) cgroupPath(id string) string { return filepath.Join(r.cgroupParent(), id) }

// oomKilled reports whether the kernel killed a process of the container for lack of memory. The counter stays readable
// after the last process has gone, until runc removes the group, so it answers for deaths nobody watched.
func (r *Runtime) oomKilled(id string) bool {
	return counter(filepath.Join(cgroupRoot, "memory", r.cgroupPath(id), "memory.oom_control"), "oom_kill") > 0 ||
		counter(filepath.Join(cgroupRoot, r.cgroupPath(id), "memory.events"), "oom_kill") > 0
}

// counter reads "name value" from a cgroup file; 0 when the file or the name is not there.
func counter(path, name string) int64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if key, value, ok := bytes.Cut(s.Bytes(), []byte(" ")); ok && string(key) == name {
			n, _ := strconv.ParseInt(string(value), 10, 64)
			return n
		}
	}
	return 0
}

// hierarchies are the mount points that can hold our groups: each controller's on v1, the one on v2.
func hierarchies() []string {
	dirs := []string{cgroupRoot}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return dirs
	}
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return dirs
}

// removeCgroupParents removes the instance's empty groups, deepest first. A group that is in use stays: the kernel refuses.
func (r *Runtime) removeCgroupParents() {
	for _, dir := range hierarchies() {
		_ = os.Remove(filepath.Join(dir, r.cgroupParent()))
		_ = os.Remove(filepath.Join(dir, "skep"))
	}
}

// hasSwapLimit reports whether the kernel can limit swap here; asking for it otherwise is an error from runc.
func hasSwapLimit() bool {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "memory", "memory.memsw.limit_in_bytes")); err == nil {
		return true
	}
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err != nil {
		return false
	}
	found, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", "memory.swap.max"))
	return len(found) > 0
}

// unified reports whether the host has only cgroup v2.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}
