package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/wire/pb"
)

// pair is a stream's two ends in memory.
type pair struct {
	ctx     context.Context
	out, in chan *pb.Frame
}

func (p *pair) Context() context.Context { return p.ctx }

func (p *pair) Send(f *pb.Frame) error {
	select {
	case p.out <- f:
		return nil
	case <-p.ctx.Done():
		return io.EOF
	}
}

func (p *pair) Recv() (*pb.Frame, error) {
	select {
	case f := <-p.in:
		return f, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func connPair(t *testing.T) (a, b *Conn) {
	ctx, cancel := context.WithCancel(t.Context())
	x, y := make(chan *pb.Frame), make(chan *pb.Frame)
	a, b = NewConn(&pair{ctx, x, y}, cancel), NewConn(&pair{ctx, y, x}, cancel)
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// Both directions carry bytes in order, and each ends on its own.
func TestConnHalves(t *testing.T) {
	a, b := connPair(t)
	sent := bytes.Repeat([]byte("honey"), 40_000)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if _, err := a.Write(sent); err != nil {
			t.Error(err)
		}
		if err := a.CloseWrite(); err != nil {
			t.Error(err)
		}
		if _, err := a.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after the end: %v", err)
		}
	})
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	wg.Go(func() {
		if _, err := b.Write([]byte("thanks")); err != nil {
			t.Error(err)
		}
		if err := b.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	if back, err := io.ReadAll(a); err != nil || string(back) != "thanks" {
		t.Errorf("%q, %v", back, err)
	}
}

// A deadline interrupts a read without losing what comes later; HTTP servers depend on it.
func TestConnDeadline(t *testing.T) {
	a, b := connPair(t)
	read := make(chan error, 1)
	go func() {
		_, err := b.Read(make([]byte, 10))
		read <- err
	}()
	if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("interrupted: %v", err)
	}
	if err := b.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = a.Write([]byte("late")) }()
	buf := make([]byte, 10)
	if n, err := b.Read(buf); err != nil || string(buf[:n]) != "late" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if err := b.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("timed out: %v", err)
	}
}

func TestConnClose(t *testing.T) {
	a, b := connPair(t)
	go func() { _ = a.Close() }()
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("read from a closed connection")
	}
	<-b.Gone()
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("write to a closed connection")
	}
}
