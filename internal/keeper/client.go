package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/keeper/ports"
)

// Config is what a Client needs to know.
type Config struct {
	// Dir is the keeper's directory, one for each daemon instance. It is
	// made when missing, and closed to other users.
	Dir string
	// Binary and Args start a program whose main passes what follows Args
	// to Main: skep-keeper without Args, or a test's own binary with some.
	Binary string
	Args   []string
	// Build tells this program from others; when the running keeper's
	// differs it is replaced. Empty: derived from the contents of Binary.
	Build string
	// Cgroup, when set, is the path (from a cgroup root) of the cgroup that
	// the keeper is put into, so that it does not count as the daemon's.
	// It is made when missing.
	Cgroup string
	// Logger hears of what goes on without an error to return.
	Logger *slog.Logger
}

// A Listing is all that a keeper has in its care.
type Listing struct {
	// Logs are the containers whose logs are open, sorted.
	Logs []string `json:"logs"`
	// Ports are the ports held, sorted.
	Ports []ports.Port `json:"ports"`
	// Names are the tasks whose names are answered, Networks those whose tables are known; both sorted.
	Names    []Named  `json:"names,omitempty"`
	Networks []uint64 `json:"networks,omitempty"`
}

// Named is a task whose names are answered, and on which ports.
type Named struct {
	ID    string    `json:"id"`
	Ports dns.Ports `json:"ports"`
}

// A Client talks to the keeper of one directory, and starts or replaces it
// when need be. All operations may be repeated without harm, and are, when
// the keeper ends in their midst. A Client is safe for concurrent use.
type Client struct {
	cfg     Config
	calls   chan struct{} // bounds requests under way
	ensures chan struct{} // one Ensure at a time
}

// NewClient makes a Client. It starts nothing.
func NewClient(cfg Config) *Client {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, calls: make(chan struct{}, 32), ensures: make(chan struct{}, 1)}
}

// Open opens the log of a container and returns what the container is to
// write to. With driver "none" the paths are empty: nothing is kept. Opening
// what is open returns the same paths.
func (c *Client) Open(ctx context.Context, spec LogSpec) (Files, error) {
	cfg, err := spec.resolve()
	if err != nil || cfg == nil {
		return Files{}, err
	}
	resp, err := c.call(ctx, request{Op: opOpen, Log: cfg})
	if err != nil {
		return Files{}, fmt.Errorf("opening the log of %s: %w", cfg.ID, err)
	}
	if resp.Files == nil {
		return Files{}, errors.New("the keeper's answer names no files")
	}
	return *resp.Files, nil
}

// Close ends a log once its container has ended: all that was written is in
// the file when it returns. What is not open is no error.
func (c *Client) Close(ctx context.Context, id string) error {
	if _, err := c.call(ctx, request{Op: opClose, ID: id}); err != nil {
		return fmt.Errorf("closing the log of %s: %w", id, err)
	}
	return nil
}

// Remove closes a log if it is open and deletes its files in dir. What is not
// there is no error.
func (c *Client) Remove(ctx context.Context, dir, id string) error {
	if _, err := c.call(ctx, request{Op: opRemove, ID: id, Dir: dir}); err != nil {
		return fmt.Errorf("removing the log of %s: %w", id, err)
	}
	return nil
}

// Hold holds ports on the host. The results match the ports: nil, or why not
// (a *ports.InUseError when another program has the port). What is held
// already stays so. The error is for all of them.
func (c *Client) Hold(ctx context.Context, list []ports.Port) ([]error, error) {
	return c.results(ctx, opHold, list)
}

// Probe tells which ports could be held now, as Hold does, and holds none.
func (c *Client) Probe(ctx context.Context, list []ports.Port) ([]error, error) {
	return c.results(ctx, opProbe, list)
}

