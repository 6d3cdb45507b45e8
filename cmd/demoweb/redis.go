package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// A redisClient speaks as much of Redis's protocol (RESP2) as the demo needs. It keeps a few connections; it may be
// used by many goroutines at once.
type redisClient struct {
	addr, password string

	mu   sync.Mutex
	idle []*redisConn
}

const (
	maxIdle      = 8
	redisTimeout = 2 * time.Second // for one try, from dialling to the answer
	maxBulk      = 1 << 20         // bytes of one value
	maxItems     = 10_000          // of one array
	maxDepth     = 4               // of arrays in arrays
)

// errRedis is an answer that says no: the connection is fine and asking again is no use.
type errRedis string

func (e errRedis) Error() string { return "redis: " + string(e) }

type redisConn struct {
	net.Conn
	in *bufio.Reader
}

// do sends commands in one go and returns their answers: string, int64, nil, []any or errRedis each. The error tells
// of the connection or of the first refusal. It tries again, later and later, until ctx is done; a command whose answer
// was lost may so happen twice.
func (c *redisClient) do(ctx context.Context, commands ...[]string) ([]any, error) {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		answers, err := c.try(ctx, commands)
		var refused errRedis
		if err == nil || errors.As(err, &refused) && !refused.passes() {
			return answers, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// passes tells whether the refusal is one of a Redis that is starting.
func (e errRedis) passes() bool { return len(e) >= 7 && e[:7] == "LOADING" }

func (c *redisClient) try(ctx context.Context, commands [][]string) ([]any, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	answers, err := conn.exchange(ctx, commands)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.release(conn)
	for _, a := range answers {
		if refused, ok := a.(errRedis); ok {
			return answers, refused
		}
	}
	return answers, nil
}

// connect takes a connection that is idle and still open, or makes one.
func (c *redisClient) connect(ctx context.Context) (*redisConn, error) {
	for {
		c.mu.Lock()
		n := len(c.idle)
		if n == 0 {
			c.mu.Unlock()
			break
		}
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		if conn.open() {
			return conn, nil
		}
		conn.Close()
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil, err
	}
	conn := &redisConn{raw, bufio.NewReader(raw)}
	if c.password == "" {
		return conn, nil
	}
	answers, err := conn.exchange(ctx, [][]string{{"AUTH", c.password}})
	if err == nil {
		if refused, ok := answers[0].(errRedis); ok {
			err = refused
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("signing in: %w", err)
	}
	return conn, nil
}

// open tells whether Redis has left an idle connection alone: nothing is to be read from it.
func (c *redisConn) open() bool {
	if c.in.Buffered() > 0 || c.SetReadDeadline(time.Now().Add(time.Microsecond)) != nil {
		return false
	}
	_, err := c.in.Peek(1)
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (c *redisClient) release(conn *redisConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) >= maxIdle {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

func (c *redisClient) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
}

// exchange sends commands and reads as many answers.
func (c *redisConn) exchange(ctx context.Context, commands [][]string) ([]any, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(redisTimeout)
	}
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	var out []byte
	for _, command := range commands {
		out = fmt.Appendf(out, "*%d\r\n", len(command))
		for _, word := range command {
			out = fmt.Appendf(out, "$%d\r\n%s\r\n", len(word), word)
		}
	}
	if _, err := c.Write(out); err != nil {
		return nil, err
	}
	answers := make([]any, len(commands))
	for i := range answers {
		var err error
		if answers[i], err = readAnswer(c.in, 0); err != nil {
			return nil, fmt.Errorf("reading Redis's answer: %w", err)
		}
	}
	return answers, nil
}

// readAnswer reads one value of RESP2.
func readAnswer(in *bufio.Reader, depth int) (any, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, fmt.Errorf("malformed line %q", line)
	}
	kind, text := line[0], string(line[1:len(line)-2])
	switch kind {
	case '+':
		return text, nil
	case '-':
		return errRedis(text), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("malformed number in %q", string(kind)+text)
	}
	switch {
	case kind == ':':
		return n, nil
	case (kind == '$' || kind == '*') && n == -1:
		return nil, nil
	case kind == '$' && n >= 0 && n <= maxBulk:
		value := make([]byte, n+2)
		if _, err := io.ReadFull(in, value); err != nil {
			return nil, err
		}
		if string(value[n:]) != "\r\n" {
			return nil, errors.New("a value longer than it said")
		}
		return string(value[:n]), nil
	case kind == '*' && n >= 0 && n <= maxItems && depth < maxDepth:
		items := make([]any, n)
		for i := range items {
			if items[i], err = readAnswer(in, depth+1); err != nil {
				return nil, err
			}
		}
		return items, nil
	}
	return nil, fmt.Errorf("an answer %q that has no place here", string(kind)+text)
}
