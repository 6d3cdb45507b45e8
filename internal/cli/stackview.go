package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/skep-swarm/skep/internal/compose"
	"github.com/spf13/cobra"
)

type stackSummary struct {
	Name      string
	Services  int
	Revision  uint64
	UpdatedAt string
}

func (c *cli) stackLs() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List stacks", Args: args(cobra.NoArgs),
		Example: `  skep stack ls
  skep stack ls --format '{{.Name}} {{.Revision}}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []stackSummary
			if err := c.call(cmd.Context(), http.MethodGet, "/skep/v1/stacks", &list); err != nil {
				return err
			}
			var rows []row
			for _, s := range list {
				rev, at := "-", "-"
				if s.Revision != 0 {
					rev = strconv.FormatUint(s.Revision, 10)
				}
				if t, err := time.Parse(time.RFC3339Nano, s.UpdatedAt); err == nil {
					at = strings.ToLower(units.HumanDuration(time.Since(t))) + " ago"
				}
				rows = append(rows, row{s.Name, []string{s.Name, strconv.Itoa(s.Services), rev, at}, s})
			}
			return l.print(cmd.OutOrStdout(), []string{"NAME", "SERVICES", "REVISION", "DEPLOYED"}, rows)
		},
	}
	l.flags(cmd)
	return cmd
}

func (c *cli) stackServices() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "services STACK", Short: "List a stack's services, with what they wait for", Args: args(cobra.ExactArgs(1)),
		Example:           "  skep stack services shop",
		ValidArgsFunction: c.stackNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			var st stackStatus
			if err := c.call(cmd.Context(), http.MethodGet, stackPath(names[0], "status"), &st); err != nil {
				return err
			}
			var rows []row
			for _, s := range st.Services {
				why := s.Why
				if s.Converged {
					why = ""
				}
				rows = append(rows, row{s.ID, []string{l.short(s.ID), s.Name, s.Mode, fmt.Sprintf("%d/%d", s.progress(), s.Desired), s.Image, ports(s.Ports), l.clip(why, 60)}, s})
			}
			return l.print(cmd.OutOrStdout(), []string{"ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS", "WAITS FOR"}, rows)
		},
	}
	l.flags(cmd)
	return cmd
}

func (c *cli) stackPs() *cobra.Command {
	var l listing
	var filter []string
	cmd := &cobra.Command{
		Use: "ps STACK", Short: "List a stack's tasks", Args: args(cobra.ExactArgs(1)),
		Example:           "  skep stack ps shop",
		ValidArgsFunction: c.stackNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			f, err := filters(filter)
			if err != nil {
				return err
			}
			var st stackStatus
			if err := c.call(cmd.Context(), http.MethodGet, stackPath(names[0], "status"), &st); err != nil {
				return err
			}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			var services []string
			for _, s := range st.Services {
				services = append(services, s.Name)
			}
			return c.listTasks(cmd, cl, &l, services, f)
		},
	}
	l.flags(cmd)
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "show only what matches `KEY=VALUE` (desired-state, id, name, node)")
	return cmd
}

type stackRevision struct {
	Number     uint64
	Current    bool
	At         time.Time
	Actor      string
	Reason     string
	Definition *compose.Stack
}

func (c *cli) stackHistory() *cobra.Command {
	var l listing
	var show uint64
	cmd := &cobra.Command{
		Use: "history STACK", Short: "List the revisions of a stack, or print one's files", Args: args(cobra.ExactArgs(1)),
		Example: `  skep stack history shop
  skep stack history --show 3 shop >stack.yml`,
		ValidArgsFunction: c.stackNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			var list []stackRevision
			if err := c.call(cmd.Context(), http.MethodGet, stackPath(names[0], "history"), &list); err != nil {
				return err
			}
			var rows []row
			for _, r := range list {
				if show != 0 && r.Number == show && len(r.Definition.Source) == 0 {
					return fmt.Errorf("revision %d of stack %s has no files: another client had deployed it ('skep stack rollback --to %d %s' goes back to it)", show, names[0], show, names[0])
				}
				if show != 0 && r.Number == show {
					_, err := cmd.OutOrStdout().Write(r.Definition.Source)
					return err
				}
				num := strconv.FormatUint(r.Number, 10)
				mark := ""
				if r.Current {
					mark = "*"
				}
				rows = append(rows, row{num, []string{num + mark, strings.ToLower(units.HumanDuration(time.Since(r.At))) + " ago",
					strconv.Itoa(len(r.Definition.Services)), r.Actor, l.clip(r.Reason, 60)}, r})
			}
			if show != 0 {
				return fmt.Errorf("stack %s has no revision %d: see 'skep stack history %s'", names[0], show, names[0])
			}
			return l.print(cmd.OutOrStdout(), []string{"REVISION", "DEPLOYED", "SERVICES", "BY", "WHY"}, rows)
		},
	}
	l.flags(cmd)
	cmd.Flags().Uint64Var(&show, "show", 0, "print the Compose file of this revision")
	return cmd
}

func (c *cli) stackRollback() *cobra.Command {
	var w waiting
	var to uint64
	var auth bool
	cmd := &cobra.Command{
		Use: "rollback STACK", Short: "Take a stack back to an earlier revision, and wait until it runs", Args: args(cobra.ExactArgs(1)),
		Long: `Deploys an earlier revision again, as a new one: the images are those of that time. Secrets and configs
