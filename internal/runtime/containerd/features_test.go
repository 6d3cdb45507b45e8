package containerd

import (
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/fifo"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	rt "github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

// outcome is what a container that ran to its end left behind.
type outcome struct {
	output string
	exit   rt.Exit
}

// runToEnd runs one container and returns what it wrote.
func (h *host) runToEnd(t *testing.T, name string, command []string, change func(*rt.Spec)) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	spec := conformance.NewSpec(name, command)
	spec.Stdout = filepath.Join(h.cfg.State, name+".out")
	spec.Stderr = filepath.Join(h.cfg.State, name+".err")
	if change != nil {
		change(&spec)
	}
	outputs := make(chan string, 2)
	for _, path := range []string{spec.Stdout, spec.Stderr} {
		f, err := fifo.OpenFifo(ctx, path, syscall.O_RDONLY|syscall.O_CREAT|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			data, _ := io.ReadAll(f)
			outputs <- string(data)
		}()
		defer f.Close()
	}
	c, err := h.runtime.Controller(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	exit, err := c.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Task.ContainerSpec.TTY {
		if f, err := os.OpenFile(spec.Stderr, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			_ = f.Close() // nobody else ends the stream that a terminal does not have
		}
	}
	if err := c.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	return outcome{<-outputs + <-outputs, exit}
}

func container(s *rt.Spec) *swarm.ContainerSpec { return s.Task.ContainerSpec }

// shell is a command that runs a script.
func shell(script string) []string { return []string{"sh", "-c", script} }

func TestProcess(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	for _, test := range []struct {
		name    string
		command []string
		change  func(*rt.Spec)
		want    string
	}{
		{"image command", nil, nil, "from image\n"},
		{"args alone replace the command", nil, func(s *rt.Spec) { container(s).Args = []string{"echo", "args"} }, "args\n"},
		{"command and args", []string{"echo", "a"}, func(s *rt.Spec) { container(s).Args = []string{"b"} }, "a b\n"},
		{"working directory of the image", []string{"pwd"}, nil, "/data\n"},
		{"working directory", []string{"pwd"}, func(s *rt.Spec) { container(s).Dir = "/tmp/new" }, "/tmp/new\n"},
		{"environment", shell("echo $FROM_IMAGE,$OWN,$PATH,$HOSTNAME,$TERM,$HOME"), func(s *rt.Spec) {
			container(s).Env = []string{"OWN=x=y", "FROM_IMAGE=over"}
			s.Hostname = "bee"
		}, "over,x=y,/bin,bee,,/root\n"},
		{"environment given by the node", shell("echo $A"), func(s *rt.Spec) {
			container(s).Env = []string{"A={{.Node}}"}
			s.Env = []string{"A=expanded"}
		}, "expanded\n"},
		{"hostname", []string{"hostname"}, func(s *rt.Spec) { s.Hostname = "bee" }, "bee\n"},
		{"root", []string{"id"}, nil, "uid=0(root) gid=0(root) groups=0(root)\n"},
		{"user by name", []string{"id"}, func(s *rt.Spec) { container(s).User = "app" }, "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n"},
		{"user by number", shell("id -u; id -g"), func(s *rt.Spec) { container(s).User = "4242:77" }, "4242\n77\n"},
		{"groups", shell("id -G"), func(s *rt.Spec) { container(s).Groups = []string{"daemon", "3000"} }, "0 1 3000\n"},
		{"read-only", shell("touch /x 2>&1"), func(s *rt.Spec) { container(s).ReadOnly = true }, "touch: /x: Read-only file system\n"},
		{"network is its own", shell("ls /sys/class/net"), nil, "lo\n"},
		{"limits of open files", shell("ulimit -n"), func(s *rt.Spec) {
			container(s).Ulimits = []*units.Ulimit{{Name: "nofile", Soft: 321, Hard: 654}}
		}, "321\n"},
		{"shared memory", shell("df -k /dev/shm | tail -n 1 | while read a b c; do echo $b; done"), nil, "65536\n"},
		{"kernel settings", shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn"), func(s *rt.Spec) {
			container(s).Sysctls = map[string]string{"net.core.somaxconn": "77"}
		}, "0\n77\n"},
		{"capabilities", shell("grep CapEff /proc/self/status"), nil, "CapEff:\t00000000a80425fb\n"},
		{"capabilities of a user", shell("grep CapEff /proc/self/status"), func(s *rt.Spec) { container(s).User = "app" }, "CapEff:\t0000000000000000\n"},
		{"capabilities dropped and added", shell("grep CapEff /proc/self/status"), func(s *rt.Spec) {
			container(s).CapabilityDrop = []string{"ALL"}
			container(s).CapabilityAdd = []string{"NET_ADMIN", "cap_chown"}
		}, "CapEff:\t0000000000001001\n"},
		{"seccomp", shell("grep Seccomp: /proc/self/status"), nil, "Seccomp:\t2\n"},
		{"seccomp unconfined", shell("grep Seccomp: /proc/self/status"), func(s *rt.Spec) {
			container(s).Privileges = &swarm.Privileges{Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined}}
		}, "Seccomp:\t0\n"},
		{"no new privileges", shell("grep NoNewPrivs /proc/self/status"), func(s *rt.Spec) {
			container(s).Privileges = &swarm.Privileges{NoNewPrivileges: true}
		}, "NoNewPrivs:\t1\n"},
		{"out of memory score", shell("cat /proc/self/oom_score_adj"), func(s *rt.Spec) { container(s).OomScoreAdj = 321 }, "321\n"},
		{"terminal", shell("test -t 1 && echo $TERM"), func(s *rt.Spec) { container(s).TTY = true }, "xterm\r\n"},
		{"init", shell("read a </proc/1/comm; echo $a"), func(s *rt.Spec) { container(s).Init = new(true) }, "docker-init\n"},
		{"masked", shell("cat /proc/keys /proc/timer_list; ls /sys/firmware"), nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := h.runToEnd(t, strings.ReplaceAll(test.name, " ", "-"), test.command, test.change)
			if got.output != test.want {
				t.Errorf("output = %q, want %q (exit %+v)", got.output, test.want, got.exit)
			}
		})
	}
}

