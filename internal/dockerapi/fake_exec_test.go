package dockerapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	fakeruntime "github.com/skep-swarm/skep/internal/runtime/fake"
)

// Exec runs a program of the fake node in a container of the fake node.
func (f *fake) Exec(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.Process, error) {
	c, err := f.controller(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.Exec(ctx, spec)
}

// Withdraw notes what clients are not led to any more, while it runs.
func (f *fake) Withdraw(_ context.Context, id string) (back func()) {
	f.localMu.Lock()
	defer f.localMu.Unlock()
	c, err := f.controller(context.Background(), id)
	if err != nil {
		return func() {}
	}
	st, _ := c.Status(context.Background())
	f.withdrawn = append(f.withdrawn, string(st.State))
	return func() {
		f.localMu.Lock()
		defer f.localMu.Unlock()
		f.withdrawn = append(f.withdrawn, "back")
	}
}

// Control opens a container of the fake node.
func (f *fake) Control(id string) (Control, error) { return f.controller(context.Background(), id) }

// PS shows two processes: the container's first one and the host's.
func (f *fake) PS(_ context.Context, args []string) (string, error) {
	if strings.HasPrefix(args[len(args)-1], "-q") {
		return "", model.Invalidf("ps: no lists")
	}
	return fmt.Sprintf("  PID COMMAND\n    1 init -z\n %d web  -v  x\n    - thread\n", f.node.Containers()[0].PID), nil
}

// controller is a container of the fake node, which runs or has.
func (f *fake) controller(ctx context.Context, id string) (runtime.Controller, error) {
	c, err := f.node.Runtime().Controller(runtime.Spec{ID: id, Task: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "any"}}})
	if err == nil {
		err = c.Prepare(ctx)
	}
	if err == nil {
		_, err = c.Start(ctx)
	}
	return c, err
}

type fakeBehaviour = fakeruntime.Behaviour

func newFakeNode() *fakeruntime.Node {
	n := fakeruntime.NewNode("any")
	n.Program = program
	return n
}

// program is what the commands of the fake node do.
func program(ctx context.Context, _ string, s runtime.ExecSpec) int {
	out := s.Stdout
	if out == nil {
		out = io.Discard
	}
	switch s.Args[0] {
	case "cat":
		if s.Stdin != nil {
			_, _ = io.Copy(out, s.Stdin)
		}
	case "exit":
		n, _ := strconv.Atoi(s.Args[1])
		return n
	case "show":
		fmt.Fprintf(out, "user=%s dir=%s env=%s tty=%v privileged=%v\n", s.User, s.Dir, strings.Join(s.Env, ","), s.TTY, s.Privileged)
	case "both":
		fmt.Fprintln(out, "out")
		if s.Stderr != nil {
			fmt.Fprintln(s.Stderr, "err")
		}
	case "flood":
		for ctx.Err() == nil {
			_, _ = out.Write(make([]byte, 64<<10))
		}
	case "hang":
		if s.Stdin != nil {
			go func() { _, _ = io.Copy(io.Discard, s.Stdin) }()
		}
		fmt.Fprintln(out, "hanging")
		<-ctx.Done()
	}
	return 0
}

// DialNode reaches the other fake nodes.
func (f *fake) DialNode(ctx context.Context, node model.NodeID) (net.Conn, error) {
	f.mu.Lock()
	host := f.others[node]
	f.mu.Unlock()
	if host == "" {
		return nil, model.Errorf(model.Unavailable, "node %d is not connected to this manager", node)
	}
	return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(host, "unix://"))
}
