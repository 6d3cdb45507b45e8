package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (c *cli) service() *cobra.Command {
	cmd := &cobra.Command{Use: "service", Aliases: []string{"services"}, Short: "Look at services, and steer their updates"}
	cmd.AddCommand(c.serviceLs(), c.servicePs(), c.serviceLogs(), c.serviceWhy(), c.serviceHistory(), c.serviceDiff(), c.serviceRollback(),
		c.serviceUpdate("pause", "Hold a rollout where it is"), c.serviceUpdate("resume", "Let a paused rollout go on"), c.serviceUpdate("cancel", "Give up an update and go back"))
	for _, sub := range cmd.Commands() {
		if strings.Contains(sub.Use, " SERVICE") {
			sub.ValidArgsFunction = c.completeService
		}
	}
	return cmd
}

// completeService completes the names of services.
func (c *cli) completeService(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	cl, err := c.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := serviceNames(cmd.Context(), cl)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.Sorted(maps.Values(names)), cobra.ShellCompDirectiveNoFileComp
}

// serviceRow is what --format and --json see of a service.
type serviceRow struct {
	ID, Name, Mode, Replicas, Image, Ports string
}

func (c *cli) serviceLs() *cobra.Command {
	var l listing
	var filter []string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List services", Args: args(cobra.NoArgs),
		Example: `  skep service ls
  skep service ls --format '{{.Name}} {{.Replicas}}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filters(filter)
			if err != nil {
				return err
			}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			res, err := cl.ServiceList(cmd.Context(), client.ServiceListOptions{Filters: f, Status: true})
			if err != nil {
				return c.explain(err)
			}
			slices.SortFunc(res.Items, func(a, b swarm.Service) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
			var rows []row
			for _, s := range res.Items {
				v := serviceRow{ID: s.ID, Name: s.Spec.Name, Mode: mode(&s.Spec), Replicas: replicas(&s), Image: image(&s.Spec.TaskTemplate), Ports: ports(s.Endpoint.Ports)}
				rows = append(rows, row{s.ID, []string{l.short(v.ID), v.Name, v.Mode, v.Replicas, v.Image, v.Ports}, v})
			}
			return l.print(cmd.OutOrStdout(), []string{"ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"}, rows)
		},
	}
	l.flags(cmd)
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "show only what matches `KEY=VALUE` (id, label, mode, name)")
	return cmd
}

func mode(s *swarm.ServiceSpec) string {
	switch {
	case s.Mode.Global != nil:
		return "global"
	case s.Mode.ReplicatedJob != nil:
		return "replicated job"
	case s.Mode.GlobalJob != nil:
		return "global job"
	}
	return "replicated"
}

func replicas(s *swarm.Service) string {
	if s.ServiceStatus == nil {
		return "?"
	}
	r := fmt.Sprintf("%d/%d", s.ServiceStatus.RunningTasks, s.ServiceStatus.DesiredTasks)
	if s.Spec.Mode.ReplicatedJob != nil || s.Spec.Mode.GlobalJob != nil {
		r += fmt.Sprintf(" (%d completed)", s.ServiceStatus.CompletedTasks)
	}
	return r
}

// image is the image's name without the digest it is pinned to.
func image(t *swarm.TaskSpec) string {
	if t.ContainerSpec == nil {
		return ""
	}
	name, _, _ := strings.Cut(t.ContainerSpec.Image, "@")
	return name
}

func ports(list []swarm.PortConfig) string {
	var out []string
	for _, p := range list {
		s := fmt.Sprintf("%d->%d/%s", p.PublishedPort, p.TargetPort, p.Protocol)
		if p.PublishMode != swarm.PortConfigPublishModeHost {
			s = "*:" + s
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// taskRow is what --format and --json see of a task.
type taskRow struct {
	ID, Name, Image, Node, DesiredState, CurrentState, Error, Ports string
}

func taskColumns() []string {
	return []string{"ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"}
}

func (c *cli) servicePs() *cobra.Command {
	var l listing
	var filter []string
	cmd := &cobra.Command{
		Use: "ps SERVICE…", Short: "List the tasks of services", Args: args(cobra.MinimumNArgs(1)),
		Example: `  skep service ps web
  skep service ps --no-trunc web     # with the whole reason why a task does not run`,
		RunE: func(cmd *cobra.Command, names []string) error {
			f, err := filters(filter)
			if err != nil {
				return err
			}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			return c.listTasks(cmd, cl, &l, names, f)
		},
	}
	l.flags(cmd)
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "show only what matches `KEY=VALUE` (id, name, node, desired-state)")
	return cmd
}

// listTasks prints the tasks of the services named, of all when none is.
func (c *cli) listTasks(cmd *cobra.Command, cl *client.Client, l *listing, names []string, f client.Filters) error {
	rows, err := c.taskRows(cmd.Context(), cl, l, names, f)
	if err != nil {
		return c.explain(err)
	}
	return l.print(cmd.OutOrStdout(), taskColumns(), rows)
}

// taskRows are the tasks of the services named, of all when none is.
func (c *cli) taskRows(ctx context.Context, cl *client.Client, l *listing, names []string, f client.Filters) ([]row, error) {
	services := map[string]string{}
	for _, n := range names {
		res, err := cl.ServiceInspect(ctx, n, client.ServiceInspectOptions{})
		if err != nil {
			return nil, err
		}
		services[res.Service.ID] = res.Service.Spec.Name
		f.Add("service", res.Service.ID)
	}
	if len(names) == 0 {
		var err error
		if services, err = serviceNames(ctx, cl); err != nil {
			return nil, err
		}
	}
	tasks, err := cl.TaskList(ctx, client.TaskListOptions{Filters: f})
	if err != nil {
		return nil, err
	}
	hosts, err := hostNames(ctx, cl)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(tasks.Items, func(a, b swarm.Task) int {
		return cmp.Or(cmp.Compare(services[a.ServiceID], services[b.ServiceID]), cmp.Compare(a.Slot, b.Slot), b.CreatedAt.Compare(a.CreatedAt))
	})
	var rows []row
	last := ""
	for _, t := range tasks.Items {
		name := services[t.ServiceID] + "." + t.NodeID
		if t.Slot != 0 {
			name = services[t.ServiceID] + "." + strconv.Itoa(t.Slot)
		}
		v := taskRow{ID: t.ID, Name: name, Image: image(&t.Spec), Node: hosts[t.NodeID], DesiredState: title(t.DesiredState),
			CurrentState: title(t.Status.State) + " " + ago(t.Status.Timestamp), Error: t.Status.Err, Ports: ports(t.Status.PortStatus.Ports)}
		shown := name
		if name == last {
			shown = ` \_ ` + name // an earlier life of the same slot
		}
		last = name
		rows = append(rows, row{t.ID, []string{l.short(v.ID), shown, v.Image, v.Node, v.DesiredState, v.CurrentState, l.clip(v.Error, 60), v.Ports}, v})
	}
	return rows, nil
}

func title(s swarm.TaskState) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(string(s[:1])) + string(s[1:])
}

func ago(t time.Time) string { return strings.ToLower(units.HumanDuration(time.Since(t))) + " ago" }

// filters reads KEY=VALUE pairs.
func filters(list []string) (client.Filters, error) {
	f := client.Filters{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usageError{fmt.Errorf("--filter %q is not of the form KEY=VALUE", s)}
		}
		f.Add(k, v)
	}
	return f, nil
}
