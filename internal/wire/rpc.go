package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/skep-swarm/skep/internal/pki"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Limits of the protocol. A sender splits what does not fit into MaxMessage.
const (
	MaxMessage         = 16 << 20 // bytes a node accepts from its manager
	SoftMessage        = 1 << 20  // bytes at which a sender begins another part
	maxFromNode        = 4 << 20  // bytes a manager accepts from a node
	maxFromStranger    = 64 << 10 // bytes a manager accepts from a client without a certificate
	maxStreams         = 1000     // of one connection
	maxStrangerStreams = 8        // of one without a certificate
	keepaliveIdle      = 10 * time.Second
	keepaliveWait      = 10 * time.Second
	connectTimeout     = 10 * time.Second
)

// handshaken are the credentials of a server whose connections come from a Mux.
type handshaken struct{}

func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	st, ok := State(c)
	if !ok || !st.HandshakeComplete {
		return nil, nil, errors.New("the connection has no finished TLS handshake")
	}
	info := credentials.TLSInfo{State: st, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	return c, info, nil
}

func (handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

func (handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (h handshaken) Clone() credentials.TransportCredentials { return h }
func (handshaken) OverrideServerName(string) error           { return nil }

// NewServer makes the gRPC server for the "h2" listener of a Mux: every call needs a node's certificate. What a node may ask
// for, the services decide.
func NewServer() *grpc.Server {
	return newServer(func(ctx context.Context) error { _, err := Peer(ctx); return err },
		grpc.MaxRecvMsgSize(maxFromNode), grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(16<<10),
		grpc.ReadBufferSize(8<<10), grpc.WriteBufferSize(16<<10),
	)
}

// NewOpenServer makes the one for the strangers of a Mux. Only services that anybody may call belong on it; all else is
// refused for want of a certificate. A stranger may make it keep little: what it sends is bounded before anybody reads it.
func NewOpenServer() *grpc.Server {
	return newServer(func(context.Context) error { return nil },
		grpc.MaxRecvMsgSize(maxFromStranger), grpc.MaxConcurrentStreams(maxStrangerStreams), grpc.MaxHeaderListSize(8<<10),
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(4<<10),
		// Without these the windows grow with the line's speed.
		grpc.InitialWindowSize(65535), grpc.InitialConnWindowSize(65535),
		grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error { _, err := Peer(ss.Context()); return err }),
	)
}

func newServer(check func(context.Context) error, limits ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(limits,
		grpc.Creds(handshaken{}),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveIdle, Timeout: keepaliveWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := check(ctx); err != nil {
				return nil, err
			}
			res, err := next(ctx, req)
			return res, ToStatus(err)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := check(ss.Context()); err != nil {
				return err
			}
			return ToStatus(next(srv, ss))
		}),
	)...)
}

// Peer is the node at the other end of a call. The error has the gRPC code Unauthenticated.
func Peer(ctx context.Context) (pki.Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.Identity{}, status.Error(codes.Unauthenticated, "the caller is unknown")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return pki.Identity{}, status.Error(codes.Unauthenticated, "the connection is not TLS")
	}
	id, err := pki.PeerIdentity(info.State)
	if err != nil {
		return pki.Identity{}, status.Errorf(codes.Unauthenticated, "a node certificate is needed: %v", err)
	}
	return id, nil
}

// PeerAddr is the address (host only) from which a call came, or "".
func PeerAddr(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return ""
	}
	return host
}

// NewClient makes a gRPC connection to one manager. It connects when it is first used; a call fails at once
// while the manager cannot be reached, so that the caller can turn to another one. cfg is pki.ClientTLS or pki.JoinTLS
// for "h2"; it is asked for every connection, so renewed certificates are used.
func NewClient(addr string, cfg *tls.Config) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveIdle, Timeout: keepaliveWait}),
		grpc.WithContextDialer(func(ctx context.Context, target string) (net.Conn, error) {
			d := net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}
			return d.DialContext(ctx, "tcp", target)
		}),
		// A proxy of the environment is for the web, not for a swarm's own port.
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithReadBufferSize(16<<10), grpc.WithWriteBufferSize(16<<10),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, FromStatus(err)
	}
	return conn, nil
}
