// Package test runs stories: scripts in testdata that drive the stock docker CLI
// against a real daemon on a host of its own. README.md lists the commands.
package test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/skep-swarm/skep/internal/lab"
	"github.com/skep-swarm/skep/internal/testimage"
)

func TestMain(m *testing.M) {
	lab.Dispatch()
	// Stories wait more than they work. Before flag.Parse, so that -parallel has its way.
	if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
		fmt.Fprintln(os.Stderr, "setting how many stories run at once:", err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// minDocker is the oldest docker CLI that the stories are written for.
const minDocker = 28

func TestStories(t *testing.T) {
	if err := lab.Available(); err != nil {
		t.Skip("stories need a lab: ", err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	skep := filepath.Join(root, "bin", "skep")
	if _, err := os.Stat(skep); err != nil {
		t.Skip("bin/skep is not built: run `make build`")
	}
	docker, err := findDocker(root)
	if err != nil {
		t.Skip(err)
	}
	for _, tool := range []string{"runc", "nft", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: run `make install-deps`", tool)
		}
	}
	shared := &sharedParts{
		root: root, skep: skep, docker: docker,
		images: testimage.Cache{Dir: filepath.Join(root, ".cache", "images"), Source: root},
	}
	cmds := map[string]func(*testscript.TestScript, bool, []string){}
	for name, run := range commands() {
		cmds[name] = scriptCommand(name, run)
	}
	deadline, _ := t.Deadline() // none is the zero time, for both
	testscript.Run(t, testscript.Params{
		Dir:      "testdata",
		Deadline: deadline, // scripts are interrupted a little before it, with their story so far
		Setup: func(env *testscript.Env) error {
			s, err := newStory(env, shared)
			if err != nil {
				return err
			}
			env.Values[storyKey{}] = s
			return nil
		},
		Cmds: cmds,
	})
}

// findDocker returns bin/docker or the one on PATH, if it is new enough.
func findDocker(root string) (string, error) {
	for _, path := range []string{filepath.Join(root, "bin", "docker"), "docker"} {
		out, err := exec.Command(path, "--version").Output()
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(out), "version ")
		major, _, _ := strings.Cut(rest, ".")
		if n, err := strconv.Atoi(major); err == nil && n >= minDocker {
			return exec.LookPath(path)
		}
	}
	return "", fmt.Errorf("no docker CLI %d or newer: run `make docker-cli`", minDocker)
}

// sharedParts are the same for all stories.
type sharedParts struct {
	root, skep, docker string
	images             testimage.Cache
}

type storyKey struct{}

// A story is one script at work: its lab, its daemon and what it keeps running.
type story struct {
	*sharedParts
	lab          *lab.Lab
	node, client *lab.Host
	dir          string   // short, as unix sockets want it
	work         string   // the script's directory
	vars         []string // the script's environment

	binary    string // what `daemon start` runs
	daemon    *exec.Cmd
	daemonLog *os.File
	ended     chan struct{} // closed when daemon has been reaped

	snapshots map[string]lab.Snapshot
	traffic   *traffic
	watch     *watch
	conns     map[string]net.Conn
	loads     map[string]*load
	registry  *testRegistry
	debian    *debianRegistry
}

func newStory(env *testscript.Env, shared *sharedParts) (*story, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("/tmp", "s")
	if err != nil {
		return nil, err
	}
	env.Defer(func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "ending a story:", err)
		}
	})
	s := &story{sharedParts: shared, dir: dir, work: env.WorkDir, binary: shared.skep,
		snapshots: map[string]lab.Snapshot{}, conns: map[string]net.Conn{}, loads: map[string]*load{}}
	if s.lab, err = lab.New(); err != nil {
		return nil, err
	}
	env.Defer(func() { // runs before the directory is removed
		if err := s.close(); err != nil {
			fmt.Fprintln(os.Stderr, "ending a story:", err)
		}
	})
	if s.node, err = s.lab.AddHost(ctx, "node"); err != nil {
		return nil, err
	}
	if s.client, err = s.lab.AddHost(ctx, "client"); err != nil {
		return nil, err
	}
	if s.daemonLog, err = os.Create(filepath.Join(dir, "daemon.log")); err != nil {
		return nil, err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	for name, path := range map[string]string{"docker": shared.docker, "skep": shared.skep} {
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			return nil, err
		}
	}
	env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	env.Setenv("HOME", dir)
	// The user's, so that what a script builds is built once.
	if cache, err := os.UserCacheDir(); err == nil {
		env.Setenv("GOCACHE", cmp.Or(os.Getenv("GOCACHE"), filepath.Join(cache, "go-build")))
	}
	env.Setenv("DOCKER_HOST", "unix://"+s.socket())
	env.Setenv("DOCKER_CONFIG", dir)
	env.Setenv("ROOT", shared.root)
	env.Setenv("DATA", s.data())
	env.Setenv("EXEC", s.exec())
	env.Setenv("SOCKET", s.socket())
	env.Setenv("DAEMON_LOG", s.daemonLog.Name())
	env.Setenv("NODE", s.node.Addr4().String())
	env.Setenv("NODE6", s.node.Addr6().String())
	env.Setenv("CLIENT", s.client.Addr4().String())
	env.Setenv("CLIENT6", s.client.Addr6().String())
	s.vars = slices.Clone(env.Vars)
	return s, nil
}

