// Command gotest runs every test of the module and closes with one line that
// says how many passed, failed and were skipped, after the reason of each skip.
// `make test` uses it, so that nothing is skipped in silence.
//
// Arguments go to `go test`; without any it runs ./... with a time limit.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// limit is what one test binary may take; `make test` as a whole is to stay
// below fifteen minutes on two cores.
const limit = "12m"

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"-timeout", limit, "./..."}
	}
	os.Exit(run(args, os.Stdout))
}

// event is a line of `go test -json`, as described by `go doc test2json`.
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
	// ImportPath names the package in build-output events, which carry no Package.
	ImportPath string
}

func run(args []string, out io.Writer) int {
	start := time.Now()
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(out, "gotest: starting go test:", err)
		return 2
	}
	s := summary{out: out, output: map[string][]string{}}
	readErr := s.read(stdout)
	runErr := cmd.Wait()
	s.close(time.Since(start))
	if readErr != nil {
		fmt.Fprintln(out, "gotest: reading go test's report:", readErr)
	}
	if readErr != nil || runErr != nil || s.failed > 0 {
		return 1
	}
	return 0
}

type summary struct {
	out                     io.Writer
	output                  map[string][]string // by package and test: what it printed
	passed, failed, skipped int
	packages                int
	skips                   []skip
	broken                  []string
}

type skip struct{ name, reason string }

func (s *summary) read(r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			// Not ours: pass on what go itself prints between the events.
			fmt.Fprintln(s.out, in.Text())
			continue
		}
		s.add(e)
	}
	return in.Err()
}

func (s *summary) add(e event) {
	key := cmp.Or(e.Package, e.ImportPath) + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "output":
		s.output[key] = append(s.output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e, key)
		} else {
			s.endTest(e, key)
		}
		delete(s.output, key)
	}
}

func (s *summary) endTest(e event, key string) {
	name := e.Package[strings.LastIndex(e.Package, "/")+1:] + "." + e.Test
	switch e.Action {
	case "pass":
		s.passed++
	case "skip":
		s.skipped++
		s.skips = append(s.skips, skip{name, reason(s.output[key])})
	case "fail":
		s.failed++
		s.broken = append(s.broken, name)
		fmt.Fprint(s.out, strings.Join(s.output[key], ""))
	}
}

func (s *summary) endPackage(e event, key string) {
	if e.Action == "skip" {
		return // it has no tests
	}
	s.packages++
	word := "ok  "
	if e.Action == "fail" {
		word = "FAIL"
		// A panic or a time-out belongs to the package, not to one of its tests. What it says is told as of the test that ran.
		for _, k := range slices.Sorted(maps.Keys(s.output)) {
			if strings.HasPrefix(k, key) {
				fmt.Fprint(s.out, strings.Join(s.output[k], ""))
				delete(s.output, k)
			}
		}
		if len(s.broken) == 0 || !strings.HasPrefix(s.broken[len(s.broken)-1], e.Package[strings.LastIndex(e.Package, "/")+1:]+".") {
			s.failed++
			s.broken = append(s.broken, e.Package)
		}
	}
	fmt.Fprintf(s.out, "%s %7.1fs  %s\n", word, e.Elapsed, e.Package)
}

func (s *summary) close(took time.Duration) {
	slices.SortFunc(s.skips, func(a, b skip) int { return cmp.Compare(a.reason+a.name, b.reason+b.name) })
	for i := 0; i < len(s.skips); {
		same := s.skips[i:]
		if n := slices.IndexFunc(same, func(o skip) bool { return o.reason != same[0].reason }); n > 0 {
			same = same[:n]
		}
		i += len(same)
		var names []string
		for _, sk := range same {
			names = append(names, sk.name)
		}
		fmt.Fprintf(s.out, "skipped %d, %s: %s\n", len(same), same[0].reason, strings.Join(names, ", "))
	}
	if len(s.broken) > 0 {
		fmt.Fprintf(s.out, "failed: %s\n", strings.Join(s.broken, ", "))
	}
	verdict := "OK"
	if s.failed > 0 {
		verdict = "FAILED"
	}
	fmt.Fprintf(s.out, "%s: %d passed, %d failed, %d skipped in %d packages, %s\n",
		verdict, s.passed, s.failed, s.skipped, s.packages, took.Round(time.Second))
}

// reason is what a skipped test printed last, without the file and line.
func reason(lines []string) string {
	for _, line := range slices.Backward(lines) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "---") || strings.HasPrefix(line, "===") {
			continue
		}
		if _, text, ok := strings.Cut(line, ".go:"); ok {
			if _, text, ok = strings.Cut(text, ": "); ok {
				return text
			}
		}
		return line
	}
	return "no reason given"
}
