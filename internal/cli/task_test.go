package cli

import (
	"strings"
	"testing"
)

const runningWeb = `[{"ID":"t2","ServiceID":"s1","Slot":2,"NodeID":"n1","DesiredState":"running","Status":{"State":"running","ContainerStatus":{"ContainerID":"c2"}}},
{"ID":"t1","ServiceID":"s1","Slot":1,"NodeID":"n1","DesiredState":"running","Status":{"State":"running","ContainerStatus":{"ContainerID":"c1"}}},
{"ID":"t3","ServiceID":"s1","Slot":3,"NodeID":"n1","DesiredState":"running","Status":{"State":"starting"}}]`

func intoDaemon(t *testing.T) string {
	t.Helper()
	const stats = `{"name":"/web.1.t1","read":"2026-01-02T00:00:01Z","preread":"2026-01-02T00:00:00Z","cpu_stats":{"cpu_usage":{"total_usage":300},"system_cpu_usage":2000,"online_cpus":2},
"precpu_stats":{"cpu_usage":{"total_usage":100},"system_cpu_usage":1000},"memory_stats":{"usage":3145728,"limit":4194304,"stats":{"inactive_file":1048576}},"pids_stats":{"current":7},
"networks":{"eth0":{"rx_bytes":1000,"tx_bytes":1},"eth1":{"rx_bytes":500}},"blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":5},{"op":"write","value":6},{"op":"Total","value":11}]}}`
	return fakeDaemon(t, map[string]any{
		"GET /services":            `[{"ID":"s1","Spec":{"Name":"web"}}]`,
		"GET /services/web":        `{"ID":"s1","Spec":{"Name":"web"}}`,
		"GET /tasks":               runningWeb,
		"GET /tasks/t2":            `{"ID":"t2","Status":{"ContainerStatus":{"ContainerID":"c2"}}}`,
		"GET /nodes":               `[{"ID":"n1","Description":{"Hostname":"host-1"}}]`,
		"GET /containers/c1/top":   `{"Titles":["PID","CMD"],"Processes":[["7","sleep 1"]]}`,
		"GET /containers/c2/top":   `{"Titles":["PID","CMD"],"Processes":[["8","sleep 2"]]}`,
		"GET /containers/c1/stats": stats, "GET /containers/c2/stats": stats,
		"GET /containers/web.1/stats": stats,
	})
}

func TestTop(t *testing.T) {
	host := intoDaemon(t)
	for ref, want := range map[string]string{"web": "PID   CMD\n7     sleep 1\n", "t2": "PID   CMD\n8     sleep 2\n", "c2": "PID   CMD\n8     sleep 2\n"} {
		if code, out, errs := run(t, host, "top", ref, "-o", "pid,cmd"); code != 0 || out != want {
			t.Errorf("%s: %d\n%s%s", ref, code, out, errs)
		}
	}
	if code, _, errs := run(t, host, "top", "web.9"); code != 1 || !strings.Contains(errs, "not found") {
		t.Errorf("%d %s", code, errs)
	}
	if code, _, errs := run(t, host, "top"); code != 2 || !strings.Contains(errs, "Usage:") {
		t.Errorf("%d %s", code, errs)
	}
}

func TestStats(t *testing.T) {
	host := intoDaemon(t)
	const line = `host-1   40.00%   2MiB / 4MiB         50.00%   1.5kB / 1B   5B / 6B     7` + "\n"
	for args, want := range map[string]string{
		"stats":     "NAME    NODE     CPU %    MEM USAGE / LIMIT   MEM %    NET I/O      BLOCK I/O   PIDS\nweb.1   " + line + "web.2   " + line,
		"stats web": "NAME    NODE     CPU %    MEM USAGE / LIMIT   MEM %    NET I/O      BLOCK I/O   PIDS\nweb.1   " + line,
		"stats web.1 --format {{.Name}}@{{.Node}}": "web.1@host-1\n",
	} {
		if code, out, errs := run(t, host, strings.Fields(args)...); code != 0 || out != want {
			t.Errorf("%s: %d\n%s%s\nwant\n%s", args, code, out, errs, want)
		}
	}
	if code, _, errs := run(t, host, "stats", "nothing"); code != 1 {
		t.Errorf("%d %s", code, errs)
	}
}

func TestPsOfAll(t *testing.T) {
	code, out, errs := run(t, intoDaemon(t), "ps", "--format", "{{.Name}} {{.Node}} {{.CurrentState}}")
	if code != 0 || !strings.HasPrefix(out, "web.1 host-1 Running ") || strings.Count(out, "\n") != 3 {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
}

func TestCompleteTask(t *testing.T) {
	host := intoDaemon(t)
	for verb, want := range map[string]string{"exec": "web.1\nweb.2\n", "top": "web.1\nweb.2\n", "stats": "web.1\nweb.2\n", "logs": "web\nweb.1\nweb.2\n"} {
		if _, out, errs := run(t, host, "__complete", verb, "w"); !strings.HasPrefix(out, want) {
			t.Errorf("%s: %s%s", verb, out, errs)
		}
	}
}

func TestExecUsage(t *testing.T) {
	host := intoDaemon(t)
	for args, want := range map[string]string{
		"exec web":              "requires at least 2 arg",
		"exec -it web sh":       "the standard input is no terminal",
		"exec --nonsense web a": "unknown flag",
	} {
		if code, _, errs := run(t, host, strings.Fields(args)...); code != 2 || !strings.Contains(errs, want) {
			t.Errorf("%s: %d %s", args, code, errs)
		}
	}
	for _, verb := range []string{"exec", "top", "logs", "stats", "ps"} {
		if code, out, _ := run(t, host, verb, "--help"); code != 0 || !strings.Contains(out, "Examples:\n  ") || verb != "ps" && !strings.Contains(out, "web.1") {
			t.Errorf("%s --help: %d %s", verb, code, out)
		}
	}
}