// TestInit sends a signal to the init process, which must reach the command, and leaves it an orphan to reap.
func TestInit(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	init := func(s *rt.Spec) { container(s).Init = new(true) }
	got := h.runToEnd(t, "signal", shell("trap 'exit 5' TERM; kill -TERM 1; while :; do sleep 0.02; done"), init)
	if got.exit.Code != 5 {
		t.Errorf("exit = %+v, want 5", got.exit)
	}
	got = h.runToEnd(t, "orphan", shell("sh -c 'sleep 0.02 &'; sleep 0.1; grep -l zombie /proc/[0-9]*/status 2>/dev/null; exit 6"), init)
	if got.exit.Code != 6 || got.output != "" {
		t.Errorf("exit = %+v, output %q; want 6 and no zombie", got.exit, got.output)
	}
	got = h.runToEnd(t, "missing", conformance.Missing(), init)
	if got.exit.Code != 127 {
		t.Errorf("exit = %+v, want 127", got.exit)
	}
}

func TestMounts(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	bound := t.TempDir()
	if err := os.WriteFile(filepath.Join(bound, "f"), []byte("bound\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	volume := func(m mount.Mount) func(*rt.Spec) {
		return func(s *rt.Spec) { container(s).Mounts = []mount.Mount{m} }
	}
	hosts := filepath.Join(bound, "hosts")
	if err := os.WriteFile(hosts, []byte("10.0.0.1 bee\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		command []string
		change  func(*rt.Spec)
		want    string
	}{
		{"bind", shell("cat /b/f; echo new > /b/g; cat /b/g"), volume(mount.Mount{Type: mount.TypeBind, Source: bound, Target: "/b"}), "bound\nnew\n"},
		{"bind read-only", shell("touch /b/x 2>&1"), volume(mount.Mount{Type: mount.TypeBind, Source: bound, Target: "/b", ReadOnly: true}),
			"touch: /b/x: Read-only file system\n"},
		{"volume starts as the image has it", shell("cat /data/seed; stat -c '%a %u' /data; echo more > /data/more"),
			volume(mount.Mount{Type: mount.TypeVolume, Source: "vol", Target: "/data"}), "seed\n750 1000\n"},
		{"volume keeps what was written", shell("cat /data/more"), volume(mount.Mount{Type: mount.TypeVolume, Source: "vol", Target: "/data"}), "more\n"},
		{"volume without copy", shell("ls /data"), volume(mount.Mount{Type: mount.TypeVolume, Source: "vol2", Target: "/data",
			VolumeOptions: &mount.VolumeOptions{NoCopy: true}}), ""},
		{"anonymous volume", shell("ls /data"), volume(mount.Mount{Type: mount.TypeVolume, Target: "/data"}), "seed\n"},
		{"tmpfs", shell("grep ' /t ' /proc/mounts | grep -o -E 'size=[0-9a-z]*|mode=[0-9]*|noexec'"), volume(mount.Mount{Type: mount.TypeTmpfs, Target: "/t",
			TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o700}}), "noexec\nsize=1024k\nmode=700\n"},
		{"files of the node", shell("cat /etc/hosts; cat /secret"), func(s *rt.Spec) {
			s.HostsFile = hosts
			s.Mounts = []rt.Mount{{Source: filepath.Join(bound, "f"), Target: "/secret", ReadOnly: true}}
		}, "10.0.0.1 bee\nbound\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := h.runToEnd(t, strings.ReplaceAll(test.name, " ", "-"), test.command, test.change)
			if got.output != test.want {
				t.Errorf("output = %q, want %q (exit %+v)", got.output, test.want, got.exit)
			}
		})
	}
	half := conformance.NewSpec("half-made", shell("true"))
	container(&half).Mounts = []mount.Mount{{Type: mount.TypeVolume, Target: "/data"}, {Type: mount.TypeBind, Source: bound + "/missing", Target: "/b"}}
	c, err := h.runtime.Controller(half)
	if err == nil {
		err = c.Prepare(t.Context())
	}
	if err == nil {
		t.Error("a missing bind source was accepted")
	}
	left, err := os.ReadDir(string(h.cfg.Volumes.(dirVolumes)))
	if err != nil || len(left) != 2 {
		t.Errorf("volumes = %v, %v; want the two named ones", left, err)
	}
}

