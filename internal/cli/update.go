package cli

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"
)

// done is the daemon's answer to a write.
type done struct {
	Revision uint64
	Message  string
}

func (c *cli) serviceRollback() *cobra.Command {
	var to uint64
	cmd := &cobra.Command{
		Use: "rollback SERVICE", Short: "Take a service back to an earlier revision", Args: args(cobra.ExactArgs(1)),
		Long: `Takes a service back to the revision before the last change of its tasks, or to any in its history.
The way back is a rollout of its own, by the service's rollback settings.`,
		Example: `  skep service rollback web
  skep service rollback --to 3 web     # see 'skep service history web'`,
		RunE: func(cmd *cobra.Command, names []string) error {
			path := servicePath(names[0], "rollback")
			if cmd.Flags().Changed("to") {
				if to == 0 {
					return usageError{fmt.Errorf("revisions are numbered from 1: see 'skep service history %s'", names[0])}
				}
				path += "?to=" + strconv.FormatUint(to, 10)
			}
			return c.write(cmd, names[0], path)
		},
	}
	cmd.Flags().Uint64Var(&to, "to", 0, "`number` of the revision (default: the one before the last change of tasks)")
	return cmd
}

// serviceUpdate makes the verbs that act on a rollout.
func (c *cli) serviceUpdate(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " SERVICE", Short: short, Args: args(cobra.ExactArgs(1)),
		Example: "  skep service " + verb + " web",
		RunE: func(cmd *cobra.Command, names []string) error {
			return c.write(cmd, names[0], servicePath(names[0], "update/"+verb))
		},
	}
}

func (c *cli) write(cmd *cobra.Command, name, path string) error {
	var d done
	if err := c.call(cmd.Context(), http.MethodPost, path, &d); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s (revision %d)\n", name, d.Message, d.Revision)
	return nil
}

func (c *cli) swarm() *cobra.Command {
	cmd := &cobra.Command{Use: "swarm", Short: "Act on the swarm as a whole"}
	cmd.AddCommand(&cobra.Command{
		Use: "accept-loss", Short: "Do not wait for nodes that vanished together", Args: args(cobra.NoArgs),
		Long: `When more than a third of the nodes vanish within a minute, the swarm holds their tasks for a minute, for
it is more likely that it cannot see them than that they are gone. This makes it go on at once.`,
		Example: "  skep swarm accept-loss",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var d done
			if err := c.call(cmd.Context(), http.MethodPost, "/skep/v1/swarm/accept-loss", &d); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), d.Message)
			return nil
		},
	})
	return cmd
}
