package containerd

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/skep-swarm/skep/internal/runtime"
)

// tree writes files of a made-up /sys/fs/cgroup.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestUsageUnified(t *testing.T) {
	root := tree(t, map[string]string{
		"cgroup.controllers":        "cpu io memory pids\n",
		"skep/i/c/cpu.stat":         "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 7\nnr_throttled 3\nthrottled_usec 9\n",
		"skep/i/c/memory.current":   "5000\n",
		"skep/i/c/memory.peak":      "6000\n",
		"skep/i/c/memory.max":       "max\n",
		"skep/i/c/memory.events":    "low 0\noom 2\noom_kill 1\n",
		"skep/i/c/memory.stat":      "anon 4000\ninactive_file 1000\n",
		"skep/i/c/io.stat":          "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:1 rbytes=5\nbroken\n",
		"skep/i/c/pids.current":     "4\n",
		"skep/i/c/pids.max":         "100\n",
		"skep/i/c/cgroup.procs":     "30\n",
		"skep/i/c/sub/cgroup.procs": "20\n30\n",
	})
	g := groupsOf(root, "/skep/i/c")
	var got runtime.Usage
	g.fill(&got)
	want := runtime.Usage{
		CPU:       runtime.CPUUsage{Total: 1_500_000, User: 1_000_000, Kernel: 500_000, Periods: 7, Throttled: 3, Withheld: 9000},
		Memory:    runtime.MemoryUsage{Usage: 5000, Max: 6000, Failures: 2, Detail: map[string]uint64{"anon": 4000, "inactive_file": 1000}},
		Block:     []runtime.BlockUsage{{Major: 7, Minor: 1, ReadBytes: 5}, {Major: 8, ReadBytes: 10, WrittenBytes: 20, Reads: 1, Writes: 2}},
		Processes: 4, MaxProcesses: 100,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if pids, err := g.processes(); err != nil || !reflect.DeepEqual(pids, []int{20, 30}) {
		t.Errorf("processes %v, %v", pids, err)
	}
}

func TestUsageLegacy(t *testing.T) {
	root := tree(t, map[string]string{
		"cpuacct/skep/i/c/cpuacct.usage":                           "123456\n",
		"cpuacct/skep/i/c/cpuacct.usage_percpu":                    "100000 23456 \n",
		"cpuacct/skep/i/c/cpuacct.stat":                            "user 3\nsystem 2\n",
		"cpu/skep/i/c/cpu.stat":                                    "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
		"memory/skep/i/c/memory.usage_in_bytes":                    "5000\n",
		"memory/skep/i/c/memory.max_usage_in_bytes":                "6000\n",
		"memory/skep/i/c/memory.limit_in_bytes":                    "9223372036854771712\n",
		"memory/skep/i/c/memory.failcnt":                           "1\n",
		"memory/skep/i/c/memory.stat":                              "total_inactive_file 7\n",
		"blkio/skep/i/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\nTotal 30\n",
		"blkio/skep/i/c/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
		"pids/skep/i/c/pids.current":                               "2\n",
		"pids/skep/i/c/pids.max":                                   "max\n",
		"pids/skep/i/c/cgroup.procs":                               "9\n8\n",
	})
	g := groupsOf(root, "/skep/i/c")
	var got runtime.Usage
	g.fill(&got)
	want := runtime.Usage{
		CPU:    runtime.CPUUsage{Total: 123456, User: 30_000_000, Kernel: 20_000_000, PerCPU: []uint64{100000, 23456}, Periods: 1, Throttled: 2, Withheld: 3},
		Memory: runtime.MemoryUsage{Usage: 5000, Max: 6000, Limit: 9223372036854771712, Failures: 1, Detail: map[string]uint64{"total_inactive_file": 7}},
		Block:  []runtime.BlockUsage{{Major: 8, ReadBytes: 10, WrittenBytes: 20, Reads: 1, Writes: 2}}, Processes: 2,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if pids, err := g.processes(); err != nil || !reflect.DeepEqual(pids, []int{8, 9}) {
		t.Errorf("processes %v, %v", pids, err)
	}
}

// A container whose groups are gone has used nothing, and no processes.
func TestUsageGone(t *testing.T) {
	g := groupsOf(tree(t, map[string]string{"pids/x": ""}), "/skep/i/c")
	var got runtime.Usage
	g.fill(&got)
	if got.CPU.Total != 0 || got.Processes != 0 || len(got.Block) != 0 {
		t.Errorf("usage %+v", got)
	}
	if pids, err := g.processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes %v, %v", pids, err)
	}
}

func TestInterfaceTable(t *testing.T) {
	got := interfaceTable(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    1500      15    1    2    0     0          0         0     2500      25    3    4    0     0       0          0
  bad0: 1 2
`)
	want := map[string]runtime.InterfaceUsage{"eth0": {RxBytes: 1500, RxPackets: 15, RxErrors: 1, RxDropped: 2, TxBytes: 2500, TxPackets: 25, TxErrors: 3, TxDropped: 4}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestSystemTime(t *testing.T) {
	path := filepath.Join(tree(t, map[string]string{"stat": "cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n"}), "stat")
	if nanos, cpus, err := systemTime(path); nanos != 36*nanosPerTick || cpus != 2 || err != nil {
		t.Errorf("%d ns, %d processors, %v", nanos, cpus, err)
	}
}
