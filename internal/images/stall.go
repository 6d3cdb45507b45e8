package images

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

const defaultStall = time.Minute

// stalledError says that a registry stopped in the middle of an answer.
type stalledError struct{ after time.Duration }

func (e stalledError) Error() string { return fmt.Sprintf("the registry sent nothing for %v", e.after) }

// watchStalls makes a client's answers fail when nothing comes for too long. net/http bounds the wait for an answer's
// beginning only.
func (r *Registries) watchStalls(c *http.Client) error {
	limit := r.Stall
	if limit <= 0 {
		limit = defaultStall
	}
	c.Transport = stallTransport{next: c.Transport, limit: limit}
	return nil
}

type stallTransport struct {
	next  http.RoundTripper
	limit time.Duration
}

// RoundTrip implements http.RoundTripper.
func (t stallTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	b := &stallBody{ReadCloser: resp.Body, limit: t.limit, cancel: cancel}
	b.timer = time.AfterFunc(t.limit, func() {
		b.stalled.Store(true)
		cancel()
	})
	b.timer.Stop() // until someone reads
	resp.Body = b
	return resp, nil
}

// stallBody is an answer that is watched while someone reads it.
type stallBody struct {
	io.ReadCloser
	limit   time.Duration
	cancel  context.CancelFunc
	timer   *time.Timer
	stalled atomic.Bool
}

// Read implements io.Reader. Time that the reader spends elsewhere counts neither: the disk may be slow.
func (b *stallBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.limit)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && b.stalled.Load() {
		err = stalledError{b.limit}
	}
	return n, err
}

// Close implements io.Closer.
func (b *stallBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}
