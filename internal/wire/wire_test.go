package wire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type services struct {
	pb.UnimplementedCAServer
	pb.UnimplementedDispatchServer
}

func (services) GetRootCA(context.Context, *pb.GetRootCARequest) (*pb.GetRootCAResponse, error) {
	return &pb.GetRootCAResponse{CaPem: []byte("root")}, nil
}

func (services) IssueNodeCertificate(ctx context.Context, _ *pb.IssueNodeCertificateRequest) (*pb.IssueNodeCertificateResponse, error) {
	id, err := Peer(ctx)
	return &pb.IssueNodeCertificateResponse{NodeId: id.Node}, err
}

func (services) Session(s pb.Dispatch_SessionServer) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	return model.Errorf(model.FailedPrecondition, "seen")
}

type ca struct {
	t  *testing.T
	ca *pki.CA
}

func newCA(t *testing.T) ca {
	c, err := pki.NewCA(rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca{t, c}
}

func (c ca) credentials(node string, role pki.Role) *pki.Credentials {
	c.t.Helper()
	key, err := pki.NewNodeKey(rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	csr, err := pki.NewCSR(rand.Reader, key)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := c.ca.Issue(rand.Reader, time.Now(), csr, pki.Identity{Node: node, Cluster: "cluster", Role: role}, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	cred, err := pki.NewCredentials(pki.EncodeCerts(cert), keyPEM, c.ca.CertPEM(), time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	return cred
}

func fixed(c *pki.Credentials) pki.Source { return func() *pki.Credentials { return c } }

// port is a Mux with both protocols on a loopback port.
type port struct {
	mux  *Mux
	addr string
	cred atomic.Pointer[pki.Credentials]
}

func newPort(t *testing.T, c ca, limits MuxConfig) *port {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &port{addr: ln.Addr().String()}
	p.cred.Store(c.credentials("manager1", pki.Manager))
	p.mux = NewMux(ln, pki.ServerTLS(p.cred.Load, time.Now, false, ProtoGRPC, ProtoRaft, "echo/1"), limits)
	g, open := NewServer(), NewOpenServer()
	pb.RegisterCAServer(g, services{})
	pb.RegisterDispatchServer(g, services{})
	pb.RegisterCAServer(open, services{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	grpcL, raftL := p.mux.Listener(ProtoGRPC), p.mux.Listener(ProtoRaft)
	strangers := p.mux.Strangers(ProtoGRPC)
	wg.Go(func() { _ = g.Serve(grpcL) })
	wg.Go(func() { _ = open.Serve(strangers) })
	for _, l := range []net.Listener{raftL, p.mux.Strangers("echo/1")} {
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { defer conn.Close(); _, _ = io.Copy(conn, conn) })
			}
		})
	}
	wg.Go(func() {
		if err := p.mux.Run(ctx); err != nil {
			t.Errorf("mux: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); g.Stop(); open.Stop(); wg.Wait() })
	return p
}

func session(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	s, err := pb.NewDispatchClient(conn).Session(t.Context())
	if err == nil {
		err = s.Send(&pb.FromAgent{})
	}
	if err == nil || errors.Is(err, io.EOF) {
		_, err = s.Recv()
	}
	return FromStatus(err)
}

func TestOnePort(t *testing.T) {
	c := newCA(t)
	p := newPort(t, c, MuxConfig{})
	worker := fixed(c.credentials("worker1", pki.Worker))

	m := NewManagers(pki.ClientTLS(worker, time.Now, string(pki.Manager), ProtoGRPC), p.addr)
	conn, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := pb.NewCAClient(conn).IssueNodeCertificate(t.Context(), &pb.IssueNodeCertificateRequest{})
	if err != nil || r.NodeId != "worker1" {
		t.Errorf("the caller is %q, %v", r.GetNodeId(), err)
	}
	if err := session(t, conn); model.KindOf(err) != model.FailedPrecondition || err.Error() != "seen" {
		t.Errorf("an error's kind and text over the wire: %v", err)
	}

	raft, err := DialProto(t.Context(), p.addr, pki.ClientTLS(worker, time.Now, string(pki.Manager), ProtoRaft))
	if err != nil {
		t.Fatal(err)
	}
	defer raft.Close()
	if _, err := raft.Write([]byte("vote")); err != nil {
		t.Fatal(err)
	}
	var echo [4]byte
	if _, err := io.ReadFull(raft, echo[:]); err != nil || string(echo[:]) != "vote" {
		t.Errorf("raft's stream: %q, %v", echo, err)
	}
	if _, err := DialProto(t.Context(), p.addr, pki.ClientTLS(worker, time.Now, string(pki.Manager), "gopher/1")); err == nil {
		t.Error("a protocol that nobody serves was accepted")
	}
}

func TestWithoutCertificateOnlyCA(t *testing.T) {
	c := newCA(t)
	p := newPort(t, c, MuxConfig{})
	token := pki.MakeToken(c.ca.Certificate(), strings.Repeat("a", 25))
	conn, err := NewClient(p.addr, pki.JoinTLS(token, time.Now, ProtoGRPC))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if r, err := pb.NewCAClient(conn).GetRootCA(t.Context(), &pb.GetRootCARequest{}); err != nil || string(r.CaPem) != "root" {
		t.Errorf("root: %v", err)
	}
	if err := session(t, conn); model.KindOf(err) != model.Unauthorized {
		t.Errorf("a session without a certificate: %v", err)
	}
	raft, err := DialProto(t.Context(), p.addr, pki.JoinTLS(token, time.Now, ProtoRaft))
	if err == nil {
		defer raft.Close()
		raft.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err = raft.Write([]byte("x")); err == nil {
			_, err = raft.Read(make([]byte, 1))
		}
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the log's protocol without a certificate: %v", err)
	}
}

// Before it is known who asks, a client can make a manager keep little; a node may send more.
func TestStrangersSendLittle(t *testing.T) {
	c := newCA(t)
	p := newPort(t, c, MuxConfig{})
	token := pki.MakeToken(c.ca.Certificate(), strings.Repeat("a", 25))
	stranger, err := NewClient(p.addr, pki.JoinTLS(token, time.Now, ProtoGRPC))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	node, err := NewClient(p.addr, pki.ClientTLS(fixed(c.credentials("worker1", pki.Worker)), time.Now, string(pki.Manager), ProtoGRPC))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	ask := func(conn *grpc.ClientConn, size int) error {
		_, err := pb.NewCAClient(conn).IssueNodeCertificate(t.Context(), &pb.IssueNodeCertificateRequest{CsrPem: make([]byte, size)})
		return FromStatus(err)
	}
	if err := ask(stranger, maxFromStranger+1); model.KindOf(err) != model.Exhausted {
		t.Errorf("a stranger's long message: %v", err)
	}
	if err := ask(node, maxFromStranger+1); err != nil {
		t.Errorf("a node's: %v", err)
	}
	if err := ask(node, maxFromNode+1); model.KindOf(err) != model.Exhausted {
		t.Errorf("a node's far too long message: %v", err)
	}
}

// Whoever has no certificate takes one of few places, and not for long; nodes have theirs all the same.
func TestStrangersAreFew(t *testing.T) {
	c := newCA(t)
	p := newPort(t, c, MuxConfig{MaxStrangers: 1, StrangerTime: 300 * time.Millisecond})
	stranger := pki.JoinTLS(pki.MakeToken(c.ca.Certificate(), strings.Repeat("a", 25)), time.Now, "echo/1")
	echo := func(conn net.Conn) error {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, err := conn.Write([]byte("x"))
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		return err
	}
	first, err := DialProto(t.Context(), p.addr, stranger)
	if err == nil {
		err = echo(first)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if second, err := DialProto(t.Context(), p.addr, stranger); err == nil {
		if echo(second) == nil {
			t.Error("one stranger too many was served")
		}
		second.Close()
	}
	node, err := DialProto(t.Context(), p.addr, pki.ClientTLS(fixed(c.credentials("worker1", pki.Worker)), time.Now, string(pki.Manager), ProtoRaft))
	if err == nil {
		err = echo(node)
	}
	if err != nil {
		t.Fatalf("a node beside a stranger: %v", err)
	}
	defer node.Close()
	if _, err := first.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stranger that stays: %v", err)
	}
	if err := echo(node); err != nil {
		t.Errorf("a node that stays: %v", err)
	}
}

// A foreign cluster's nodes get nowhere, and when the roots change, so do those of the old root.
func TestForeignAndRotatedRoots(t *testing.T) {
	c, other := newCA(t), newCA(t)
	p := newPort(t, c, MuxConfig{})
	foreign := other.credentials("worker1", pki.Worker)
	dial := func(shown *pki.Credentials) error {
		cfg := pki.ClientTLS(fixed(shown), time.Now, string(pki.Manager), ProtoGRPC)
		cfg.VerifyConnection = nil
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		conn, err := NewClient(p.addr, cfg)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = pb.NewCAClient(conn).GetRootCA(ctx, &pb.GetRootCARequest{})
		return err
	}
	mine := c.credentials("worker1", pki.Worker)
	if err := dial(mine); err != nil {
		t.Errorf("own node: %v", err)
	}
	if err := dial(foreign); err == nil {
		t.Error("a foreign node was let in")
	}
	p.cred.Store(other.credentials("manager1", pki.Manager))
	if err := dial(mine); err == nil {
		t.Error("the old root's node was let in after the rotation")
	}
	if err := dial(foreign); err != nil {
		t.Errorf("the new root's node: %v", err)
	}
}

// A client that says nothing is hung up on.
func TestHandshakeTimeout(t *testing.T) {
	p := newPort(t, newCA(t), MuxConfig{HandshakeTimeout: 50 * time.Millisecond})
	slow, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	slow.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := slow.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a client that says nothing: %v", err)
	}
}

func TestLimits(t *testing.T) {
	c := newCA(t)
	p := newPort(t, c, MuxConfig{MaxConns: 2})
	cfg := pki.ClientTLS(fixed(c.credentials("worker1", pki.Worker)), time.Now, string(pki.Manager), ProtoRaft)
	var open []net.Conn
	for range 2 {
		conn, err := DialProto(t.Context(), p.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() }) // before the port's, which waits for it
		open = append(open, conn)
	}
	if conn, err := DialProto(t.Context(), p.addr, cfg); err == nil {
		// With TLS 1.3 the client may be done before it is hung up on.
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("one connection too many was served")
		}
		conn.Close()
	}
	for _, conn := range open {
		conn.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := DialProto(t.Context(), p.addr, cfg)
		if err == nil {
			_, err = conn.Write([]byte("x"))
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
			}
			conn.Close()
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no place was given back: %v", err)
		}
	}
}

func TestManagersFailOver(t *testing.T) {
	c := newCA(t)
	p := newPort(t, c, MuxConfig{})
	const dead = "127.0.0.1:1" // no test is given this port
	m := NewManagers(pki.ClientTLS(fixed(c.credentials("w", pki.Worker)), time.Now, string(pki.Manager), ProtoGRPC), dead, p.addr)
	if _, err := m.Dial(t.Context()); model.KindOf(err) != model.Unavailable || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a manager that is down: %v", err)
	}
	conn, err := m.Dial(t.Context())
	if err != nil {
		t.Fatalf("the next one: %v", err)
	}
	conn.Close()
	if _, err := NewManagers(&tls.Config{}).Dial(t.Context()); model.KindOf(err) != model.Unavailable {
		t.Errorf("no address: %v", err)
	}
}

func TestConversions(t *testing.T) {
	r := model.TaskReport{Task: model.TaskID{Service: 3, Num: 4}, State: model.StateFailed, Err: strings.Repeat("ü", MaxStatusText), PID: 5, ExitCode: -1}
	got, err := TaskReport(Report(r))
	if err != nil || got.Task != r.Task || got.State != r.State || got.PID != 5 || got.ExitCode != -1 || len(got.Err) > MaxStatusText || !strings.HasSuffix(got.Err, "ü…") {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []model.TaskState{0, model.StatePending, model.StateOrphaned, model.StateRemove, 257, 1 << 15} {
		if _, err := TaskReport(&pb.TaskStatus{State: uint32(bad)}); err == nil {
			t.Errorf("state %d was accepted", bad)
		}
	}
	if _, err := TaskReport(&pb.TaskStatus{State: 1<<16 + uint32(model.StateRunning)}); err == nil {
		t.Error("a state beyond 16 bits was accepted")
	}
	if _, err := Addr([]byte{1, 2, 3}); err == nil {
		t.Error("an address of 3 bytes")
	}
	for kind := model.Invalid; kind <= model.Exhausted; kind++ {
		in := model.Errorf(kind, "text")
		if out := FromStatus(ToStatus(in)); model.KindOf(out) != kind || out.Error() != "text" {
			t.Errorf("kind %d became %v", kind, out)
		}
		if out := PartsError(ErrorParts(in)); model.KindOf(out) != kind {
			t.Errorf("parts of kind %d became %v", kind, out)
		}
	}
}
