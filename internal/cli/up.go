package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/skep-swarm/skep/internal/durable"
)

// upOptions are the flags of `skep up` that it hands on to the daemon.
type upOptions struct {
	dataRoot, execRoot, advertise string
	timeout                       time.Duration
	quiet                         bool
}

func (c *cli) up() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use: "up", Short: "Start a daemon here if none runs, and make it a one-node swarm", Args: args(cobra.NoArgs),
		Long: `Starts a daemon on this machine if none answers, makes it a one-node swarm if it is in none,
and says what to do next. Running it again changes nothing.`,
		Example: `  sudo skep up`,
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.runUp(cmd, &o) },
	}
	cmd.Flags().StringVar(&o.dataRoot, "data-root", "/var/lib/skep", "where a new daemon keeps its state")
	cmd.Flags().StringVar(&o.execRoot, "exec-root", "/run/skep", "where a new daemon keeps what a reboot may lose")
	cmd.Flags().StringVar(&o.advertise, "advertise-addr", "", "address (or interface) that other nodes would reach this one by")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait for the daemon")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "say what is done, and not what to do next")
	return cmd
}

func (c *cli) runUp(cmd *cobra.Command, o *upOptions) error {
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), o.timeout, fmt.Errorf("not ready within %s", o.timeout))
	defer cancel()
	w := cmd.OutOrStdout()
	cl, err := c.connect()
	if err != nil {
		return err
	}
	ping, err := cl.Ping(ctx, client.PingOptions{})
	if client.IsErrConnectionFailed(err) {
		fmt.Fprintf(w, "starting a daemon (data in %s, log in %s) …\n", o.dataRoot, o.log())
		if err := c.startDaemon(ctx, cl, o); err != nil {
			return err
		}
		ping, err = cl.Ping(ctx, client.PingOptions{})
	}
	if err != nil {
		return fmt.Errorf("daemon at %s: %w", c.address(), err)
	}
	if ping.SwarmStatus == nil || ping.SwarmStatus.NodeState == swarm.LocalNodeStateInactive {
		fmt.Fprintln(w, "making a swarm of this node …")
		if err := initSwarm(ctx, w, cl, o.advertise); err != nil {
			return fmt.Errorf("make a swarm: %w", err)
		}
	}
	info, err := c.awaitReady(ctx, cl)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "this node (%s, %s) is a manager of a swarm with %s.\n", info.Name, info.Swarm.NodeAddr, count(info.Swarm.Nodes, "node"))
	if o.quiet {
		return nil
	}
	fmt.Fprintf(w, "\nnext:  export DOCKER_HOST=%s\n", c.address())
	fmt.Fprintln(w, "       docker service create --name web --replicas 3 -p 8080:80 IMAGE     (images: skep image load -i FILE)")
	fmt.Fprintln(w, "       skep service ls        skep info        skep down (stop everything here)")
	return nil
}

// initSwarm makes the swarm. A machine without any network gets one that only it can reach.
func initSwarm(ctx context.Context, w io.Writer, cl *client.Client, advertise string) error {
	_, err := cl.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: advertise})
	switch {
	case err == nil || advertise != "":
		return err
	case strings.Contains(err.Error(), "could not find the system's IP address"):
		fmt.Fprintln(w, "this machine has no address that others could reach it by: the swarm listens on 127.0.0.1 only")
		_, err = cl.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "127.0.0.1:2377", AdvertiseAddr: "127.0.0.1"})
	case strings.Contains(err.Error(), "could not choose an IP address"):
		err = fmt.Errorf("%w: name one with --advertise-addr", err)
	}
	return err
}

func (o *upOptions) log() string { return filepath.Join(o.dataRoot, "daemon.log") }

