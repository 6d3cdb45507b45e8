package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// taskHelp says in each command's help what a task can be called.
const taskHelp = `A task is named by its slot (web.1), its node for a global service (all.NODE), its own
or its container's ID, or its service alone: then it is the first that runs. It may
run on any node.`

// container is what the daemon knows the container of a task by.
func (c *cli) container(ctx context.Context, cl *client.Client, ref string) (string, error) {
	if strings.Contains(ref, ".") {
		return ref, nil
	}
	res, err := cl.ServiceInspect(ctx, ref, client.ServiceInspectOptions{})
	if err == nil && (res.Service.Spec.Name == ref || res.Service.ID == ref) {
		tasks, err := runningTasks(ctx, cl, res.Service.ID)
		if err != nil {
			return "", err
		}
		if len(tasks) == 0 {
			return "", fmt.Errorf("no task of service %s runs: 'skep service why %s' says why", ref, ref)
		}
		return tasks[0].Status.ContainerStatus.ContainerID, nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return "", err
	}
	t, err := cl.TaskInspect(ctx, ref, client.TaskInspectOptions{})
	if err == nil && t.Task.ID == ref && t.Task.Status.ContainerStatus != nil {
		return t.Task.Status.ContainerStatus.ContainerID, nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return "", err
	}
	return ref, nil
}

// runningTasks are those that have a container, of one service or of all (""), by slot.
func runningTasks(ctx context.Context, cl *client.Client, service string) ([]swarm.Task, error) {
	f := client.Filters{}
	f.Add("desired-state", "running")
	if service != "" {
		f.Add("service", service)
	}
	res, err := cl.TaskList(ctx, client.TaskListOptions{Filters: f})
	if err != nil {
		return nil, err
	}
	tasks := slices.DeleteFunc(res.Items, func(t swarm.Task) bool {
		return t.Status.State != swarm.TaskStateRunning || t.Status.ContainerStatus == nil
	})
	slices.SortFunc(tasks, func(a, b swarm.Task) int {
		return cmp.Or(cmp.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.NodeID, b.NodeID))
	})
	return tasks, nil
}

// serviceNames are the names of all services by ID.
func serviceNames(ctx context.Context, cl *client.Client) (map[string]string, error) {
	res, err := cl.ServiceList(ctx, client.ServiceListOptions{})
	if err != nil {
		return nil, err
	}
	names := make(map[string]string, len(res.Items))
	for _, s := range res.Items {
		names[s.ID] = s.Spec.Name
	}
	return names, nil
}

// hostNames are the nodes' names, by their identifiers.
func hostNames(ctx context.Context, cl *client.Client) (map[string]string, error) {
	res, err := cl.NodeList(ctx, client.NodeListOptions{})
	if err != nil {
		return nil, err
	}
	names := make(map[string]string, len(res.Items))
	for _, n := range res.Items {
		names[n.ID] = n.Description.Hostname
	}
	return names, nil
}

func slotName(service string, t *swarm.Task) string {
	if t.Slot == 0 {
		return service + "." + t.NodeID
	}
	return service + "." + strconv.Itoa(t.Slot)
}

// completeTask offers the tasks that run for the first argument.
func (c *cli) completeTask(cmd *cobra.Command, before []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(before) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	cl, err := c.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	services, err := serviceNames(cmd.Context(), cl)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	tasks, err := runningTasks(cmd.Context(), cl, "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for i := range tasks {
		names = append(names, slotName(services[tasks[i].ServiceID], &tasks[i]))
	}
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeServiceOrTask offers the services, and the tasks that run, for the only argument.
func (c *cli) completeServiceOrTask(cmd *cobra.Command, before []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(before) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	services, directive := c.completeService(cmd, before, word)
	if directive == cobra.ShellCompDirectiveError {
		return nil, directive
	}
	tasks, directive := c.completeTask(cmd, before, word)
	return append(services, tasks...), directive
}

func (c *cli) ps() *cobra.Command {
	var l listing
	var filter []string
	var all bool
	cmd := &cobra.Command{
		Use: "ps", Short: "List the tasks of all services, on all nodes", Args: args(cobra.NoArgs),
		Example: `  skep ps
  skep ps --all --filter node=host-2
  skep ps --format '{{.Name}} {{.Node}}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filters(filter)
			if err != nil {
				return err
			}
			if _, asked := f["desired-state"]; !asked && !all {
				f.Add("desired-state", "running")
			}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			return c.listTasks(cmd, cl, &l, nil, f)
		},
	}
	l.flags(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "show only what matches `KEY=VALUE` (id, name, node, service, label, desired-state)")
	return cmd
}

func (c *cli) top() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top TASK [PS OPTIONS]", Short: "List the processes of a task", Long: "List the processes of a task, as the ps of its node shows them.\n\n" + taskHelp,
		Args: args(cobra.MinimumNArgs(1)), ValidArgsFunction: c.completeTask,
		Example: `  skep top web.1
  skep top web.1 -o pid,rss,cmd`,
		RunE: func(cmd *cobra.Command, a []string) error {
			cl, err := c.connect()
			if err != nil {
				return err
			}
			id, err := c.container(cmd.Context(), cl, a[0])
			if err != nil {
				return c.explain(err)
			}
			res, err := cl.ContainerTop(cmd.Context(), id, client.ContainerTopOptions{Arguments: a[1:]})
			if err != nil {
				return c.explain(err)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			for _, line := range append([][]string{res.Titles}, res.Processes...) {
				fmt.Fprintln(tw, strings.Join(line, "\t"))
			}
			return tw.Flush()
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows is for ps
	return cmd
}

func (c *cli) logs() *cobra.Command {
	var o client.ServiceLogsOptions
	cmd := &cobra.Command{
		Use: "logs SERVICE|TASK", Short: "Print what a service or one of its tasks wrote",
		Long: "Print what all tasks of a service wrote, or one task.\n\n" + taskHelp,
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: c.completeServiceOrTask,
		Example: `  skep logs -f web
  skep logs --tail 20 web.1`,
		RunE: func(cmd *cobra.Command, a []string) error {
			cl, err := c.connect()
			if err != nil {
				return err
			}
			err = c.printServiceLogs(cmd, cl, a[0], o)
			if errdefs.IsNotFound(err) {
				err = c.taskLogs(cmd, cl, a[0], client.TaskLogsOptions(o))
			}
			return c.explain(err)
		},
	}
	logFlags(cmd, &o)
	return cmd
}

func (c *cli) taskLogs(cmd *cobra.Command, cl *client.Client, ref string, o client.TaskLogsOptions) error {
	tty, task := false, ref
	info, err := cl.ContainerInspect(cmd.Context(), ref, client.ContainerInspectOptions{})
	switch {
	case err == nil && info.Container.Config != nil:
		tty, task = info.Container.Config.Tty, cmp.Or(info.Container.Config.Labels["com.docker.swarm.task.id"], ref)
		o.Details = !tty
	case err != nil && !errdefs.IsNotFound(err):
		return err
	}
	res, err := cl.TaskLogs(cmd.Context(), task, o)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("no such service or task: %s", ref)
	}
	if err != nil {
		return err
	}
	defer res.Close()
	if !tty {
		return c.printLogs(cmd, cl, res, o.Timestamps)
	}
	// A terminal has one stream, as it is.
	if _, err := io.Copy(cmd.OutOrStdout(), res); err != nil && cmd.Context().Err() == nil {
		return fmt.Errorf("read logs: %w", err)
	}
	return cmd.Context().Err()
}
