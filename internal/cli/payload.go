package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// maxPayload is more than a daemon takes, in bytes: it has the word on what is too large.
const maxPayload = 2 << 20

// payloadKind is what secrets and configs differ in.
type payloadKind struct {
	name   string // "secret" or "config"
	create func(context.Context, *client.Client, swarm.SecretSpec) (id string, err error)
	list   func(context.Context, *client.Client, client.Filters) ([]payloadRow, error)
	// inspect returns the daemon's answer as it is.
	inspect func(context.Context, *client.Client, string) (json.RawMessage, error)
	remove  func(context.Context, *client.Client, string) error
}

func secretKind() payloadKind {
	return payloadKind{
		name: "secret",
		create: func(ctx context.Context, cl *client.Client, spec swarm.SecretSpec) (string, error) {
			res, err := cl.SecretCreate(ctx, client.SecretCreateOptions{Spec: spec})
			return res.ID, err
		},
		list: func(ctx context.Context, cl *client.Client, f client.Filters) ([]payloadRow, error) {
			res, err := cl.SecretList(ctx, client.SecretListOptions{Filters: f})
			var rows []payloadRow
			for _, s := range res.Items {
				rows = append(rows, makePayloadRow(s.ID, s.Meta, s.Spec.Annotations))
			}
			return rows, err
		},
		inspect: func(ctx context.Context, cl *client.Client, ref string) (json.RawMessage, error) {
			res, err := cl.SecretInspect(ctx, ref, client.SecretInspectOptions{})
			return res.Raw, err
		},
		remove: func(ctx context.Context, cl *client.Client, ref string) error {
			_, err := cl.SecretRemove(ctx, ref, client.SecretRemoveOptions{})
			return err
		},
	}
}

func configKind() payloadKind {
	return payloadKind{
		name: "config",
		create: func(ctx context.Context, cl *client.Client, spec swarm.SecretSpec) (string, error) {
			res, err := cl.ConfigCreate(ctx, client.ConfigCreateOptions{Spec: swarm.ConfigSpec{Annotations: spec.Annotations, Data: spec.Data, Templating: spec.Templating}})
			return res.ID, err
		},
		list: func(ctx context.Context, cl *client.Client, f client.Filters) ([]payloadRow, error) {
			res, err := cl.ConfigList(ctx, client.ConfigListOptions{Filters: f})
			var rows []payloadRow
			for _, c := range res.Items {
				rows = append(rows, makePayloadRow(c.ID, c.Meta, c.Spec.Annotations))
			}
			return rows, err
		},
		inspect: func(ctx context.Context, cl *client.Client, ref string) (json.RawMessage, error) {
			res, err := cl.ConfigInspect(ctx, ref, client.ConfigInspectOptions{})
			return res.Raw, err
		},
		remove: func(ctx context.Context, cl *client.Client, ref string) error {
			_, err := cl.ConfigRemove(ctx, ref, client.ConfigRemoveOptions{})
			return err
		},
	}
}

func (c *cli) secret() *cobra.Command {
	return c.payload(secretKind(), "Passwords and keys: encrypted in the swarm, files in memory for tasks", "db_password")
}

func (c *cli) config() *cobra.Command {
	return c.payload(configKind(), "Configuration files for tasks", "nginx.conf")
}

func (c *cli) payload(k payloadKind, short, example string) *cobra.Command {
	cmd := &cobra.Command{Use: k.name, Aliases: []string{k.name + "s"}, Short: short}
	cmd.AddCommand(c.payloadCreate(k, example), c.payloadLs(k), c.payloadInspect(k, example), c.payloadRm(k, example))
	return cmd
}

func (c *cli) payloadCreate(k payloadKind, example string) *cobra.Command {
	var labels []string
	var driver string
	cmd := &cobra.Command{
		Use: "create NAME [FILE|-]", Short: "Make a " + k.name + " of a file, or of standard input", Args: args(cobra.RangeArgs(1, 2)),
		Example: fmt.Sprintf("  skep %s create %s ./%s\n  printf %%s \"$VALUE\" | skep %s create %s", k.name, example, example, k.name, example),
		RunE: func(cmd *cobra.Command, a []string) error {
			spec := swarm.SecretSpec{Annotations: swarm.Annotations{Name: a[0], Labels: map[string]string{}}}
			for _, l := range labels {
				key, value, _ := strings.Cut(l, "=")
				if key == "" {
					return usageError{fmt.Errorf("--label %q is not of the form KEY=VALUE", l)}
				}
				spec.Labels[key] = value
			}
			if driver != "" {
				spec.Templating = &swarm.Driver{Name: driver}
			}
			file := "-"
			if len(a) > 1 {
				file = a[1]
			}
			var err error
			if spec.Data, err = readPayload(cmd.InOrStdin(), file); err != nil {
				return fmt.Errorf("%s create: %w", k.name, err)
			}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			id, err := k.create(cmd.Context(), cl, spec)
			if err != nil {
				return c.explain(err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), id)
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label, `KEY=VALUE`")
	cmd.Flags().StringVar(&driver, "template-driver", "", "expand placeholders in it on the task's node (golang)")
	return cmd
}

func readPayload(stdin io.Reader, file string) ([]byte, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	} else if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return nil, usageError{errors.New("nothing to read: name a file, or pipe the value in")}
	}
	data, err := io.ReadAll(io.LimitReader(in, maxPayload))
	if err == nil && len(data) == 0 {
		err = fmt.Errorf("%s is empty", file)
	}
	return data, err
}

