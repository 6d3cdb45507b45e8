package runtime

import "time"

// Usage is what a running container has used of its node since it started, and what it holds now. Counters only grow; what
// the node's kernel does not count is zero or missing.
type Usage struct {
	At time.Time
	// CPU is the container's, System the whole machine's time in all states, both in nanoseconds; OnlineCPUs is what a
	// share of it is to be multiplied with.
	CPU        CPUUsage
	System     uint64
	OnlineCPUs int
	Memory     MemoryUsage
	Processes  uint64
	// MaxProcesses is 0 when there is no limit.
	MaxProcesses uint64
	Block        []BlockUsage
	// Networks are the interfaces of the container's own network namespace but the loopback one, by name; empty for a
	// container that uses the host's.
	Networks map[string]InterfaceUsage
}

// CPUUsage is in nanoseconds, but for the two counts of periods.
type CPUUsage struct {
	Total, Kernel, User          uint64
	PerCPU                       []uint64
	Periods, Throttled, Withheld uint64 // periods with a limit, those in which it was met, the time that was not given then
}

// MemoryUsage is in bytes. Limit is the machine's memory when the container has none. Detail is the kernel's own list
// (memory.stat), whose names differ between cgroup v1 and v2.
type MemoryUsage struct {
	Usage, Max, Limit, Failures uint64
	Detail                      map[string]uint64
}

// BlockUsage is what went to or came from one block device.
type BlockUsage struct {
	Major, Minor            uint64
	ReadBytes, WrittenBytes uint64
	Reads, Writes           uint64
}

// InterfaceUsage is one network interface's counters, as the container sees them.
type InterfaceUsage struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}
