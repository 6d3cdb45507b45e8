package wire

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/skep-swarm/skep/internal/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// Managers are the addresses at which a node reaches a manager. Safe for concurrent use.
type Managers struct {
	tls *tls.Config

	mu    sync.Mutex
	addrs []string
	next  int
}

// NewManagers makes a list of addresses (host:port), dialled with pki.ClientTLS for the role of a manager and "h2".
func NewManagers(cfg *tls.Config, addrs ...string) *Managers {
	m := &Managers{tls: cfg}
	m.Set(addrs)
	return m
}

// Set replaces the addresses. The order in which they are tried is random, so that nodes spread over managers, but
// for the first of a fresh list, which is tried first.
func (m *Managers) Set(addrs []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := slices.Sorted(slices.Values(addrs))
	if have := slices.Sorted(slices.Values(m.addrs)); slices.Equal(known, have) {
		return
	}
	m.addrs, m.next = slices.Clone(addrs), 0
	if len(m.addrs) > 2 {
		rest := m.addrs[1:]
		rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	}
}

// Addrs are the addresses in the order in which they are tried.
func (m *Managers) Addrs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.addrs)
}

// Dial connects to the next manager in turn and waits until the connection stands. The caller closes it.
func (m *Managers) Dial(ctx context.Context) (*grpc.ClientConn, error) {
	m.mu.Lock()
	if len(m.addrs) == 0 {
		m.mu.Unlock()
		return nil, model.Errorf(model.Unavailable, "no manager's address is known")
	}
	addr := m.addrs[m.next%len(m.addrs)]
	m.next++
	m.mu.Unlock()
	conn, err := NewClient(addr, m.tls)
	if err != nil {
		return nil, err
	}
	conn.Connect()
	for {
		switch s := conn.GetState(); s {
		case connectivity.Ready:
			return conn, nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			// The reason is known to calls only.
			err := conn.Invoke(ctx, "/skep.wire.v1.CA/None", nil, nil)
			conn.Close()
			if err = FromStatus(err); err == nil {
				err = model.Errorf(model.Unavailable, "connection lost")
			}
			return nil, model.Errorf(model.Unavailable, "manager %s: %v", addr, err)
		default:
			if !conn.WaitForStateChange(ctx, s) {
				conn.Close()
				return nil, context.Cause(ctx)
			}
		}
	}
}