// payloadRow is what --format and --json see of a secret or config.
type payloadRow struct {
	ID, Name, CreatedAt, UpdatedAt string
	Labels                         map[string]string
	created, updated               string
}

func makePayloadRow(id string, m swarm.Meta, a swarm.Annotations) payloadRow {
	const layout = "2006-01-02T15:04:05Z07:00"
	return payloadRow{ID: id, Name: a.Name, CreatedAt: m.CreatedAt.Format(layout), UpdatedAt: m.UpdatedAt.Format(layout), Labels: a.Labels,
		created: ago(m.CreatedAt), updated: ago(m.UpdatedAt)}
}

func (c *cli) payloadLs(k payloadKind) *cobra.Command {
	var l listing
	var filter []string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List " + k.name + "s", Args: args(cobra.NoArgs),
		Example: fmt.Sprintf("  skep %s ls\n  skep %s ls --filter label=tier=db --format '{{.Name}}'", k.name, k.name),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filters(filter)
			if err != nil {
				return err
			}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			list, err := k.list(cmd.Context(), cl, f)
			if err != nil {
				return c.explain(err)
			}
			slices.SortFunc(list, func(a, b payloadRow) int { return cmp.Compare(a.Name, b.Name) })
			var rows []row
			for _, v := range list {
				rows = append(rows, row{v.ID, []string{l.short(v.ID), v.Name, v.created, v.updated}, v})
			}
			return l.print(cmd.OutOrStdout(), []string{"ID", "NAME", "CREATED", "UPDATED"}, rows)
		},
	}
	l.flags(cmd)
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "show only what matches `KEY=VALUE` (id, label, name)")
	return cmd
}

func (c *cli) payloadInspect(k payloadKind, example string) *cobra.Command {
	var pretty bool
	cmd := &cobra.Command{
		Use: "inspect NAME…", Short: "Show " + k.name + "s in full", Args: args(cobra.MinimumNArgs(1)), ValidArgsFunction: c.completePayload(k),
		Example: fmt.Sprintf("  skep %s inspect %s\n  skep %s inspect --pretty %s", k.name, example, k.name, example),
		RunE: func(cmd *cobra.Command, names []string) error {
			cl, err := c.connect()
			if err != nil {
				return err
			}
			var found []json.RawMessage
			for _, n := range names {
				raw, err := k.inspect(cmd.Context(), cl, n)
				if err != nil {
					return c.explain(err)
				}
				found = append(found, raw)
			}
			if pretty {
				return prettyPayloads(cmd.OutOrStdout(), found)
			}
			whole, err := json.Marshal(found)
			if err != nil {
				return fmt.Errorf("print: %w", err)
			}
			var out bytes.Buffer
			if err := json.Indent(&out, whole, "", "    "); err != nil {
				return fmt.Errorf("print: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), out.String())
			return nil
		},
	}
	cmd.Flags().BoolVar(&pretty, "pretty", false, "for people")
	return cmd
}

// prettyPayloads prints them one below the other; only configs have data to print.
func prettyPayloads(w io.Writer, list []json.RawMessage) error {
	for i, raw := range list {
		var v swarm.Config
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		r := makePayloadRow(v.ID, v.Meta, v.Spec.Annotations)
		fmt.Fprintf(w, "ID:       %s\nName:     %s\n", r.ID, r.Name)
		for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
			fmt.Fprintf(w, "Label:    %s=%s\n", key, r.Labels[key])
		}
		if t := v.Spec.Templating; t != nil {
			fmt.Fprintf(w, "Template: %s\n", t.Name)
		}
		fmt.Fprintf(w, "Created:  %s (%s)\nUpdated:  %s (%s)\n", r.CreatedAt, r.created, r.UpdatedAt, r.updated)
		if len(v.Spec.Data) > 0 {
			fmt.Fprintf(w, "Data:\n%s\n", bytes.TrimSuffix(v.Spec.Data, []byte("\n")))
		}
	}
	return nil
}

func (c *cli) payloadRm(k payloadKind, example string) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME…", Aliases: []string{"remove"}, Short: "Remove " + k.name + "s that no service needs", Args: args(cobra.MinimumNArgs(1)), ValidArgsFunction: c.completePayload(k),
		Example: fmt.Sprintf("  skep %s rm %s", k.name, example),
		RunE: func(cmd *cobra.Command, names []string) error {
			cl, err := c.connect()
			if err != nil {
				return err
			}
			var errs []error
			for _, n := range names {
				if err := k.remove(cmd.Context(), cl, n); err != nil {
					errs = append(errs, c.explain(err))
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return errors.Join(errs...)
		},
	}
}

// completePayload offers the names that the daemon knows, without those that are on the line already.
func (c *cli) completePayload(k payloadKind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, start string) ([]string, cobra.ShellCompDirective) {
		cl, err := c.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		list, err := k.list(cmd.Context(), cl, nil)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, v := range list {
			if strings.HasPrefix(v.Name, start) && !slices.Contains(given, v.Name) {
				names = append(names, v.Name)
			}
		}
		slices.Sort(names)
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
