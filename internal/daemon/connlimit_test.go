package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestAPIConnectionsAreBounded(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	limit := &connLimit{max: 1}
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ConnState: limit.changed}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()
	ask := func() (net.Conn, string) {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: d\r\n\r\n"); err != nil {
			t.Log(err) // it was hung up on already
		}
		answer := make([]byte, 512)
		n, _ := c.Read(answer)
		return c, string(answer[:n])
	}
	last, answer := ask()
	if !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
		t.Fatalf("the last place: %q", answer)
	}
	over, answer := ask()
	defer over.Close()
	if !strings.HasPrefix(answer, "HTTP/1.1 503 ") || !strings.Contains(answer, "its limit") {
		t.Errorf("one too many: %q", answer)
	}
	last.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, answer := ask()
		c.Close()
		if strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no place was given back: %q", answer)
		}
	}
}

// Whoever asks for metrics is nobody the daemon knows.
func TestMetricsConnectionsAreBounded(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	ctx, end := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serveMetrics(ctx, addr, &member{}) }()
	defer func() {
		end()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("metrics are not served")
		}
	}
	refused := false
	for range maxMetricsConns + 1 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = io.WriteString(c, "GET /none HTTP/1.1\r\nHost: d\r\n\r\n")
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		refused = refused || err != nil
	}
	if !refused {
		t.Errorf("more than %d connections are served", maxMetricsConns)
	}
}

// Containers' users must be able to read /etc/hosts, whatever the shell or the unit that starts a daemon has set.
func TestMainSetsTheUmask(t *testing.T) {
	before := syscall.Umask(0o077)
	defer syscall.Umask(before)
	cmd := new(cobra.Command)
	cmd.SetContext(t.Context())
	if err := Main(cmd, &Config{LogLevel: "none such"}); err == nil {
		t.Fatal("a daemon ran")
	}
	if got := syscall.Umask(0o077); got != umask {
		t.Errorf("umask = %03o, want %03o", got, umask)
	}
}
