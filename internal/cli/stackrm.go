package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// Labels of Docker on the objects of a stack and on containers of tasks.
const (
	stackNamespace = "com.docker.stack.namespace"
	serviceOf      = "com.docker.swarm.service.name"
	taskOf         = "com.docker.swarm.task.id"
)

func (c *cli) stackRm() *cobra.Command {
	w := waiting{until: "its tasks have ended"}
	var volumes bool
	cmd := &cobra.Command{
		Use: "rm STACK…", Aliases: []string{"remove", "down"}, Short: "Remove stacks with their services, networks, secrets and configs, and wait until they are gone", Args: args(cobra.MinimumNArgs(1)),
		Long: `Removes all that belongs to the stacks, and their history, and waits until the last task has ended: each gets
its stop signal and its stop_grace_period. Volumes hold data and stay, but for those on this node with --volumes.
The exit code is 0 when the stacks are gone, 1 when something is wrong, and 3 when tasks have not ended in time
(--timeout); they go on ending.`,
		Example: `  skep stack rm shop
  skep stack rm --volumes shop
  skep stack rm --detach shop cart`,
		ValidArgsFunction: c.stackNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			var errs []error
			called := map[string]string{} // service names, by ID: a task of a service that is gone does not tell
			for _, name := range names {
				var st stackStatus
				if c.call(cmd.Context(), http.MethodGet, stackPath(name, "status"), &st) == nil {
					for _, s := range st.Services {
						called[s.ID] = s.Name
					}
				}
				if _, err := c.steps(cmd, http.MethodDelete, stackPath(name, ""), nil, w.quiet); err != nil {
					errs = append(errs, err)
				}
			}
			if len(errs) > 0 {
				return errors.Join(errs...)
			}
			for _, name := range names {
				if err := c.awaitGone(cmd, name, called, &w); err != nil {
					return err
				}
				if volumes {
					if err := c.removeVolumes(cmd, name, w.quiet); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	w.register(cmd)
	cmd.Flags().BoolVar(&volumes, "volumes", false, "remove the stack's volumes on this node, too, with their data")
	return cmd
}

// leftover is what a removed stack still has: tasks that end, and this node's containers of tasks that have.
type leftover struct {
	id, service string
}

// leftovers lists what is left of a stack. A task is listed until it has ended; its container goes after that, and holds the
// task's volumes until then.
func (c *cli) leftovers(ctx context.Context, cl *client.Client, stack string, called map[string]string) ([]leftover, error) {
	f, err := filters([]string{"label=" + stackNamespace + "=" + stack})
	if err != nil {
		return nil, err
	}
	var out []leftover
	tasks, err := cl.TaskList(ctx, client.TaskListOptions{Filters: f})
	if err != nil {
		return nil, err
	}
	for _, t := range tasks.Items {
		out = append(out, leftover{t.ID, cmp.Or(called[t.ServiceID], stack)})
	}
	containers, err := cl.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: f})
	if err != nil {
		return nil, err
	}
	for _, x := range containers.Items {
		// One that runs is its task's, which is listed.
		l := leftover{x.Labels[taskOf], cmp.Or(x.Labels[serviceOf], stack)}
		if !slices.ContainsFunc(out, func(o leftover) bool { return o.id == l.id }) {
			out = append(out, l)
		}
	}
	return out, nil
}

// awaitGone waits until all that a removed stack left behind has ended. What a new stack of that name starts meanwhile is none of it.
func (c *cli) awaitGone(cmd *cobra.Command, name string, called map[string]string, w *waiting) error {
	if w.detach {
		return nil
	}
	cl, err := c.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), w.timeout)
	defer cancel()
	view := &progressView{out: cmd.OutOrStdout(), quiet: w.quiet, live: c.isTerminal(), said: map[string]string{}}
	first, err := c.leftovers(cmd.Context(), cl, name, called)
	if err != nil {
		return c.explain(err)
	}
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for left := first; ; {
		st := ending(first, left)
		view.show(st)
		_, waits := st.sort()
		if len(waits) == 0 {
			view.say("stack " + name + " is gone")
			return nil
		}
		if err := c.nextLook(ctx, cmd, tick, fmt.Sprintf("stack %s is removed, but not all of its tasks have ended after %v", name, w.timeout), waits); err != nil {
			return err
		}
		if now, err := c.leftovers(ctx, cl, name, called); err == nil {
			left = now
		} else if ctx.Err() == nil {
			return c.explain(err)
		}
	}
}

// ending is how far the services of a removed stack are with their end: first is what they had, left what there is now.
func ending(first, left []leftover) *stackStatus {
	st := &stackStatus{}
	for _, l := range first {
		i := slices.IndexFunc(st.Services, func(s stackService) bool { return s.Name == l.service })
		if i < 0 {
			i = len(st.Services)
			st.Services = append(st.Services, stackService{Name: l.service, Why: "tasks ended"})
		}
		s := &st.Services[i]
		s.Desired++
		if !slices.ContainsFunc(left, func(o leftover) bool { return o.id == l.id }) {
			s.Running++ // what progress counts
		}
	}
	for i := range st.Services {
		s := &st.Services[i]
		s.Converged = s.Running == s.Desired
	}
	slices.SortFunc(st.Services, func(a, b stackService) int { return strings.Compare(a.Name, b.Name) })
	return st
}

// volumeWait bounds how long containers that end keep their volumes from being removed.
const volumeWait = time.Minute

func (c *cli) removeVolumes(cmd *cobra.Command, stack string, quiet bool) error {
	cl, err := c.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), volumeWait)
	defer cancel()
	f, err := filters([]string{"label=" + stackNamespace + "=" + stack})
	if err != nil {
		return err
	}
	list, err := cl.VolumeList(ctx, client.VolumeListOptions{Filters: f})
	if err != nil {
		return c.explain(err)
	}
	for _, v := range list.Items {
		for {
			_, err := cl.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{})
			if err == nil {
				break
			}
			if !strings.Contains(err.Error(), "in use") || ctx.Err() != nil {
				return fmt.Errorf("remove volume %s: %w", v.Name, err)
			}
			select {
			case <-time.After(statusEvery):
			case <-ctx.Done():
			}
		}
		if !quiet {
			fmt.Fprintf(cmd.OutOrStdout(), "volume %s removed\n", v.Name)
		}
	}
	return nil
}
