// Command planbench measures the planner (decide and commit to the state, without Raft) and prints what it needs
// beside what it may need and what swarmkit needed on the same machine. Of three runs the best counts: whatever else
// the machine does only ever adds.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
)

// figure is one line of the table.
type figure struct {
	bench, unit string // of a benchmark in internal/manager
	title       string
	target      float64
	more        bool // is better
	format      string
	swarmkit    string
}

func figures() []figure {
	return []figure{
		{"Plan/nodes=1000/services=1/tasks=100000", "cpu-s/op", "1,000 nodes, 100,000 tasks of 1 service", 0.2, false, "%.3f CPU s", "10.5"},
		{"Plan/nodes=1000/services=1000/tasks=100000", "cpu-s/op", "1,000 nodes, 100,000 tasks of 1,000 shaped services", 0.5, false, "%.3f CPU s", "13.3"},
		{"Plan/nodes=10000/services=1000/tasks=1000000", "cpu-s/op", "10,000 nodes, 1,000,000 tasks of 1,000 shaped services", 8, false, "%.2f CPU s", "193"},
		{"Plan/nodes=10000/services=100000/tasks=100000", "tasks/cpu-s", "10,000 nodes, 100,000 services of 1 task", 50_000, true, "%.0f tasks/CPU s", "5,100 (on 1,000 nodes, without the commit)"},
		{"SmallServiceInFullSwarm/nodes=10000/services=1000/tasks=1000000", "cpu-ms/op", "1 service of 10 tasks among 1,000,000 tasks", 1, false, "%.2f CPU ms", "not measured"},
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "planbench:", err)
		os.Exit(1)
	}
}

func run() error {
	cmd := exec.Command("go", "test", "./internal/manager", "-run", "^$", "-benchtime", "1x", "-count", "3", "-timeout", "15m",
		"-bench", "BenchmarkPlan$|BenchmarkSmallServiceInFullSwarm$/nodes=10000$")
	cmd.Env, cmd.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("run the benchmarks: %w\n%s", err, out)
	}
	best, err := parse(string(out))
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "planner: decide and commit, without Raft\tnow\ttarget\t\tswarmkit")
	for _, f := range figures() {
		now, ok := best[f.bench+" "+f.unit]
		if !ok {
			return fmt.Errorf("benchmark %s printed no %s", f.bench, f.unit)
		}
		sign, verdict := "<", "met"
		if f.more {
			sign = ">"
		}
		if (now < f.target) == f.more {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%s\t"+f.format+"\t%s %s\t%s\t%s\n", f.title, now, sign, strconv.FormatFloat(f.target, 'f', -1, 64), verdict, f.swarmkit)
	}
	return w.Flush()
}

// parse finds each benchmark's best value of each unit: the highest of a rate, the lowest of a cost.
func parse(out string) (map[string]float64, error) {
	line := regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)
	best := map[string]float64{}
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		m := line.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("read %q: %w", s.Text(), err)
			}
			key := m[1] + " " + fields[i+1]
			old, seen := best[key]
			if rate := strings.HasPrefix(fields[i+1], "tasks/"); !seen || rate && v > old || !rate && v < old {
				best[key] = v
			}
		}
	}
	return best, nil
}
