package dockerapi

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the stories in testdata from what the docker CLI prints")

// serveUnix serves a fresh server on a unix socket until the test ends.
func serveUnix(t *testing.T, s *Server) (address string) {
	t.Helper()
	return serveHandler(t, s, s.Run)
}

func serveHandler(t *testing.T, h http.Handler, run func(context.Context) error) (address string) {
	t.Helper()
	// Not t.TempDir: a socket's path has a bound of 108 bytes.
	dir, err := os.MkdirTemp("", "skepapi")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 2)
	go func() { done <- srv.Serve(l) }()
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		_ = srv.Close()
		for range 2 {
			if err := <-done; err != nil && !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("server ended with %v", err)
			}
		}
		_ = os.RemoveAll(dir)
	})
	return "unix://" + socket
}

func newTestServer(t *testing.T) (*Server, *fake) {
	t.Helper()
	f := newFake(time.Now)
	s := New(Config{Backend: f, Version: Version{Version: "28.2.2", GitCommit: "abc1234"}, Rand: seeded("api")})
	return s, f
}

// TestStories runs the stock docker CLI through the stories in testdata/cli: after each line that
// begins with "$ " stands what it prints.
func TestStories(t *testing.T) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("the docker CLI is not on the PATH: run `make docker-cli`")
	}
	files, err := filepath.Glob("testdata/cli/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			runStory(t, file)
		})
	}
}

func runStory(t *testing.T, file string) {
	story, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, f := newTestServer(t)
	f.taken[9999] = "in use by sshd (pid 77)"
	host := serveUnix(t, s)
	waitFor(t, f.watching)
	var got strings.Builder
	for line := range strings.Lines(string(story)) {
		switch {
		case strings.HasPrefix(line, "# "):
			got.WriteString(line)
		case strings.HasPrefix(line, "$ "):
			got.WriteString(line)
			got.WriteString(runCommand(t, host, strings.TrimPrefix(line, "$ ")))
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := string(story); got.String() != want {
		t.Errorf("%s: what the CLI printed differs from the story (go test -update rewrites it); got:\n%s", file, firstDifference(want, got.String()))
	}
}

func runCommand(t *testing.T, host, command string) string {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CONFIG="+t.TempDir(), "DOCKER_CLI_HINTS=false", "TZ=UTC")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := mask(out.String())
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		text += fmt.Sprintf("[exit %d]\n", exit.ExitCode())
	case err != nil:
		t.Fatalf("%s: %v", command, err)
	}
	return text
}

// masks take out what differs from run to run.
var masks = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`SWMTKN-1-[0-9a-z]{50}`), "SWMTKN-1-DIGEST"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( \+0000 UTC|Z)?`), "TIME"},
	{regexp.MustCompile(`(?i)(Less than a second|About a minute|About an hour|\d+ (second|minute|hour)s?) ago`), "AGO"},
	{regexp.MustCompile(`Up (Less than a second|\d+ seconds?)`), "Up AGO"},
	{regexp.MustCompile(`-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----`), "CERTIFICATE"},
	{regexp.MustCompile(`Issuer Public Key:\s+\S+`), "Issuer Public Key: KEY"},
	{regexp.MustCompile(`go1\.\S+`), "go1.X"},
	{regexp.MustCompile(`unix://\S+`), "unix://SOCKET"},
	{regexp.MustCompile(`"(CertIssuerPublicKey|CertIssuerSubject|TrustRoot)": "[^"]*"`), `"$1": "X"`},
	{regexp.MustCompile(`(?m)[ \t]+$`), ""},
	{regexp.MustCompile(`(?m)^.*\r`), ""},
	{regexp.MustCompile(`(\S) {2,}`), "$1  "}, // columns are as wide as what was masked
}

func mask(text string) string {
	for _, m := range masks {
		text = m.re.ReplaceAllString(text, m.to)
	}
	// How often the CLI says that it waits depends on the clock.
	var out strings.Builder
	last := ""
	for line := range strings.Lines(text) {
		if line != last || !strings.HasPrefix(line, "verify: ") {
			out.WriteString(line)
		}
		last = line
	}
	return out.String()
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range g {
		if i >= len(w) || w[i] != g[i] {
			from := max(0, i-4)
			return fmt.Sprintf("line %d\n--- want\n%s\n--- got\n%s", i+1, strings.Join(w[min(from, len(w)):min(i+6, len(w))], "\n"), strings.Join(g[from:min(i+6, len(g))], "\n"))
		}
	}
	return fmt.Sprintf("it ends at line %d of %d", len(g), len(w))
}

// waitFor waits until a condition holds.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("condition did not come true within 10 s")
		}
		time.Sleep(time.Millisecond)
	}
}
