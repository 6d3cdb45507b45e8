package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// call makes a request of skep's own API and decodes its answer into out, unless that is nil.
func (c *cli) call(ctx context.Context, method, path string, out any) error {
	hc, base, _, err := c.raw()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		return fmt.Errorf("make the request: %w", err)
	}
	res, err := hc.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no daemon answers at %s: start one with 'skep up' (one node, now) or 'systemctl start skep'", c.address())
	}
	if err != nil {
		return fmt.Errorf("ask the daemon: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	if res.StatusCode >= http.StatusBadRequest {
		var m struct{ Message string }
		if json.Unmarshal(body, &m) != nil || m.Message == "" {
			m.Message = res.Status
		}
		return errors.New(m.Message)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

func servicePath(name, what string) string {
	return "/skep/v1/services/" + url.PathEscape(name) + "/" + what
}

// revision is one entry of a service's history.
type revision struct {
	Number  uint64
	Current bool
	At      time.Time
	Actor   string
	Reason  string
	Tasks   int
	Spec    json.RawMessage
}

func (c *cli) serviceHistory() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "history SERVICE", Short: "List the revisions of a service", Args: args(cobra.ExactArgs(1)),
		Example: `  skep service history web
  skep service history --format '{{.Number}} {{.Reason}}' web`,
		RunE: func(cmd *cobra.Command, names []string) error {
			var list []revision
			if err := c.call(cmd.Context(), http.MethodGet, servicePath(names[0], "history"), &list); err != nil {
				return err
			}
			var rows []row
			for _, r := range list {
				mark := ""
				if r.Current {
					mark = "*"
				}
				num := strconv.FormatUint(r.Number, 10)
				rows = append(rows, row{num, []string{num + mark, strings.ToLower(units.HumanDuration(time.Since(r.At))) + " ago", strconv.Itoa(r.Tasks), r.Actor, l.clip(r.Reason, 60)}, r})
			}
			return l.print(cmd.OutOrStdout(), []string{"REVISION", "MADE", "TASKS", "BY", "WHY"}, rows)
		},
	}
	l.flags(cmd)
	return cmd
}

func (c *cli) serviceDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff SERVICE [FROM [TO]]", Short: "Compare two revisions of a service (default: the one before with the one in force)",
		Args: args(cobra.RangeArgs(1, 3)),
		Example: `  skep service diff web
  skep service diff web 3 7`,
		RunE: func(cmd *cobra.Command, a []string) error {
			var list []revision
			if err := c.call(cmd.Context(), http.MethodGet, servicePath(a[0], "history"), &list); err != nil {
				return err
			}
			from, to, err := choose(list, a[0], a[1:])
			if err != nil {
				return err
			}
			lines, err := diffSpecs(from.Spec, to.Spec)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "--- %s, revision %d\n+++ %s, revision %d\n", a[0], from.Number, a[0], to.Number)
			for _, line := range lines {
				fmt.Fprintln(w, line)
			}
			return nil
		},
	}
}

// choose picks the two revisions that the arguments name.
func choose(list []revision, name string, nums []string) (from, to *revision, err error) {
	find := func(text string) (*revision, error) {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, usageError{fmt.Errorf("%q is not the number of a revision: see 'skep service history %s'", text, name)}
		}
		for i := range list {
			if list[i].Number == n {
				return &list[i], nil
			}
		}
		return nil, fmt.Errorf("service %s has no revision %d in its history: see 'skep service history %s'", name, n, name)
	}
	to = &list[len(list)-1]
	switch {
	case len(nums) == 0 && len(list) < 2:
		return nil, nil, fmt.Errorf("service %s has one revision only: there is nothing to compare", name)
	case len(nums) == 0:
		return &list[len(list)-2], to, nil
	}
	if from, err = find(nums[0]); err == nil && len(nums) > 1 {
		to, err = find(nums[1])
	}
	return from, to, err
}

// diffSpecs compares two specs leaf by leaf: "- path: value" for what is gone, "+ path: value" for
// what is new, in the order of the paths.
func diffSpecs(from, to []byte) ([]string, error) {
	a, err := leaves(from)
	if err != nil {
		return nil, err
	}
	b, err := leaves(to)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, k := range mergedKeys(a, b) {
		va, ina := a[k]
		vb, inb := b[k]
		if ina && inb && va == vb {
			continue
		}
		if ina {
			out = append(out, "- "+k+": "+va)
		}
		if inb {
			out = append(out, "+ "+k+": "+vb)
		}
	}
	return out, nil
}

// leaves flattens JSON to paths.
func leaves(raw []byte) (map[string]string, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("read a revision: %w", err)
	}
	out := map[string]string{}
	flatten("", v, out)
	return out, nil
}

func flatten(path string, v any, out map[string]string) {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			if path != "" {
				k = path + "." + k
			}
			flatten(k, e, out)
		}
	case []any:
		for i, e := range x {
			flatten(fmt.Sprintf("%s[%d]", path, i), e, out)
		}
	default:
		b, err := json.Marshal(x)
		if err != nil {
			b = fmt.Append(nil, x)
		}
		out[path] = string(b)
	}
}
