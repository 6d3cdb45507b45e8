package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/skep-swarm/skep/internal/compose"
	"github.com/spf13/cobra"
)

// deployBody is what the daemon takes to deploy a stack or to plan that.
type deployBody struct {
	Stack   *compose.Stack
	Prune   bool
	Resolve string
	Auth    map[string]string `json:",omitempty"`
	Reason  string            `json:",omitempty"`
}

// deployStep is one line of its answer.
type deployStep struct {
	Action, Kind, Name string
	Warnings           []string
	Revision           uint64
	Error              string
}

func stackPath(name, what string) string {
	p := "/skep/v1/stacks/" + url.PathEscape(name)
	if what != "" {
		p += "/" + what
	}
	return p
}

func (c *cli) stackDeploy() *cobra.Command {
	var f composeFlags
	var w waiting
	var prune, auth bool
	var resolve, reason string
	cmd := &cobra.Command{
		Use: "deploy [NAME]", Aliases: []string{"up"}, Short: "Deploy a stack from Compose files, and wait until it runs", Args: args(cobra.MaximumNArgs(1)),
		Long: `Makes of the Compose files what the swarm runs: networks, secrets, configs and services, each created or
updated when it differs. Then it waits until everything runs as the files say. The exit code is 0 when it
does, 1 when something is wrong, and 3 when a service does not come up (--timeout).

Every deploy is kept as a revision: see 'skep stack history', 'diff' and 'rollback'.`,
		Example: `  skep stack deploy -c stack.yml shop
  skep stack deploy -c stack.yml -c prod.yml --prune shop
  curl -s https://example.com/stack.yml | skep stack deploy -c - shop`,
		RunE: func(cmd *cobra.Command, names []string) error {
			stack, err := c.loadStack(cmd, &f, names)
			if err != nil {
				return err
			}
			body := deployBody{Stack: stack, Prune: prune, Resolve: resolve, Reason: reason}
			if auth {
				if body.Auth, err = c.registryAuths(); err != nil {
					return err
				}
			}
			if err := c.deploy(cmd, http.MethodPut, stackPath(stack.Name, ""), body, w.quiet); err != nil {
				return err
			}
			return c.await(cmd, stack.Name, &w)
		},
	}
	f.register(cmd)
	w.register(cmd)
	cmd.Flags().BoolVar(&prune, "prune", false, "remove services of the stack that the files do not have")
	cmd.Flags().BoolVar(&auth, "with-registry-auth", false, "send your registry credentials (from ~/.docker/config.json) to the nodes that pull")
	cmd.Flags().StringVar(&resolve, "resolve-image", "always", "ask registries what image names mean: always, changed or never")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the stack's history")
	_ = cmd.RegisterFlagCompletionFunc("resolve-image", cobra.FixedCompletions([]string{"always", "changed", "never"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// loadStack reads the files and says what a swarm ignores of them.
func (c *cli) loadStack(cmd *cobra.Command, f *composeFlags, names []string) (*compose.Stack, error) {
	opt, err := c.composeOptions(cmd, f)
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		opt.Name = names[0]
	}
	stack, err := compose.Load(cmd.Context(), os.DirFS("/"), opt)
	if err != nil {
		return nil, c.composeError(err)
	}
	for _, w := range stack.Warnings {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
	}
	return stack, nil
}

// deploy sends a request that is answered with steps, and prints them.
func (c *cli) deploy(cmd *cobra.Command, method, path string, body any, quiet bool) error {
	res, err := c.stream(cmd.Context(), method, path, body)
	if err != nil {
		return err
	}
	defer res.Close()
	lines := bufio.NewScanner(io.LimitReader(res, maxAnswer))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var st deployStep
		if err := json.Unmarshal(lines.Bytes(), &st); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		for _, w := range st.Warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s %s: %s\n", st.Kind, st.Name, w)
		}
		switch {
		case st.Error != "":
			return errors.New(st.Error)
		case st.Action == "":
			return nil
		case !quiet:
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", st.Kind, st.Name, st.Action)
		}
	}
	return cmp.Or(lines.Err(), errors.New("the daemon's answer ended early: look at 'skep stack services' and deploy again"))
}

// stream makes a request with a body of JSON, and returns the answer's body when it is none of an error.
func (c *cli) stream(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	hc, base, _, err := c.raw()
	if err != nil {
		return nil, err
	}
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, in)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := hc.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no daemon answers at %s: start one with 'skep up' (one node, now) or 'systemctl start skep'", c.address())
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	if res.StatusCode < http.StatusBadRequest {
		return res.Body, nil
	}
	defer res.Body.Close()
	var m struct{ Message string }
	if json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&m) != nil || m.Message == "" {
		m.Message = res.Status
	}
	return nil, errors.New(m.Message)
}

