package agent

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/netapply"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/fake"
	"github.com/skep-swarm/skep/internal/vault"
	"github.com/skep-swarm/skep/internal/wire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// The parts that a daemon puts here.
var (
	_ Network  = (*netapply.Network)(nil)
	_ Keeper   = (*keeper.Client)(nil)
	_ Managers = (*wire.Managers)(nil)
	_ Files    = (*vault.Store)(nil)
)

// fakeManagers dial in memory.
type fakeManagers struct {
	ln *bufconn.Listener
}

func (m *fakeManagers) Dial(context.Context) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///manager", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.ln.DialContext(ctx) }))
}
func (m *fakeManagers) Set([]string) {}

// host is a node that outlives the agents that run on it.
type host struct {
	dir    string
	node   *fake.Node
	net    *fakeNet
	keeper *fakeKeeper
	files  *fakeFiles
	images Images // nil: they are all here
	ln     *bufconn.Listener
}

const testImage = "busybox"

func newHost(t testing.TB) *host {
	return &host{dir: t.TempDir(), node: fake.NewNode(testImage), net: newFakeNet(), keeper: newFakeKeeper(), files: newFakeFiles(), ln: bufconn.Listen(1 << 20)}
}

func (h *host) config() Config {
	return Config{
		Dir: filepath.Join(h.dir, "agent"), Containers: filepath.Join(h.dir, "containers"),
		Node:     netplan.Node{Instance: "abcdef", Link4: netip.MustParsePrefix("192.168.77.0/30")},
		Managers: &fakeManagers{h.ln}, Runtime: h.node.Runtime(), Network: h.net, Keeper: h.keeper, Files: h.files, Images: h.images,
		Describe: func(context.Context) (Description, error) {
			return Description{Node: swarm.NodeDescription{Hostname: "host1", Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}}}, nil
		},
		Log: slog.New(slog.DiscardHandler), ResolvConf: filepath.Join(h.dir, "resolv.conf"), Hosts: filepath.Join(h.dir, "hosts"),
	}
}

// start runs an agent; stop, or the end of the test, ends it as the end of the daemon does.
func (h *host) start(t testing.TB) (a *Agent, stop func()) {
	t.Helper()
	a, err := New(h.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	t.Cleanup(stop)
	return a, stop
}

// kill copies what is on disk now to a new place and goes on from there, as if the process had been killed at this moment.
func (h *host) fork(t testing.TB) *host {
	t.Helper()
	n := *h
	n.dir = t.TempDir()
	if err := os.CopyFS(filepath.Join(n.dir, "agent"), os.DirFS(filepath.Join(h.dir, "agent"))); err != nil {
		t.Fatal(err)
	}
	return &n
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func containerState(n *fake.Node, id string) runtime.State {
	for _, c := range n.Containers() {
		if c.ID == id {
			return c.State
		}
	}
	return ""
}
