package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func testSite(addr string) *site {
	return &site{log: slog.New(slog.DiscardHandler), redis: &redisClient{addr: addr}, who: identity{Task: "demo_web.2", Host: "c0ffee", Node: "bee", Version: "<1>"}}
}

func ask(t *testing.T, s *site, path, accept, from string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	if from != "" {
		r.Header.Set("X-Forwarded-For", from)
	}
	w := httptest.NewRecorder()
	s.routes().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestVisits(t *testing.T) {
	f := newFakeRedis(t, "")
	s := testSite(f.addr())
	defer s.redis.close()
	code, got := ask(t, s, "/", "*/*", "203.0.113.9, 10.0.0.1")
	if want := "visit 1, answered by demo_web.2 (container c0ffee, version <1>) on node bee, to 203.0.113.9\n"; code != 200 || got != want {
		t.Errorf("%d %q, want %q", code, got, want)
	}
	code, got = ask(t, s, "/", "text/html,application/xhtml+xml", "<script>")
	for _, want := range []string{"<small>visit</small>2<", "demo_web.2", "&lt;1&gt;", "192.0.2.1", "width:100%"} {
		if code != 200 || !strings.Contains(got, want) {
			t.Errorf("%d, the page has no %q:\n%s", code, want, got)
		}
	}
	if strings.Contains(got, "<script>") {
		t.Error("the page holds what a visitor sent")
	}
	if code, _ := ask(t, s, "/other", "", ""); code != 404 {
		t.Errorf("another path: %d", code)
	}
}

func TestShares(t *testing.T) {
	got := fmt.Sprint(shares([]any{"b", "10", "a", "5", "odd", "x", "alone"}, "b"))
	if want := "[{a 5 50 false} {b 10 100 true}]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestHealth(t *testing.T) {
	f := newFakeRedis(t, "")
	addr := f.addr()
	f.stop()
	s := testSite(addr)
	defer s.redis.close()
	if code, got := ask(t, s, "/health", "", ""); code != 503 || !strings.Contains(got, "Redis") {
		t.Errorf("before it met Redis: %d %s", code, got)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.meetRedis(t.Context()) }()
	f.start(addr)
	<-done
	if code, got := ask(t, s, "/health", "", ""); code != 200 {
		t.Errorf("once it met Redis: %d %s", code, got)
	}
	f.stop()
	if code, _ := ask(t, s, "/health", "", ""); code != 200 {
		t.Errorf("it calls itself ill when Redis is: %d", code)
	}
	s.draining.Store(true)
	if code, _ := ask(t, s, "/health", "", ""); code != 503 {
		t.Errorf("at its end: %d", code)
	}
}

// TestDrain: whoever comes until the socket is closed gets a whole answer.
func TestDrain(t *testing.T) {
	f := newFakeRedis(t, "secret")
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REDIS_ADDR", f.addr())
	t.Setenv("REDIS_PASSWORD_FILE", file)
	addr := freeAddr(t)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, slog.New(slog.DiscardHandler), addr) }()
	for askHealth(ctx, addr) != nil {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}

	// A new connection for each request, as nginx does, from four sides at once; they stop soon after the end began.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed, answered := 0, 0
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := visitOnce(client, addr)
				mu.Lock()
				if err != nil {
					t.Log(err)
					failed++
				} else {
					answered++
				}
				mu.Unlock()
			}
		}()
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return answered }
	for count() < 20 {
		time.Sleep(time.Millisecond)
	}
	end()
	for before := count(); count() < before+20; {
		time.Sleep(time.Millisecond)
	}
	if askHealth(t.Context(), addr) == nil {
		t.Error("it is well while it ends")
	}
	close(stop)
	wg.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if failed > 0 {
		t.Errorf("%d of %d requests failed", failed, failed+answered)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("it accepts still")
	}
}

func visitOnce(client *http.Client, addr string) error {
	res, err := client.Get("http://" + addr + "/")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != 200 || !strings.HasPrefix(string(text), "visit ")) {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return err
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestNoPassword(t *testing.T) {
	t.Setenv("REDIS_PASSWORD_FILE", filepath.Join(t.TempDir(), "none"))
	if _, err := readPassword(); err == nil {
		t.Error("a password file that was named and is not there is no error")
	}
}
