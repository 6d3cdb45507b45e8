package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
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
	MaxMessage     = 16 << 20 // bytes a receiver accepts
	SoftMessage    = 1 << 20  // bytes at which a sender begins another part
	maxStreams     = 1000     // of one connection
	keepaliveIdle  = 10 * time.Second
	keepaliveWait  = 10 * time.Second
	connectTimeout = 10 * time.Second
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

// NewServer makes the gRPC server for the "h2" listener of a Mux. Every call needs a node's certificate but those of
// services that begin with an open prefix ("/skep.wire.v1.CA/"); what a node may ask for beyond that, the services decide.
func NewServer(openPrefixes ...string) *grpc.Server {
	check := func(ctx context.Context, method string) error {
		for _, p := range openPrefixes {
			if strings.HasPrefix(method, p) {
				return nil
			}
		}
		_, err := Peer(ctx)
		return err
	}
	return grpc.NewServer(
		grpc.Creds(handshaken{}),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.ReadBufferSize(8<<10), grpc.WriteBufferSize(16<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveIdle, Timeout: keepaliveWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			res, err := next(ctx, req)
			return res, ToStatus(err)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := check(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return ToStatus(next(srv, ss))
		}),
	)
}

// OpenCA is the prefix of the methods that a client without a certificate may call.
const OpenCA = "/skep.wire.v1.CA/"

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