// startDaemon runs `skep daemon` in a session of its own and waits until it answers.
func (c *cli) startDaemon(ctx context.Context, cl *client.Client, o *upOptions) error {
	if !strings.HasPrefix(c.address(), "unix://") {
		return fmt.Errorf("no daemon answers at %s, and one can be started here for a unix:// address only", c.address())
	}
	if os.Geteuid() != 0 {
		return errors.New("the daemon needs root: run 'sudo skep up'")
	}
	if err := durable.MkdirAll(o.dataRoot, 0o711); err != nil {
		return fmt.Errorf("data root: %w", err)
	}
	logFile, err := os.OpenFile(o.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("daemon log: %w", err)
	}
	defer logFile.Close()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find skep's own binary: %w", err)
	}
	proc := exec.Command(self, "daemon", "--data-root", o.dataRoot, "--exec-root", o.execRoot, "-H", c.address())
	proc.Stdout, proc.Stderr = logFile, logFile
	proc.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := proc.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- proc.Wait() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-exited:
			return fmt.Errorf("the daemon stopped at once: %s", lastLine(o.log()))
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w; see %s", context.Cause(ctx), o.log())
		case <-tick.C:
			if _, err := cl.Ping(ctx, client.PingOptions{}); err == nil {
				return nil
			}
		}
	}
}

// awaitReady waits until the node itself is ready for tasks.
func (c *cli) awaitReady(ctx context.Context, cl *client.Client) (system.Info, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		res, err := cl.Info(ctx, client.InfoOptions{})
		if err == nil && res.Info.Swarm.LocalNodeState == swarm.LocalNodeStateActive {
			if !res.Info.Swarm.ControlAvailable {
				return res.Info, nil
			}
			n, err := cl.NodeInspect(ctx, res.Info.Swarm.NodeID, client.NodeInspectOptions{})
			if err == nil && n.Node.Status.State == swarm.NodeStateReady {
				return res.Info, nil
			}
		}
		select {
		case <-ctx.Done():
			return system.Info{}, fmt.Errorf("wait for the node: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (c *cli) down() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "down", Short: "Stop everything here: tasks, swarm, daemon", Args: args(cobra.NoArgs),
		Long: `Stops every task on this machine, leaves the swarm and ends the daemon. No process, mount,
network namespace, link, rule or cgroup of skep stays behind. Volumes and loaded images are kept
in the data root; the swarm's own state (services, certificates) is gone if this was its last node.`,
		Example: "  sudo skep down",
		RunE: func(cmd *cobra.Command, _ []string) error {
			hc, base, peer, err := c.raw()
			if err != nil {
				return err
			}
			hc.Timeout = timeout
			res, err := hc.Post(base+"/skep/v1/down", "application/json", nil)
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
				fmt.Fprintf(cmd.OutOrStdout(), "no daemon runs at %s: nothing to do\n", c.address())
				return nil
			}
			if err != nil {
				return fmt.Errorf("down: %w", err)
			}
			defer res.Body.Close()
			done, err := finishDown(cmd, res)
			if err == nil {
				err = peer.awaitExit(cmd.Context())
			}
			if err == nil && done {
				fmt.Fprintln(cmd.OutOrStdout(), "done")
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait")
	return cmd
}

// finishDown prints the progress that the daemon reports until it closes the connection by ending, and returns
// whether it said that all is done. That word is kept back: the daemon itself is still there.
func finishDown(cmd *cobra.Command, res *http.Response) (done bool, err error) {
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		return false, fmt.Errorf("down: the daemon answered %s: %s", res.Status, strings.TrimSpace(string(body)))
	}
	w := &steps{w: cmd.OutOrStdout()}
	if err := printStream(w, res.Body); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fmt.Errorf("down: %w", err)
	}
	return w.done, nil
}

// steps passes on lines but for the last word.
type steps struct {
	w    io.Writer
	done bool
}

func (s *steps) Write(line []byte) (int, error) {
	if string(line) == "done\n" {
		s.done = true
		return len(line), nil
	}
	return s.w.Write(line)
}

// maxLastLine bounds how much of the daemon's log is read for its last line: the log may be of any size.
const maxLastLine = 8 << 10

// lastLine is the end of the daemon's log, for the error that it died of.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	data, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-maxLastLine), maxLastLine))
	if err != nil {
		return err.Error()
	}
	text := strings.TrimSpace(string(data))
	return text[strings.LastIndexByte(text, '\n')+1:]
}
