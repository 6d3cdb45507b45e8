package dispatch

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a replica with a proposer that applies at once, and a Server on it.
type cluster struct {
	t      testing.TB
	rep    *replica.Replica
	srv    *Server
	ca     *pki.CA
	secret string // of workers

	mu        sync.Mutex
	index     uint64
	proposals int
	refuse    error // of Propose
	leases    []Lease

	ln *bufconn.Listener
}

// asNode are credentials of a test's server that take the caller's word for which node it is.
type asNode struct {
	credentials.TransportCredentials
	certs func(node string) *x509.Certificate
}

func (a asNode) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	var n [1]byte
	if _, err := c.Read(n[:]); err != nil {
		return nil, nil, err
	}
	id := make([]byte, n[0])
	if _, err := c.Read(id); n[0] > 0 && err != nil {
		return nil, nil, err
	}
	st := tls.ConnectionState{HandshakeComplete: true}
	if n[0] > 0 {
		st.PeerCertificates = []*x509.Certificate{a.certs(string(id))}
	}
	return c, credentials.TLSInfo{State: st, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

func (a asNode) Clone() credentials.TransportCredentials { return a }

// newCluster makes a cluster with a number of nodes, each with a /24.
func newCluster(t testing.TB, nodes int) *cluster {
	t.Helper()
	ca, err := pki.NewCA(rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, secret: secret, rep: replica.New(), ca: ca, ln: bufconn.Listen(1 << 20)}
	period := time.Second
	if nodes > 10 {
		period = time.Hour // peers of a benchmark send no heartbeats
	}
	spec, err := model.MakeSpec(&swarm.Spec{Dispatcher: swarm.DispatcherConfig{HeartbeatPeriod: period}})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{1}, Incarnation: 1, FeatureLevel: 1, Spec: spec, CACert: ca.CertPEM(), CAKey: key,
		WorkerSecret: secret, ManagerSecret: "1234567890123456789012345", GatewayPool: netip.MustParsePrefix("10.128.0.0/16")}})
	for i := range nodes {
		n := model.Node{ID: model.NodeID(i + 1), Spec: swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive},
			Blocks: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128, byte(i + 1)}), 24)}}
		if i == 0 {
			n.ManagerAddr = "127.0.0.1:2377"
		}
		c.apply(model.Change{PutNode: &n})
	}
	if c.srv, err = New(Config{State: c.rep, Proposer: c, Log: slog.New(slog.DiscardHandler), Lease: c.lease}); err != nil {
		t.Fatal(err)
	}
	c.serve()
	return c
}

func (c *cluster) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	cert := func(node string) *x509.Certificate { return c.cert(node) }
	g := grpc.NewServer(grpc.Creds(asNode{insecure.NewCredentials(), cert}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return wire.ToStatus(next(srv, ss))
		}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			res, err := next(ctx, req)
			return res, wire.ToStatus(err)
		}))
	c.srv.Register(g)
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.srv.Run(ctx) })
	wg.Go(func() { _ = g.Serve(c.ln) })
	for running := false; !running; time.Sleep(time.Millisecond) {
		c.srv.mu.Lock()
		running = c.srv.running
		c.srv.mu.Unlock()
	}
	c.t.Cleanup(func() { cancel(); g.Stop(); wg.Wait() })
}

// certs are slow to make; one per node is enough for a whole test run.
func (c *cluster) cert(node string) *x509.Certificate {
	key, err := pki.NewNodeKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	csr, err := pki.NewCSR(rand.Reader, key)
	if err != nil {
		panic(err)
	}
	cert, err := c.ca.Issue(rand.Reader, time.Now(), csr, pki.Identity{Node: node, Cluster: "c", Role: pki.Worker}, 0)
	if err != nil {
		panic(err)
	}
	return cert
}

func (c *cluster) lease(l Lease) {
	// Called with the server's lock held, so it may only note.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leases = append(c.leases, l)
}

// Propose implements Proposer.
func (c *cluster) Propose(_ context.Context, b *model.Batch) (*model.Outcome, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return nil, c.refuse
	}
	c.proposals++
	c.index++
	data, err := state.EncodeBatch(b)
	if err != nil {
		return nil, err
	}
	switch r := c.rep.Apply(c.index, data).(type) {
	case *model.Outcome:
		return r, nil
	case error:
		return nil, r
	}
	return nil, nil
}

func (c *cluster) apply(changes ...model.Change) {
	c.t.Helper()
	b := &model.Batch{Time: model.Time(time.Now().UnixNano()), Txns: []model.Txn{{Changes: changes}}}
	if _, err := rand.Read(b.ID[:]); err != nil {
		c.t.Fatal(err)
	}
	out, err := c.Propose(context.Background(), b)
	if err == nil {
		err = out.Results[0]
	}
	if err != nil {
		c.t.Fatalf("apply: %v", err)
	}
}

