package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
)

// startSkep runs a daemon, with these flags more, with a swarm of one on a host of its own.
func startSkep(ctx context.Context, binary string, flags []string) (*target, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "b") // sockets want short paths
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	finish := func() error { return errors.Join(l.Close(), os.RemoveAll(dir)) }
	fail := func(err error) (*target, error) { return nil, errors.Join(err, finish()) }

	h, err := l.AddHost(ctx, "bench")
	if err != nil {
		return fail(err)
	}
	socket := filepath.Join(dir, "e", "skep.sock")
	log, err := os.Create(filepath.Join(dir, "daemon.log"))
	if err != nil {
		return fail(err)
	}
	defer log.Close()
	args := append([]string{"daemon", "--data-root", filepath.Join(dir, "d"),
		"--exec-root", filepath.Join(dir, "e"), "-H", "unix://" + socket}, flags...)
	cmd := h.Command(context.WithoutCancel(ctx), binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "DOCKER_SERVICE_PREFER_OFFLINE_IMAGE=1")
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	go func() { _ = cmd.Wait() }() // it ends with the lab

	a := newAPI(socket)
	up, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = a.poll(up, "the daemon answers", func() (bool, error) {
		err := a.call(up, "GET", "/info", nil, nil)
		return err == nil, err
	})
	if err == nil {
		err = a.call(ctx, "POST", "/swarm/init", map[string]any{"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": h.Addr4().String()}, nil)
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return fail(fmt.Errorf("starting %s: %w\n%s", binary, err, text))
	}
	group := filepath.Join(h.Group(), "init")
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fail(err)
	}
	return &target{
		name: "skep", api: a, finish: finish,
		cpu: func() (float64, error) { return groupCPU(group) },
		daemon: func() (float64, error) {
			return sumTimes(func(pid int, exe string) bool {
				name := filepath.Base(exe)
				return inGroup(pid, group) && (exe == binary || strings.HasPrefix(name, "skep-keeper"))
			}, false)
		},
		pss: func() (float64, error) {
			return sumPSS(func(pid int, exe string) bool { return exe != self && inGroup(pid, group) })
		},
	}, nil
}

// groupCPU is what the processes of a cgroup have used, the ended ones included.
func groupCPU(group string) (float64, error) {
	if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct", group, "cpuacct.usage")); err == nil {
		ns, err := strconv.ParseFloat(string(bytes.TrimSpace(text)), 64)
		return ns / 1e9, err
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return us / 1e6, err
		}
	}
	return 0, fmt.Errorf("no CPU time in the cgroup %s", group)
}

func inGroup(pid int, group string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(text), ":/"+group+"\n")
}

// attachDocker measures an Engine that runs already.
func attachDocker(host string) (*target, error) {
	socket, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return nil, fmt.Errorf("BENCH_DOCKER_HOST: want unix://PATH, not %q", host)
	}
	ours := func(_ int, exe string) bool {
		name := filepath.Base(exe)
		return name == "dockerd" || name == "docker-proxy" || name == "runc" || strings.HasPrefix(name, "containerd")
	}
	return &target{
		name: "Docker Engine at " + host, api: newAPI(socket),
		finish: func() error { return nil },
		cpu:    func() (float64, error) { return sumTimes(ours, true) },
		daemon: func() (float64, error) {
			return sumTimes(func(_ int, exe string) bool {
				name := filepath.Base(exe)
				return name == "dockerd" || name == "containerd"
			}, false)
		},
		pss: func() (float64, error) { return sumPSS(ours) },
	}, nil
}

// eachProcess calls f for every process that pick wants.
func eachProcess(pick func(pid int, exe string) bool, f func(pid int)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err == nil && pick(pid, exe) {
			f(pid)
		}
	}
	return nil
}

// sumPSS adds up the proportional set size of processes, in MB.
func sumPSS(pick func(int, string) bool) (float64, error) {
	var kb float64
	err := eachProcess(pick, func(pid int) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return // it ended
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				n, _ := strconv.ParseFloat(f[1], 64) // the kernel writes numbers
				kb += n
			}
		}
	})
	return kb / 1024, err
}

// clockTicks is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTicks = 100

// sumTimes adds up the CPU seconds of processes and, if wanted, of their reaped children.
func sumTimes(pick func(int, string) bool, children bool) (float64, error) {
	fields := []int{11, 12} // utime and stime, counted after the name; cutime and cstime follow
	if children {
		fields = append(fields, 13, 14)
	}
	var ticks float64
	err := eachProcess(pick, func(pid int) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return
		}
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		for _, i := range fields {
			n, _ := strconv.ParseFloat(f[i], 64)
			ticks += n
		}
	})
	return ticks / clockTicks, err
}

// calibrate returns the CPU seconds that a fixed piece of work takes right now.
func calibrate() float64 {
	before := ownCPU()
	block := make([]byte, 1<<20)
	for range 256 {
		sum := sha256.Sum256(block)
		copy(block, sum[:])
	}
	return ownCPU() - before
}

func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