func TestLimits(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	limited := func(l swarm.Limit) func(*rt.Spec) {
		return func(s *rt.Spec) { s.Task.Resources = &swarm.ResourceRequirements{Limits: &l} }
	}
	// The limits leave room for runc, whose own start is counted too.
	got := h.runToEnd(t, "oom", shell("head -c 256m /dev/zero | tail; exit 9"), func(s *rt.Spec) {
		limited(swarm.Limit{MemoryBytes: 48 << 20})(s)
		var none int64
		s.Task.Resources.SwapBytes = &none
	})
	if !got.exit.OOMKilled {
		t.Errorf("exit = %+v, want OOMKilled", got.exit)
	}
	got = h.runToEnd(t, "oom-init", []string{"tail", "/dev/zero"}, func(s *rt.Spec) {
		limited(swarm.Limit{MemoryBytes: 48 << 20})(s)
		var none int64
		s.Task.Resources.SwapBytes = &none
	})
	if !got.exit.OOMKilled || got.exit.Code != 137 {
		t.Errorf("exit = %+v, want 137 and OOMKilled", got.exit)
	}
	got = h.runToEnd(t, "plain", []string{"true"}, limited(swarm.Limit{MemoryBytes: 48 << 20, NanoCPUs: 5e8, Pids: 50}))
	if got.exit.Code != 0 || got.exit.OOMKilled {
		t.Errorf("exit = %+v", got.exit)
	}
	got = h.runToEnd(t, "pids", shell("for i in $(seq 1 40); do sleep 0.1 & done 2>&1; wait"), limited(swarm.Limit{Pids: 25}))
	if !strings.Contains(got.output, "can't fork") {
		t.Errorf("output = %q, want a refused fork", got.output)
	}
	if unified() {
		return
	}
	spec := conformance.NewSpec("quota", conformance.Obeys())
	limited(swarm.Limit{NanoCPUs: 25e7, MemoryBytes: 32 << 20})(&spec)
	c, err := h.runtime.Controller(spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := c.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu/%/cpu.cfs_quota_us": "25000", "memory/%/memory.limit_in_bytes": "33554432"} {
		path := filepath.Join(cgroupRoot, strings.Replace(file, "%", h.runtime.cgroupPath(spec.ID), 1))
		if data, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(data)) != want {
			t.Errorf("%s = %q, %v; want %s", path, data, err, want)
		}
	}
}