// service makes a service with a published port.
func (c *cluster) service(id model.ServiceID, name string, port uint32) {
	c.t.Helper()
	ss := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: name}}
	ss.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "busybox"}
	spec, err := model.MakeSpec(&ss)
	if err != nil {
		c.t.Fatal(err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil {
		c.t.Fatal(err)
	}
	tpl.ID = model.TemplateID(id)
	rev := &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}
	if port != 0 {
		rev.Ports = []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: port, PublishMode: swarm.PortConfigPublishModeIngress}}
	}
	c.apply(model.Change{NewRevision: rev})
}

func (c *cluster) task(svc model.ServiceID, num uint64, node model.NodeID) model.TaskID {
	c.t.Helper()
	id := model.TaskID{Service: svc, Num: num}
	c.apply(model.Change{PutTask: &model.Task{ID: id, Slot: uint32(num), Template: model.TemplateID(svc), Node: node, State: model.StateAssigned,
		Desired: model.StateRunning, Gateway4: netip.AddrFrom4([4]byte{10, 128, byte(node), byte(num + 1)})}})
	return id
}

// peer is a node that a test plays.
type peer struct {
	t      testing.TB
	conn   *grpc.ClientConn
	stream pb.Dispatch_SessionClient
	cancel context.CancelFunc
	got    chan *pb.ToAgent

	welcome *pb.Welcome
}

func (c *cluster) dial(node model.NodeID) *grpc.ClientConn {
	c.t.Helper()
	id := ""
	if node != 0 {
		id = c.rep.Snapshot().Cluster().Namer().NodeID(node)
	}
	conn, err := grpc.NewClient("passthrough:///manager", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			nc, err := c.ln.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			if _, err := nc.Write(append([]byte{byte(len(id))}, id...)); err != nil {
				return nil, err
			}
			return nc, nil
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

func description(host string) *pb.Description {
	raw, _ := json.Marshal(swarm.NodeDescription{Hostname: host})
	return &pb.Description{DescriptionJson: raw}
}

// join begins a session. The error is what the server said instead of a welcome.
func (c *cluster) join(node model.NodeID, hello *pb.Hello) (*peer, error) {
	c.t.Helper()
	conn := c.dial(node)
	ctx, cancel := context.WithCancel(context.Background())
	p := &peer{t: c.t, conn: conn, cancel: cancel, got: make(chan *pb.ToAgent, 256)}
	stream, err := pb.NewDispatchClient(conn).Session(ctx)
	if err == nil {
		err = stream.Send(&pb.FromAgent{Kind: &pb.FromAgent_Hello{Hello: hello}})
	}
	var first *pb.ToAgent
	if err == nil {
		first, err = stream.Recv()
	}
	if err != nil {
		cancel()
		conn.Close()
		return nil, wire.FromStatus(err)
	}
	p.stream, p.welcome = stream, first.GetWelcome()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(p.got)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			p.got <- m
		}
	}()
	c.t.Cleanup(func() {
		cancel()
		for range p.got {
		}
		<-done
		conn.Close()
	})
	return p, nil
}

func (c *cluster) mustJoin(node model.NodeID) *peer {
	c.t.Helper()
	p, err := c.join(node, &pb.Hello{Description: description("host")})
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (p *peer) send(m *pb.FromAgent) {
	p.t.Helper()
	if err := p.stream.Send(m); err != nil {
		p.t.Fatal(err)
	}
}

// next waits for a message that want picks.
func next[T any](p *peer, what string, want func(*pb.ToAgent) (T, bool)) T {
	p.t.Helper()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	for {
		select {
		case m, ok := <-p.got:
			if !ok {
				p.t.Fatalf("the session ended before %s", what)
			}
			if v, ok := want(m); ok {
				return v
			}
		case <-timer.C:
			p.t.Fatalf("never: %s", what)
		}
	}
}

func assignments(m *pb.ToAgent) (*pb.Assignments, bool) {
	a := m.GetAssignments()
	return a, a != nil
}

func tablesOf(m *pb.ToAgent) (*pb.Tables, bool) {
	if m.GetTables() == nil {
		return nil, false
	}
	t := &pb.Tables{}
	return t, proto.Unmarshal(m.GetTables(), t) == nil
}

func (p *peer) report(session, seq uint64, id model.TaskID, st model.TaskState) {
	p.send(&pb.FromAgent{Kind: &pb.FromAgent_Reports{Reports: &pb.Reports{Session: session, Seq: seq,
		Tasks: []*pb.TaskStatus{{Task: wire.Ref(id), State: uint32(st), Message: st.String()}}}}})
}

func acked(seq uint64) func(*pb.ToAgent) (bool, bool) {
	return func(m *pb.ToAgent) (bool, bool) { a := m.GetReportsAck(); return true, a != nil && a.Seq == seq }
}
