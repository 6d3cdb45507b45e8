package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	// maxProcFile bounds what is read of one file of the kernel's.
	maxProcFile = 1 << 20
	// maxGroups bounds the groups below a container's own, which a program in it may make where it can.
	maxGroups = 1000
	// maxInterfaces bounds the interfaces that are reported of one container.
	maxInterfaces = 256
)

// running returns the container's unit and the number of its first process.
func (c *controller) running(ctx context.Context) (*unit, int, error) {
	u, err := c.find(ctx)
	if err != nil {
		return nil, 0, err
	}
	status, ok := u.describe()
	if !ok {
		return nil, 0, c.notFound()
	}
	if status.State != runtime.Running {
		return nil, 0, runtime.NotRunning(c.id)
	}
	return u, status.PID, nil
}

// Signal implements runtime.Controller.
func (c *controller) Signal(ctx context.Context, sig syscall.Signal) error {
	u, _, err := c.running(ctx)
	if err != nil {
		return err
	}
	return u.signal(c.r.namespaced(ctx), sig)
}

// Usage implements runtime.Controller.
func (c *controller) Usage(ctx context.Context) (runtime.Usage, error) {
	_, pid, err := c.running(ctx)
	if err != nil {
		return runtime.Usage{}, err
	}
	use := runtime.Usage{At: time.Now().UTC()}
	if use.System, use.OnlineCPUs, err = systemTime("/proc/stat"); err != nil {
		return runtime.Usage{}, err
	}
	total, err := machineMemory("/proc/meminfo")
	if err != nil {
		return runtime.Usage{}, err
	}
	groups := groupsOf(cgroupRoot, c.r.cgroupPath(c.id))
	groups.fill(&use)
	if use.Memory.Limit == 0 || use.Memory.Limit > total {
		use.Memory.Limit = total
	}
	if use.Networks, err = interfaces(pid); err != nil {
		return runtime.Usage{}, err
	}
	// What was read is the container's only when it still runs: its number may be another's since.
	if _, _, err := c.running(ctx); err != nil {
		return runtime.Usage{}, err
	}
	return use, nil
}

// Processes implements runtime.Controller.
func (c *controller) Processes(ctx context.Context) ([]int, error) {
	if _, _, err := c.running(ctx); err != nil {
		return nil, err
	}
	groups := groupsOf(cgroupRoot, c.r.cgroupPath(c.id))
	return groups.processes()
}

// cgroups says where a container's groups are: on v1 one for each controller, on v2 one for all.
type cgroups struct {
	v2   bool
	root string
	path string
}

func groupsOf(root, path string) cgroups {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return cgroups{v2: err == nil, root: root, path: path}
}

// dir is the group of a controller.
func (g cgroups) dir(controller string) string {
	if g.v2 {
		return filepath.Join(g.root, g.path)
	}
	return filepath.Join(g.root, controller, g.path)
}

// fill reads the counters. A file that is not there counts nothing: kernels are built without controllers, and a group goes when
// its container does.
func (g cgroups) fill(use *runtime.Usage) {
	if g.v2 {
		g.fillUnified(use)
	} else {
		g.fillLegacy(use)
	}
	pids := g.dir("pids")
	use.Processes = number(pids, "pids.current")
	use.MaxProcesses = number(pids, "pids.max")
}

func (g cgroups) fillLegacy(use *runtime.Usage) {
	acct, cpu, mem := g.dir("cpuacct"), g.dir("cpu"), g.dir("memory")
	use.CPU.Total = number(acct, "cpuacct.usage")
	for _, f := range strings.Fields(text(acct, "cpuacct.usage_percpu")) {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			break
		}
		use.CPU.PerCPU = append(use.CPU.PerCPU, n)
	}
	ticks := table(acct, "cpuacct.stat")
	use.CPU.User, use.CPU.Kernel = ticks["user"]*nanosPerTick, ticks["system"]*nanosPerTick
	limited := table(cpu, "cpu.stat")
	use.CPU.Periods, use.CPU.Throttled, use.CPU.Withheld = limited["nr_periods"], limited["nr_throttled"], limited["throttled_time"]
	use.Memory = runtime.MemoryUsage{
		Usage: number(mem, "memory.usage_in_bytes"), Max: number(mem, "memory.max_usage_in_bytes"), Limit: number(mem, "memory.limit_in_bytes"),
		Failures: number(mem, "memory.failcnt"), Detail: table(mem, "memory.stat"),
	}
	blk := g.dir("blkio")
	devices := map[[2]uint64]*runtime.BlockUsage{}
	// The scheduler's own count is complete where it counts at all; throttling counts where it does not.
	for _, names := range [][2]string{{"blkio.bfq.io_service_bytes_recursive", "blkio.bfq.io_serviced_recursive"},
		{"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"}} {
		if len(devices) > 0 {
			break
		}
		legacyBlocks(text(blk, names[0]), devices, func(b *runtime.BlockUsage) (*uint64, *uint64) { return &b.ReadBytes, &b.WrittenBytes })
		legacyBlocks(text(blk, names[1]), devices, func(b *runtime.BlockUsage) (*uint64, *uint64) { return &b.Reads, &b.Writes })
	}
	use.Block = sortedBlocks(devices)
}