func (c *Client) results(ctx context.Context, op string, list []ports.Port) ([]error, error) {
	if len(list) == 0 {
		return nil, nil
	}
	resp, err := c.call(ctx, request{Op: op, Ports: list})
	if err != nil {
		return nil, fmt.Errorf("holding ports: %w", err)
	}
	if len(resp.Held) != len(list) {
		return nil, errors.New("holding ports: the keeper's answer has the wrong length")
	}
	errs := make([]error, len(list))
	for i, r := range resp.Held {
		switch {
		case r.InUse:
			errs[i] = &ports.InUseError{Port: list[i], PID: r.PID, Command: r.Command}
		case r.Invalid:
			errs[i] = &invalidPort{r.Error}
		case r.Error != "":
			errs[i] = errors.New(r.Error)
		}
	}
	return errs, nil
}

type invalidPort struct{ text string }

func (e *invalidPort) Error() string { return e.text }
func (e *invalidPort) Unwrap() error { return ports.ErrInvalid }

// Release lets go of ports. What is not held is no error.
func (c *Client) Release(ctx context.Context, list []ports.Port) error {
	if len(list) == 0 {
		return nil
	}
	if _, err := c.call(ctx, request{Op: opRelease, Ports: list}); err != nil {
		return fmt.Errorf("releasing ports: %w", err)
	}
	return nil
}

// List returns what the keeper has in its care, so that what nobody asked for
// can be closed and released.
func (c *Client) List(ctx context.Context) (Listing, error) {
	resp, err := c.call(ctx, request{Op: opList})
	if err != nil {
		return Listing{}, fmt.Errorf("asking the keeper: %w", err)
	}
	if resp.List == nil {
		return Listing{}, errors.New("asking the keeper: it lists nothing")
	}
	return *resp.List, nil
}

// Run makes sure that a keeper runs, and starts it again when it ends, until
// ctx ends; it returns ctx's error then.
func (c *Client) Run(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; {
		began := time.Now()
		err := c.Ensure(ctx)
		if err == nil {
			err = c.watch(ctx)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.cfg.Logger.Warn("the keeper has ended, starting it again", "err", err)
		if time.Since(began) > time.Minute {
			wait = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// watch returns when the keeper ends.
func (c *Client) watch(ctx context.Context) error {
	conn, err := dial(c.cfg.Dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := writeFrame(conn, request{Version: Protocol, Op: opWatch}); err != nil {
		return err
	}
	var resp response
	if err := readFrame(conn, &resp); err != nil {
		return err
	}
	return readFrame(conn, &resp) // nothing comes but the end
}

// A refusal is an answer of the keeper's that is an error.
type refusal struct{ text string }

func (e *refusal) Error() string { return e.text }

// call makes a request. When there is no keeper, or it ends before it has
// answered, one is started and asked again.
func (c *Client) call(ctx context.Context, req request) (*response, error) {
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for try := 0; ; try++ {
		resp, err := c.once(ctx, req)
		var no *refusal
		if err == nil || errors.As(err, &no) {
			return resp, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if try == 3 {
			return nil, fmt.Errorf("the keeper does not answer: %w", err)
		}
		if err := c.Ensure(ctx); err != nil {
			return nil, err
		}
	}
}

// once makes a request without starting a keeper. A connection that is cut
// before the answer comes is made again: the keeper is being replaced, likely.
func (c *Client) once(ctx context.Context, req request) (*response, error) {
	for try := 0; ; try++ {
		resp, err := c.ask(ctx, req)
		cut := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
		if !cut || try == 5 || ctx.Err() != nil {
			return resp, err
		}
	}
}

// ask makes one request on a connection of its own.
func (c *Client) ask(ctx context.Context, req request) (*response, error) {
	conn, err := dial(c.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req.Version = Protocol
	if err := writeFrame(conn, req); err != nil {
		return nil, err
	}
	var resp response
	if err := readFrame(conn, &resp); err != nil {
		return nil, err
	}
	if resp.Error != "" {
		return nil, &refusal{resp.Error}
	}
	return &resp, nil
}
