// Package cli is the skep command: cobra commands that speak HTTP to a daemon, Docker's API
// and skep's own.
//
// It must not know the daemon's insides; the one exception, `skep daemon`, is handed in by
// main. Output for people goes through tables, output for scripts through --format,
// --json and --quiet; errors end with exit code 1, wrong usage with 2.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// DefaultHost is where the daemon listens unless it is told otherwise.
const DefaultHost = "unix:///run/skep/skep.sock"

// Version says what binary this is.
type Version struct {
	Version string
	Commit  string
}

// Config is what main hands in.
type Config struct {
	Version Version
	// Daemon is the `skep daemon` command.
	Daemon *cobra.Command
	Stdout io.Writer
	Stderr io.Writer
	// Getenv is os.Getenv but in tests.
	Getenv func(string) string
	// Environ is os.Environ but in tests: Compose files are filled in from it. Nil is none.
	Environ func() []string
	// Stdin is what "-" reads; nil is os.Stdin.
	Stdin io.Reader
}

type cli struct {
	Config
	host string
}

// usageError is an error in how the command was called: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Run runs one command and returns the process's exit code.
func Run(ctx context.Context, cfg Config, args []string) int {
	c := &cli{Config: cfg}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(cfg.Stdout)
	root.SetErr(cfg.Stderr)
	root.SetIn(cfg.Stdin)
	err := root.ExecuteContext(ctx)
	var exit exitCode
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.Is(err, context.Canceled):
		return 130
	}
	fmt.Fprintf(cfg.Stderr, "skep: %s\n", plain(err.Error()))
	if errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") {
		return 2
	}
	return 1
}

var (
	rpcCode = regexp.MustCompile(`rpc error: code = \w+ desc = `)
	// daemonSays is what Docker's client puts before the text of a daemon.
	daemonSays = strings.NewReplacer("Error response from daemon: ", "", "error during connect: ", "")
)

// plain is an error without what is for machines: the gRPC code in Docker's texts, and whose text it is.
func plain(text string) string { return rpcCode.ReplaceAllString(daemonSays.Replace(text), "") }

// exitCode ends a command whose error has been printed.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "skep",
		Short: "Swarm mode carried on: run services on a swarm of Linux hosts",
		Long: `skep turns Linux hosts into one swarm that runs services, keeps them healthy and
updates them without an outage. The docker CLI works against it, too:

  export DOCKER_HOST=` + DefaultHost,
		Example: `  skep up                         # a one-node swarm on this machine
  skep service ls
  docker service create --name web --replicas 3 -p 8080:80 nginx`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVarP(&c.host, "host", "H", "", "`address` of the daemon to talk to (default $SKEP_HOST, $DOCKER_HOST, or "+DefaultHost+")")
	root.SetUsageFunc(plainUsage)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	})
	root.AddCommand(c.up(), c.down(), c.version(), c.info(), c.ps(), c.exec(), c.logs(), c.top(), c.stats(), c.service(), c.stack(), c.secret(), c.config(), c.image(), c.swarm())
	if c.Daemon != nil {
		root.AddCommand(c.Daemon)
	}
	for _, cmd := range root.Commands() {
		refuseUnknown(cmd)
	}
	return root
}

// refuseUnknown makes a group of commands answer a wrong verb with one line instead of its help.
func refuseUnknown(cmd *cobra.Command) {
	if !cmd.HasSubCommands() || cmd.RunE != nil || cmd.Run != nil {
		return
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usageError{fmt.Errorf("unknown command %q for %q\nSee '%s --help'", args[0], cmd.CommandPath(), cmd.CommandPath())}
	}
}

// args wraps a check of the positional arguments, so that it ends with exit code 2.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return usageError{fmt.Errorf("%w\nUsage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// address is the daemon's, by flag, environment or default.
func (c *cli) address() string {
	for _, h := range []string{c.host, c.Getenv("SKEP_HOST"), c.Getenv("DOCKER_HOST")} {
		if h != "" {
			return h
		}
	}
	return DefaultHost
}

// connect makes a client of the daemon's API.
func (c *cli) connect() (*client.Client, error) {
	cl, err := client.New(client.WithHost(c.address()), client.WithUserAgent("skep/"+c.Version.Version))
	if err != nil {
		return nil, usageError{fmt.Errorf("daemon address %q: %w", c.address(), err)}
	}
	return cl, nil
}

// explain turns a refused connection, and a task that is not there, into what to do next.
func (c *cli) explain(err error) error {
	if err == nil {
		return nil
	}
	if ref, ok := strings.CutPrefix(plain(err.Error()), "No such container: "); ok {
		return fmt.Errorf("no such task: %s: 'skep ps' lists those that run", ref)
	}
	if !client.IsErrConnectionFailed(err) {
		return err
	}
	return fmt.Errorf("no daemon answers at %s: start one with 'skep up' (one node, now) or 'systemctl start skep'", c.address())
}