// maxDockerConfig bounds ~/.docker/config.json, in bytes.
const maxDockerConfig = 1 << 20

// registryAuths are the credentials that `docker login` left in its file, by registry. Those in a credential helper are left out, and said.
func (c *cli) registryAuths() (map[string]string, error) {
	dir := c.Getenv("DOCKER_CONFIG")
	if dir == "" {
		dir = filepath.Join(c.Getenv("HOME"), ".docker")
	}
	path := filepath.Join(dir, "config.json")
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the registry credentials: %w", err)
	}
	defer file.Close()
	var cfg struct {
		Auths       map[string]struct{ Auth, IdentityToken string }
		CredsStore  string
		CredHelpers map[string]string
	}
	if err := json.NewDecoder(io.LimitReader(file, maxDockerConfig)).Decode(&cfg); err != nil {
		return nil, fmt.Errorf("read the registry credentials in %s: %w", path, err)
	}
	if cfg.CredsStore != "" || len(cfg.CredHelpers) > 0 {
		fmt.Fprintf(c.Stderr, "warning: credentials that %s leaves to a helper are not sent: use 'docker stack deploy --with-registry-auth' for them\n", path)
	}
	out := map[string]string{}
	for host, a := range cfg.Auths {
		text, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(string(text), ":")
		if err != nil || !ok && a.IdentityToken == "" {
			continue
		}
		encoded, err := authconfig.Encode(registry.AuthConfig{Username: user, Password: password, IdentityToken: a.IdentityToken, ServerAddress: host})
		if err != nil {
			return nil, fmt.Errorf("encode the credentials for %s: %w", host, err)
		}
		if host == "https://index.docker.io/v1/" {
			host = "docker.io"
		}
		out[strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://"), "/")] = encoded
	}
	return out, nil
}

// waiting says whether and how long to wait until a stack runs.
type waiting struct {
	detach, quiet bool
	timeout       time.Duration
}

func (w *waiting) register(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&w.detach, "detach", "d", false, "do not wait until it runs")
	cmd.Flags().BoolVarP(&w.quiet, "quiet", "q", false, "no progress")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 10*time.Minute, "how long to wait until it runs")
}

const (
	statusEvery = 250 * time.Millisecond
	// steadyFor is how long everything has to run before a deploy counts as done: a program that ends at once runs, too, for a moment.
	steadyFor = 2 * time.Second
)

// await waits until the stack's services have converged, and says how far they are.
func (c *cli) await(cmd *cobra.Command, name string, w *waiting) error {
	if w.detach {
		return nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), w.timeout)
	defer cancel()
	view := &progressView{out: cmd.OutOrStdout(), quiet: w.quiet, live: c.isTerminal(), said: map[string]string{}}
	defer view.end()
	var steady time.Time
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var st stackStatus
	for {
		if err := c.call(ctx, http.MethodGet, stackPath(name, "status"), &st); err != nil && ctx.Err() == nil {
			return err
		}
		view.show(&st)
		failed, waits := st.sort()
		switch {
		case len(failed) > 0:
			return c.notUp(cmd, failed, 1)
		case len(waits) > 0:
			steady = time.Time{}
		case steady.IsZero():
			steady = time.Now()
		case time.Since(steady) >= steadyFor:
			view.done(name)
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if cmd.Context().Err() != nil {
				return cmd.Context().Err()
			}
			return c.notUp(cmd, waits, 3)
		}
	}
}

// notUp says which services are not as they should be, and why.
func (c *cli) notUp(cmd *cobra.Command, list []stackService, code int) error {
	for _, s := range list {
		fmt.Fprintf(cmd.ErrOrStderr(), "skep: service %s: %d of %d: %s\n", s.Name, s.progress(), s.Desired, cmp.Or(s.Why, "not yet"))
	}
	return exitCode(code)
}

// stackService and stackStatus are what the daemon says of a stack.
type stackService struct {
	ID, Name, Mode, Image       string
	Desired, Running, Completed uint64
	Converged, Failed           bool
	Why                         string
}

type stackStatus struct {
	Name     string
	Revision uint64
	Services []stackService
}

func (s *stackService) progress() uint64 {
	if strings.HasSuffix(s.Mode, "-job") {
		return s.Completed
	}
	return s.Running
}

func (s *stackStatus) sort() (failed, waits []stackService) {
	for _, v := range s.Services {
		switch {
		case v.Failed:
			failed = append(failed, v)
		case !v.Converged:
			waits = append(waits, v)
		}
	}
	return failed, waits
}
