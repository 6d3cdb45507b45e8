package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (c *cli) serviceLogs() *cobra.Command {
	var o client.ServiceLogsOptions
	cmd := &cobra.Command{
		Use: "logs SERVICE", Short: "Print what the tasks of a service wrote", Args: args(cobra.ExactArgs(1)),
		Example: `  skep service logs -f --tail 20 web
  skep service logs --since 10m --timestamps web`,
		RunE: func(cmd *cobra.Command, names []string) error {
			cl, err := c.connect()
			if err != nil {
				return err
			}
			return c.explain(c.printServiceLogs(cmd, cl, names[0], o))
		},
	}
	logFlags(cmd, &o)
	return cmd
}

// printServiceLogs prints what the tasks of a service wrote.
func (c *cli) printServiceLogs(cmd *cobra.Command, cl *client.Client, service string, o client.ServiceLogsOptions) error {
	res, err := cl.ServiceLogs(cmd.Context(), service, o)
	if err != nil {
		return err
	}
	defer res.Close()
	return c.printLogs(cmd, cl, res, o.Timestamps)
}

// logFlags gives a command the flags for what is to be printed, which is of both streams and with the tasks' identifiers.
func logFlags(cmd *cobra.Command, o *client.ServiceLogsOptions) {
	o.ShowStdout, o.ShowStderr, o.Details = true, true, true
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written from now")
	cmd.Flags().StringVarP(&o.Tail, "tail", "n", "all", "`lines` from the end of each task's log")
	cmd.Flags().StringVar(&o.Since, "since", "", "start at a `time` (2026-01-02T13:23:37Z) or so long ago (42m)")
	cmd.Flags().BoolVarP(&o.Timestamps, "timestamps", "t", false, "with the time of each line")
}

// printLogs splits the two streams and replaces the identifiers before each line by names.
func (c *cli) printLogs(cmd *cobra.Command, cl *client.Client, in io.Reader, stamps bool) error {
	names := &logNames{cmd: cmd, cl: cl, names: map[string]string{}}
	out := &lineWriter{w: cmd.OutOrStdout(), names: names, stamps: stamps}
	errs := &lineWriter{w: cmd.ErrOrStderr(), names: names, stamps: stamps}
	if _, err := stdcopy.StdCopy(out, errs, in); err != nil && cmd.Context().Err() == nil {
		return fmt.Errorf("read logs: %w", err)
	}
	return cmd.Context().Err()
}

// lineWriter prints whole lines with the task's name in front.
type lineWriter struct {
	w      io.Writer
	names  *logNames
	stamps bool
	rest   []byte
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		adv, line, err := bufio.ScanLines(l.rest, false)
		if err != nil || adv == 0 {
			return len(p), err
		}
		if _, err := fmt.Fprintln(l.w, l.render(string(line))); err != nil {
			return len(p), err
		}
		l.rest = l.rest[adv:]
	}
}

func (l *lineWriter) render(line string) string {
	stamp := ""
	if l.stamps {
		stamp, line, _ = strings.Cut(line, " ")
		stamp += " "
	}
	details, text, ok := strings.Cut(line, " ")
	if !ok || !strings.Contains(details, "com.docker.swarm.task.id=") {
		return stamp + line
	}
	for pair := range strings.SplitSeq(details, ",") {
		if id, ok := strings.CutPrefix(pair, "com.docker.swarm.task.id="); ok {
			return fmt.Sprintf("%s%s    | %s", stamp, l.names.task(id), text)
		}
	}
	return stamp + line
}

// logNames looks the names of tasks up, each once.
type logNames struct {
	cmd   *cobra.Command
	cl    *client.Client
	names map[string]string
}

func (n *logNames) task(id string) string {
	if name, ok := n.names[id]; ok {
		return name
	}
	name := id
	ctx := n.cmd.Context()
	if t, err := n.cl.TaskInspect(ctx, id, client.TaskInspectOptions{}); err == nil {
		if s, err := n.cl.ServiceInspect(ctx, t.Task.ServiceID, client.ServiceInspectOptions{}); err == nil {
			name = fmt.Sprintf("%s.%d", s.Service.Spec.Name, t.Task.Slot)
		}
		if node, err := n.cl.NodeInspect(ctx, t.Task.NodeID, client.NodeInspectOptions{}); err == nil {
			name += "@" + node.Node.Description.Hostname
		}
	}
	n.names[id] = name
	return name
}
