package raftlog

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const childEnv = "SKEP_RAFTLOG_CHILD"

func exit(code int) { os.Exit(code) }

// runChild is the other side of tests that need a process of their own.
func runChild() (code int, ok bool) {
	switch mode := os.Getenv(childEnv); mode {
	case "":
		return 0, false
	case "propose":
		return childPropose(os.Args[len(os.Args)-1]), true
	default:
		fmt.Fprintln(os.Stderr, "unknown mode", mode)
		return 2, true
	}
}

// childPropose proposes from several goroutines and prints what was acknowledged,
// until it is killed.
func childPropose(dir string) int {
	cfg := crashConfig(dir)
	m, err := tryStart(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for l := range m.Leadership() {
		if l.Leader {
			break
		}
	}
	out := make(chan string, 64)
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				// Large enough that segments change often.
				p := fmt.Sprintf("%d-%d-%d-%s", os.Getpid(), w, i, strings.Repeat("x", 2000))
				if _, _, err := m.Propose(context.Background(), []byte(p)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				out <- p[:strings.LastIndexByte(p, '-')]
			}
		}()
	}
	for p := range out {
		fmt.Println(p) // unbuffered: what is printed was acknowledged
	}
	return 0
}

func crashConfig(dir string) Config {
	return Config{Dir: dir, NodeID: "n1", Bootstrap: true, SegmentSize: 64 << 10, LowSpaceMark: 1 << 20,
		ReserveSize: 64 << 10, HeartbeatTimeout: 200 * time.Millisecond, TrailingLogs: 50,
		SnapshotThreshold: 300, SnapshotInterval: 20 * time.Millisecond}
}

// TestKill kills a process that proposes, again and again, and finds everything
// that was acknowledged.
func TestKill(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	dir := t.TempDir()
	acked := map[string]bool{}
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^$", dir)
		cmd.Env = append(os.Environ(), childEnv+"=propose")
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		n := 0
		for lines.Scan() {
			acked[lines.Text()] = true
			// Not at round numbers: the kill should hit different moments.
			if n++; n == 200+round*37 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || n < 200 {
			t.Fatalf("child ended by itself after %d proposals: %v", n, err)
		}
	}
	m := start(t, crashConfig(dir))
	m.lead(t)
	seen := map[string]bool{}
	for p := range m.machine.Freeze().(frozenCounts).Seen {
		seen[p[:strings.LastIndexByte(p, '-')]] = true
	}
	for p := range acked {
		if !seen[p] {
			t.Errorf("%s was acknowledged and is gone", p)
		}
	}
	if m.machine.Dups > 0 {
		t.Errorf("%d proposals were applied twice", m.machine.Dups)
	}
	t.Logf("%d kills, %d acknowledged, %d found", rounds, len(acked), len(seen))
}
