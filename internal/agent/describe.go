package agent

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"
)

// DescribeHost is what a node says of its host as it is now: host name, platform, processors and memory, with the
// version and the labels of its daemon.
func DescribeHost(version string, labels map[string]string) (swarm.NodeDescription, error) {
	host, err := os.Hostname()
	if err != nil {
		return swarm.NodeDescription{}, fmt.Errorf("host name: %w", err)
	}
	memory, err := totalMemory("/proc/meminfo")
	if err != nil {
		return swarm.NodeDescription{}, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return swarm.NodeDescription{}, fmt.Errorf("uname: %w", err)
	}
	return swarm.NodeDescription{
		Hostname:  host,
		Platform:  swarm.Platform{OS: runtime.GOOS, Architecture: unix.ByteSliceToString(u.Machine[:])},
		Resources: swarm.Resources{NanoCPUs: int64(runtime.NumCPU()) * 1e9, MemoryBytes: memory},
		Engine: swarm.EngineDescription{EngineVersion: version, Labels: labels, Plugins: []swarm.PluginDescription{
			{Type: "Log", Name: "json-file"}, {Type: "Network", Name: "bridge"}, {Type: "Network", Name: "host"},
			{Type: "Network", Name: "null"}, {Type: "Volume", Name: "local"},
		}},
	}, nil
}

// totalMemory reads the host's memory in bytes.
func totalMemory(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("host's memory: %w", err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), "MemTotal:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("host's memory: %w", err)
			}
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("host's memory: %s does not tell it", path)
}