// legacyBlocks reads lines such as "8:0 Read 4096".
func legacyBlocks(lines string, devices map[[2]uint64]*runtime.BlockUsage, counters func(*runtime.BlockUsage) (read, write *uint64)) {
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) != 3 || f[1] != "Read" && f[1] != "Write" {
			continue
		}
		b := device(devices, f[0])
		n, err := strconv.ParseUint(f[2], 10, 64)
		if b == nil || err != nil {
			continue
		}
		read, write := counters(b)
		if f[1] == "Read" {
			*read = n
		} else {
			*write = n
		}
	}
}

func (g cgroups) fillUnified(use *runtime.Usage) {
	dir := g.dir("")
	cpu := table(dir, "cpu.stat")
	use.CPU.Total, use.CPU.User, use.CPU.Kernel = cpu["usage_usec"]*1000, cpu["user_usec"]*1000, cpu["system_usec"]*1000
	use.CPU.Periods, use.CPU.Throttled, use.CPU.Withheld = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_usec"]*1000
	use.Memory = runtime.MemoryUsage{
		Usage: number(dir, "memory.current"), Max: number(dir, "memory.peak"), Limit: number(dir, "memory.max"), Failures: table(dir, "memory.events")["oom"],
		Detail: table(dir, "memory.stat"),
	}
	devices := map[[2]uint64]*runtime.BlockUsage{}
	for line := range strings.Lines(text(dir, "io.stat")) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		b := device(devices, f[0])
		if b == nil {
			continue
		}
		for _, pair := range f[1:] {
			key, value, _ := strings.Cut(pair, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if to := map[string]*uint64{"rbytes": &b.ReadBytes, "wbytes": &b.WrittenBytes, "rios": &b.Reads, "wios": &b.Writes}[key]; to != nil && err == nil {
				*to = n
			}
		}
	}
	use.Block = sortedBlocks(devices)
}

// device finds or makes the entry of "major:minor"; nil when it is no device.
func device(devices map[[2]uint64]*runtime.BlockUsage, name string) *runtime.BlockUsage {
	major, minor, ok := strings.Cut(name, ":")
	a, err := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err != nil || err2 != nil {
		return nil
	}
	key := [2]uint64{a, b}
	if devices[key] == nil {
		devices[key] = &runtime.BlockUsage{Major: a, Minor: b}
	}
	return devices[key]
}

func sortedBlocks(devices map[[2]uint64]*runtime.BlockUsage) []runtime.BlockUsage {
	var out []runtime.BlockUsage
	for _, b := range devices {
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b runtime.BlockUsage) int {
		return slices.Compare([]uint64{a.Major, a.Minor}, []uint64{b.Major, b.Minor})
	})
	return out
}

// processes are those of the container's group and of the groups that it made below.
func (g cgroups) processes() ([]int, error) {
	var out []int
	groups := 0
	err := filepath.WalkDir(g.dir("pids"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it went meanwhile
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		if groups++; groups > maxGroups {
			return fs.SkipAll
		}
		for _, f := range strings.Fields(text(path, "cgroup.procs")) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes of a container: %w", err)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// nanosPerTick is what the kernel counts processor time in for users, which is 10 ms on every Linux that Go runs on.
const nanosPerTick = 10_000_000

// systemTime is the time that all processors have spent, in any state, and how many there are.
func systemTime(path string) (nanos uint64, cpus int, err error) {
	data, err := readBounded(path)
	if err != nil {
		return 0, 0, fmt.Errorf("read the machine's processor time: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		// The times in guests, which come after these, are counted in the users' already.
		for _, v := range f[1:min(len(f), 9)] {
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				return 0, 0, fmt.Errorf("read the machine's processor time: %w", err)
			}
			nanos += n * nanosPerTick
		}
	}
	return nanos, cpus, nil
}

func machineMemory(path string) (uint64, error) {
	data, err := readBounded(path)
	if err != nil {
		return 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
			kb, err := strconv.ParseUint(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("read the machine's memory: there is no MemTotal")
}

// interfaces reads the counters of a process's network namespace, unless that is this program's.
func interfaces(pid int) (map[string]runtime.InterfaceUsage, error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	var own, its unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/self/ns/net", &own), unix.Stat(filepath.Join(proc, "ns/net"), &its)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // it has ended
		}
		return nil, fmt.Errorf("look at a container's network: %w", err)
	}
	if own.Dev == its.Dev && own.Ino == its.Ino {
		return nil, nil
	}
	data, err := readBounded(filepath.Join(proc, "net/dev"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a container's network counters: %w", err)
	}
	return interfaceTable(string(data)), nil
}

// interfaceTable reads the kernel's table: name: eight counters received, eight sent.
func interfaceTable(data string) map[string]runtime.InterfaceUsage {
	out := map[string]runtime.InterfaceUsage{}
	for line := range strings.Lines(data) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || len(f) < 12 || name == "lo" || len(out) >= maxInterfaces {
			continue
		}
		var n [12]uint64
		for i := range n {
			n[i], _ = strconv.ParseUint(f[i], 10, 64)
		}
		out[name] = runtime.InterfaceUsage{RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3], TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11]}
	}
	return out
}

// text is a file's content, "" when it cannot be read.
func text(dir, name string) string {
	data, err := readBounded(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// number is a file's one number, 0 when it has none, such as "max".
func number(dir, name string) uint64 {
	n, err := strconv.ParseUint(text(dir, name), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// table reads lines of "name value".
func table(dir, name string) map[string]uint64 {
	out := map[string]uint64{}
	for s := bufio.NewScanner(strings.NewReader(text(dir, name))); s.Scan(); {
		if key, value, ok := strings.Cut(s.Text(), " "); ok {
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				out[key] = n
			}
		}
	}
	return out
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}
