package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// debianRegistry is Debian's docker-registry on the node, behind a forwarder that can be slow. What it holds outlives its being killed.
type debianRegistry struct {
	program *exec.Cmd
	forward net.Listener
	conns   sync.WaitGroup
	cancel  context.CancelFunc
}

// The registry asks for this user with the password open-sesame.
const debianUser = "ann:$2b$04$.s5lMktaJS4gSGhDHqz/l.iqFTBOwR8GlCwJbfNix3.aGj6GaRqC2\n"

// debianBackend is where the program itself listens.
const debianBackend = "127.0.0.1:5999"

// debianRegistryCommand is the script command
//
//	debianregistry up ADDR [RATE]   serve on the node at this address, so many bytes a second to each client; for user ann, open-sesame
//	debianregistry kill             SIGKILL, in the middle of whatever it does
func debianRegistryCommand(ctx context.Context, s *story, args []string) (string, error) {
	switch {
	case (len(args) == 2 || len(args) == 3) && args[0] == "up" && s.debian == nil:
		rate := 0
		if len(args) == 3 {
			var err error
			if rate, err = strconv.Atoi(args[2]); err != nil {
				return "", err
			}
		}
		return "", s.debianUp(ctx, args[1], rate)
	case len(args) == 1 && args[0] == "kill" && s.debian != nil:
		return "", s.debianKill()
	}
	return "", errors.New("want up ADDR [RATE], or kill after that")
}

func (s *story) debianUp(ctx context.Context, addr string, rate int) error {
	dir := filepath.Join(s.dir, "registry")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	config := fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %[1]s/data}}
http: {addr: "%[2]s"}
auth: {htpasswd: {realm: test, path: %[1]s/users}}
`, dir, debianBackend)
	for name, text := range map[string]string{"config.yml": config, "users": debianUser} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	d := &debianRegistry{program: s.node.Command(context.Background(), "docker-registry", "serve", filepath.Join(dir, "config.yml"))}
	d.program.Stdout, d.program.Stderr = s.daemonLog, s.daemonLog
	var err error
	if d.forward, err = s.node.Listen("tcp", addr); err != nil {
		return err
	}
	if err := d.program.Start(); err != nil {
		return errors.Join(err, d.forward.Close())
	}
	s.debian = d
	var serving context.Context
	serving, d.cancel = context.WithCancel(context.Background())
	d.conns.Go(func() { s.debianServe(serving, d, rate) })
	if err := s.debianAnswers(ctx, addr); err != nil {
		return errors.Join(err, s.debianKill())
	}
	return nil
}

// debianAnswers waits until the registry asks for a name and a password, through its forwarder.
func (s *story) debianAnswers(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for client := s.node.HTTPClient(); ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusUnauthorized {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("docker-registry does not answer: %w", err)
		}
	}
}

func (s *story) debianServe(ctx context.Context, d *debianRegistry, rate int) {
	for {
		client, err := d.forward.Accept()
		if err != nil {
			return
		}
		d.conns.Go(func() {
			defer client.Close()
			server, err := s.node.Dial(ctx, "tcp", debianBackend)
			if err != nil {
				fmt.Fprintln(s.daemonLog, "forwarding to docker-registry:", err)
				return
			}
			defer server.Close()
			// Whoever ends first ends both: a registry that was killed says nothing more.
			stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
			defer stop()
			d.conns.Go(func() {
				_, _ = io.Copy(server, client)
				server.Close()
			})
			_, _ = io.Copy(client, &slow{server, rate})
		})
	}
}

// slow reads so many bytes a second; 0 is no limit.
type slow struct {
	io.Reader
	rate int
}

func (s *slow) Read(b []byte) (int, error) {
	if s.rate == 0 {
		return s.Reader.Read(b)
	}
	const perSecond = 50
	n, err := s.Reader.Read(b[:min(len(b), max(1, s.rate/perSecond))])
	time.Sleep(time.Second / perSecond)
	return n, err
}

func (s *story) debianKill() error {
	d := s.debian
	s.debian = nil
	err := d.program.Process.Kill()
	if werr := d.program.Wait(); werr != nil && !strings.Contains(werr.Error(), "killed") {
		err = errors.Join(err, werr)
	}
	err = errors.Join(err, d.forward.Close())
	if d.cancel != nil {
		d.cancel()
	}
	d.conns.Wait()
	return err
}
