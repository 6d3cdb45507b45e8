package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"

	"github.com/spf13/cobra"
)

// why is the daemon's answer to `skep service why`.
type why struct {
	Name             string
	Running, Desired int
	Update           string
	Reasons          []struct {
		Text, State string
		Count       int
		Tasks       []string
	}
}

func (c *cli) serviceWhy() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "why SERVICE", Short: "Say why a service is not as it should be", Args: args(cobra.ExactArgs(1)),
		Long: `Says what holds the tasks of a service back, the most frequent reason first. The exit code is 0 when
all its tasks run, 3 when some do not.`,
		Example: "  skep service why web",
		RunE: func(cmd *cobra.Command, names []string) error {
			var w why
			if err := c.call(cmd.Context(), http.MethodGet, servicePath(names[0], "why"), &w); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				if err := json.NewEncoder(out).Encode(w); err != nil {
					return fmt.Errorf("print: %w", err)
				}
			} else {
				w.print(out)
			}
			if w.Running < w.Desired || len(w.Reasons) > 0 {
				return exitCode(3)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (w *why) print(out io.Writer) {
	fmt.Fprintf(out, "%s: %d of %d tasks run\n", w.Name, w.Running, w.Desired)
	if w.Update != "" {
		fmt.Fprintf(out, "  update %s\n", w.Update)
	}
	for _, r := range w.Reasons {
		fmt.Fprintf(out, "  %d × %s: %s\n", r.Count, r.State, r.Text)
	}
}

// mergedKeys are the keys of both, sorted.
func mergedKeys(a, b map[string]string) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}
