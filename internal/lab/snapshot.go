package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Snapshot is what can be left behind on a machine, by kind: "process", "mount",
// "netns", "link", "address", "nft", "cgroup", "rule", "route". Each is a sorted list
// of lines that stay the same while nobody changes anything.
type Snapshot map[string][]string

// TakeSnapshot reads the machine, or the host, that the calling process runs on.
func TakeSnapshot(ctx context.Context) (Snapshot, error) {
	s := Snapshot{}
	for kind, read := range map[string]func(context.Context) ([]string, error){
		"process": processes, "mount": mounts, "netns": namedNetNS, "cgroup": cgroups,
		"link":    ipLines("-o", "link"),
		"address": ipLines("-o", "address"),
		"rule":    ipLines2("rule"),
		"route":   ipLines2("route", "show", "table", "all"),
		"nft":     nftLines,
	} {
		lines, err := read(ctx)
		if err != nil {
			return nil, fmt.Errorf("snapshot: reading %s: %w", kind, err)
		}
		slices.Sort(lines)
		s[kind] = lines
	}
	return s, nil
}

// Snapshot reads the host.
func (h *Host) Snapshot(ctx context.Context) (Snapshot, error) {
	out, err := h.Output(ctx, argSnapshot)
	if err != nil {
		return nil, err
	}
	var s Snapshot
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", h.name, err)
	}
	return s, nil
}

func printSnapshot() error {
	s, err := TakeSnapshot(context.Background())
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// Diff returns one line for everything that is in s and not in before ("+") and the
// reverse ("-"). It is empty when nothing changed.
func (s Snapshot) Diff(before Snapshot) []string {
	var diff []string
	for _, kind := range slices.Sorted(mapsKeys(s, before)) {
		diff = append(diff, missing("+ "+kind+": ", s[kind], before[kind])...)
		diff = append(diff, missing("- "+kind+": ", before[kind], s[kind])...)
	}
	return diff
}

// mapsKeys yields the keys of both, each once.
func mapsKeys(a, b Snapshot) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range a {
			if !yield(k) {
				return
			}
		}
		for k := range b {
			if _, ok := a[k]; !ok && !yield(k) {
				return
			}
		}
	}
}

// missing lists what is in have and not in from, counting repeats.
func missing(prefix string, have, from []string) []string {
	count := map[string]int{}
	for _, line := range from {
		count[line]++
	}
	var out []string
	for _, line := range have {
		if count[line]--; count[line] < 0 {
			out = append(out, prefix+line)
		}
	}
	return out
}

// processes lists everything but kernel threads, this process and its parent,
// without pids: what counts is what runs.
func processes(context.Context) ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // ended, a zombie, or a kernel thread
		}
		out = append(out, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
	return out, nil
}

func mounts(context.Context) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 {
			out = append(out, f[2]+" on "+f[1])
		}
	}
	return out, nil
}

// namedNetNS lists network namespaces that are held by a file.
func namedNetNS(context.Context) ([]string, error) {
	var out []string
	for _, dir := range []string{"/run/netns", "/var/run/netns"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

func cgroups(context.Context) ([]string, error) {
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went away while we looked
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			out = append(out, path)
		}
		return nil
	})
	return out, err
}

// changing are parts of ip's and nft's output that differ from one moment to the next,
// or that are other ones when the same thing was made anew: links' indexes.
var changing = regexp.MustCompile(`^\d+: |@if\d+|link-netnsid \d+ ?|(packets|bytes|expires|valid_lft|preferred_lft) \S+| # handle \d+| cache `)

func ipLines(args ...string) func(context.Context) ([]string, error) {
	return func(ctx context.Context) ([]string, error) { return outputLines(ctx, "ip", args...) }
}

// ipLines2 asks for both families.
func ipLines2(args ...string) func(context.Context) ([]string, error) {
	return func(ctx context.Context) ([]string, error) {
		v4, err := outputLines(ctx, "ip", args...)
		if err != nil {
			return nil, err
		}
		v6, err := outputLines(ctx, "ip", append([]string{"-6"}, args...)...)
		return append(v4, v6...), err
	}
}

func nftLines(ctx context.Context) ([]string, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		return nil, errors.New("nft is not installed: apt-get install nftables")
	}
	return outputLines(ctx, "nft", "list", "ruleset")
}

func outputLines(ctx context.Context, name string, args ...string) ([]string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(changing.ReplaceAllString(line, ""))
		// The kernel makes anycast routes on every link of a machine that forwards.
		if line != "" && !strings.HasPrefix(line, "anycast ") {
			lines = append(lines, line)
		}
	}
	return lines, nil
}