func (s *story) data() string   { return filepath.Join(s.dir, "d") }
func (s *story) exec() string   { return filepath.Join(s.dir, "e") }
func (s *story) socket() string { return filepath.Join(s.exec(), "skep.sock") }

func (s *story) close() error {
	if s.traffic != nil {
		s.traffic.stop()
	}
	if s.watch != nil {
		s.watch.stop()
	}
	for _, l := range s.loads {
		l.stop()
	}
	for _, c := range s.conns {
		c.Close()
	}
	if s.registry != nil && s.registry.server != nil {
		if err := s.registry.down(); err != nil {
			fmt.Fprintln(os.Stderr, "ending a story's registry:", err)
		}
	}
	if s.debian != nil {
		if err := s.debianKill(); err != nil {
			fmt.Fprintln(os.Stderr, "ending a story's docker-registry:", err)
		}
	}
	err := s.lab.Close() // kills the daemon and all that it started
	if s.daemon != nil {
		<-s.ended
	}
	return errors.Join(err, s.daemonLog.Close())
}

// A command of the scripts returns what it prints. Every command has a time limit.
type command func(ctx context.Context, s *story, args []string) (string, error)

const commandLimit = 90 * time.Second

func scriptCommand(name string, run command) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		s, ok := ts.Value(storyKey{}).(*story)
		if !ok {
			ts.Fatalf("%s: the story was not set up", name)
		}
		for i, v := range s.vars { // the script may have changed some with `env`
			name, _, _ := strings.Cut(v, "=")
			s.vars[i] = name + "=" + ts.Getenv(name)
		}
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		defer cancel()
		out, err := run(ctx, s, args)
		fmt.Fprint(ts.Stdout(), out)
		if err != nil {
			fmt.Fprintln(ts.Stderr(), err)
		}
		switch {
		case err == nil && neg:
			ts.Fatalf("%s %s: succeeded, and should not", name, strings.Join(args, " "))
		case err != nil && !neg:
			ts.Fatalf("%s %s: %v\n%s\n%s", name, strings.Join(args, " "), err, out, s.tail())
		}
	}
}

// tail is the end of the daemon's log, for failures.
func (s *story) tail() string {
	text, err := os.ReadFile(s.daemonLog.Name())
	if err != nil {
		return ""
	}
	const most = 4000
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return "the daemon's log ends:\n" + string(text)
}

// run runs a program outside of the hosts, with the script's environment.
func (s *story) run(ctx context.Context, name string, args ...string) (string, error) {
	if name == "docker" {
		name = s.docker
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = s.vars, s.work
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}