// TestShimDies kills the shim under a container.
func TestShimDies(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	spec := conformance.NewSpec("orphan", conformance.Ignores())
	c, err := h.runtime.Controller(spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	pid, err := c.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(parent(t, pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit, err := c.Wait(ctx)
	if err != nil || exit.Code != 137 || exit.Err == "" {
		t.Errorf("exit = %+v, %v", exit, err)
	}
	if err := c.Remove(ctx); err != nil {
		t.Error(err)
	}
	// Its new parent may be slow to reap it, or never do: a zombie is dead enough.
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the container's process lives on: %s", stat)
	}
}

// parent returns the parent's process ID.
func parent(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestShimDiesWhileDown kills the shim while no daemon runs.
func TestShimDiesWhileDown(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	spec := conformance.NewSpec("orphan", conformance.Ignores())
	c, err := h.runtime.Controller(spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	pid, err := c.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	h.halt(t)
	if err := syscall.Kill(parent(t, pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.boot(t)
	if c, err = h.runtime.Open(spec.ID); err != nil {
		t.Fatal(err)
	}
	exit, err := c.Wait(ctx)
	if err != nil || exit.Code != 137 || exit.Err == "" {
		t.Errorf("exit = %+v, %v", exit, err)
	}
}

// TestNeighbours runs two daemons in one process with a container of the same ID each.
func TestNeighbours(t *testing.T) {
	a, b := newHost(t), newHost(t)
	a.boot(t)
	b.boot(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var controllers []rt.Controller
	for _, h := range []*host{a, b} {
		c, err := h.runtime.Controller(conformance.NewSpec("same", conformance.Ignores()))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		controllers = append(controllers, c)
	}
	if err := controllers[0].Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := controllers[1].Status(ctx); err != nil || s.State != rt.Running {
		t.Errorf("the neighbour's container: %+v, %v", s, err)
	}
}

func TestRuncMissing(t *testing.T) {
	h := newHost(t)
	h.cfg.Runc = "no-such-runc"
	h.boot(t)
	err := h.runtime.Check(t.Context())
	if rt.KindOf(err) != rt.KindRuncMissing || !strings.Contains(err.Error(), "apt-get install runc") {
		t.Errorf("Check = %v", err)
	}
	c, err := h.runtime.Controller(conformance.NewSpec("x", conformance.Obeys()))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Prepare(t.Context()); rt.KindOf(err) != rt.KindRuncMissing {
		t.Errorf("Prepare = %v", err)
	}
}

func TestLongState(t *testing.T) {
	_, err := New(Config{Root: "/r", State: "/" + strings.Repeat("x", 60), Instance: "i", Shim: "/s", Log: testLog(t)})
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("New = %v", err)
	}
}

// noted are volumes that know who uses them.
type noted struct {
	dirVolumes
	mu    sync.Mutex
	users map[string]bool
}

func (n *noted) Mount(ctx context.Context, container, name string, labels, options map[string]string) (string, error) {
	n.mu.Lock()
	n.users[container+" "+name] = true
	n.mu.Unlock()
	return n.dirVolumes.Mount(ctx, container, name, labels, options)
}

func (n *noted) Unmount(_ context.Context, container, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.users, container+" "+name)
	return nil
}

func (n *noted) list() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(n.users)), "\n")
}

// The volumes of a container that ended are mounted for those who look at its files, each of whom uses them.
func TestRootOfEndedUsesItsVolumes(t *testing.T) {
	h := newHost(t)
	volumes := &noted{dirVolumes: h.cfg.Volumes.(dirVolumes), users: map[string]bool{}}
	h.cfg.Volumes = volumes
	h.boot(t)
	spec := conformance.NewSpec("visited", shell("true"))
	container(&spec).Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "vol", Target: "/data"}, {Type: mount.TypeTmpfs, Target: "/t"}}
	c, err := h.runtime.Controller(spec)
	if err == nil {
		err = c.Prepare(t.Context())
	}
	if err == nil {
		_, err = c.Start(t.Context())
	}
	if err == nil {
		_, err = c.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	wantUsers := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); volumes.list() != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the volumes' users are %q, want %q", volumes.list(), want)
			}
		}
	}
	wantUsers("")
	var releases []func()
	for range 2 {
		_, release, err := c.Root(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	wantUsers(spec.ID + " (copying, 1) vol\n" + spec.ID + " (copying, 2) vol")
	releases[0]()
	wantUsers(spec.ID + " (copying, 2) vol")
	releases[1]()
	wantUsers("")
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
}
