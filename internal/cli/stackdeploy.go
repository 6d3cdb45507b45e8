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

// refusal is an error of the daemon about one part of a stack.
type refusal struct{ kind, name, text string }

func (r *refusal) Error() string { return r.text }

// at says where in the Compose files the part is that the daemon refused.
func at(stack *compose.Stack, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	if pos := stack.Place(r.kind, r.name, r.text); pos.File != "" {
		return fmt.Errorf("%s%w", pos, err)
	}
	return err
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
does, 1 when something is wrong or a service keeps failing, and 3 when one does not come up in time (--timeout).

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
			return at(stack, c.deploy(cmd, http.MethodPut, stackPath(stack.Name, ""), body, stack.Name, &w))
		},
	}
	f.register(cmd)
	w.register(cmd)
	cmd.Flags().BoolVar(&prune, "prune", false, "remove services, networks, secrets and configs of the stack that the files do not have")
	cmd.Flags().BoolVar(&auth, "with-registry-auth", false, "send your registry credentials (from ~/.docker/config.json) to the nodes that pull")
	cmd.Flags().StringVar(&resolve, "resolve-image", "always", "`when` registries are asked what image names mean: always, changed or never")
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

// deploy sends a request that is answered with steps, prints them, and waits until the stack runs. What could not be removed because old
// tasks had it goes then.
func (c *cli) deploy(cmd *cobra.Command, method, path string, body any, name string, w *waiting) error {
	busy, err := c.steps(cmd, method, path, body, w.quiet)
	if err != nil {
		return err
	}
	if err := c.await(cmd, name, w); err != nil || len(busy) == 0 {
		return err
	}
	if w.detach {
		for _, st := range busy {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s %s: %s\n", st.Kind, st.Name, strings.Join(st.Warnings, "; "))
		}
		return nil
	}
	busy, err = c.steps(cmd, http.MethodPost, stackPath(name, "prune"), nil, w.quiet)
	for _, st := range busy {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s %s: %s\n", st.Kind, st.Name, strings.Join(st.Warnings, "; "))
	}
	return err
}

// steps sends a request that is answered with steps, and prints them but for those that are busy, which it returns.
func (c *cli) steps(cmd *cobra.Command, method, path string, body any, quiet bool) (busy []deployStep, err error) {
	res, err := c.stream(cmd.Context(), method, path, body)
	if err != nil {
		return nil, err
	}
	defer res.Close()
	lines := bufio.NewScanner(io.LimitReader(res, maxAnswer))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var st deployStep
		if err := json.Unmarshal(lines.Bytes(), &st); err != nil {
			return busy, fmt.Errorf("read the daemon's answer: %w", err)
		}
		switch {
		case st.Error != "":
			return busy, &refusal{st.Kind, st.Name, st.Error}
		case st.Action == "":
			return busy, nil
		case st.Action == "busy":
			busy = append(busy, st)
			continue
		case st.Action == "kept" && !quiet:
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s kept: %s\n", st.Kind, st.Name, strings.Join(st.Warnings, "; "))
			continue
		case !quiet:
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", st.Kind, st.Name, st.Action)
		}
		for _, w := range st.Warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s %s: %s\n", st.Kind, st.Name, w)
		}
	}
	return busy, cmp.Or(lines.Err(), errors.New("the daemon's answer ended early: look at 'skep stack services' and deploy again"))
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
	var m struct{ Message, Kind, Name string }
	if json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&m) != nil || m.Message == "" {
		m.Message = res.Status
	}
	return nil, &refusal{m.Kind, m.Name, m.Message}
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

// waiting says whether and how long to wait until a stack is as it shall be.
type waiting struct {
	detach, quiet bool
	timeout       time.Duration
	// until is what is waited for, in the flags' words.
	until string
}

func (w *waiting) register(cmd *cobra.Command) {
	until := cmp.Or(w.until, "it runs")
	cmd.Flags().BoolVarP(&w.detach, "detach", "d", false, "do not wait until "+until)
	cmd.Flags().BoolVarP(&w.quiet, "quiet", "q", false, "no progress")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 10*time.Minute, "how long to wait until "+until)
}