keep their values, which are not part of a revision.`,
		Example: `  skep stack rollback shop
  skep stack rollback --to 3 shop     # see 'skep stack history shop'`,
		ValidArgsFunction: c.stackNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			path := stackPath(names[0], "rollback")
			if to != 0 {
				path += "?to=" + strconv.FormatUint(to, 10)
			}
			var body struct {
				Auth map[string]string `json:",omitempty"`
			}
			if auth {
				var err error
				if body.Auth, err = c.registryAuths(); err != nil {
					return err
				}
			}
			return c.deploy(cmd, http.MethodPost, path, body, names[0], &w)
		},
	}
	w.register(cmd)
	cmd.Flags().Uint64Var(&to, "to", 0, "`number` of the revision (default: the one before)")
	cmd.Flags().BoolVar(&auth, "with-registry-auth", false, "send your registry credentials to the nodes that pull, for services that are made again")
	return cmd
}

// planned is one thing that a deploy would do.
type planned struct {
	Action, Kind, Name string
	Before, After      json.RawMessage
}

func (c *cli) stackDiff() *cobra.Command {
	var f composeFlags
	var prune, asJSON bool
	var resolve string
	cmd := &cobra.Command{
		Use: "diff [NAME]", Short: "Say what a deploy of the Compose files would change", Args: args(cobra.MaximumNArgs(1)),
		Long: `Compares what the Compose files say with what the swarm has. The exit code is 0 when a deploy would change
nothing, 1 when something is wrong, and 3 when it would change something.`,
		Example: "  skep stack diff -c stack.yml shop",
		RunE: func(cmd *cobra.Command, names []string) error {
			stack, err := c.loadStack(cmd, &f, names)
			if err != nil {
				return err
			}
			res, err := c.stream(cmd.Context(), http.MethodPost, stackPath(stack.Name, "plan"), deployBody{Stack: stack, Prune: prune, Resolve: resolve})
			if err != nil {
				return at(stack, err)
			}
			defer res.Close()
			var list []planned
			if err := json.NewDecoder(res).Decode(&list); err != nil {
				return fmt.Errorf("read the daemon's answer: %w", err)
			}
			return printPlan(cmd, list, asJSON)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&prune, "prune", false, "as if deployed with --prune")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object for each change")
	cmd.Flags().StringVar(&resolve, "resolve-image", "always", "`when` registries are asked what image names mean: always, changed or never")
	return cmd
}

func printPlan(cmd *cobra.Command, list []planned, asJSON bool) error {
	out := cmd.OutOrStdout()
	changes := 0
	enc := json.NewEncoder(out)
	for _, p := range list {
		if p.Action == "unchanged" || p.Action == "kept" || p.Action == "busy" {
			continue
		}
		changes++
		if asJSON {
			if err := enc.Encode(p); err != nil {
				return fmt.Errorf("print: %w", err)
			}
			continue
		}
		fmt.Fprintf(out, "%s %s would be %s\n", p.Kind, p.Name, p.Action)
		if p.Before == nil || p.After == nil {
			continue
		}
		lines, err := diffSpecs(p.Before, p.After)
		if err != nil {
			return err
		}
		for _, line := range lines {
			fmt.Fprintf(out, "  %s\n", line)
		}
	}
	if changes > 0 {
		return exitCode(3)
	}
	if !asJSON {
		fmt.Fprintln(out, "nothing would change")
	}
	return nil
}

// stackNames completes the names of stacks.
func (c *cli) stackNames(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var list []stackSummary
	if err := c.call(cmd.Context(), http.MethodGet, "/skep/v1/stacks", &list); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
