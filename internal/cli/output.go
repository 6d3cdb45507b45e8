package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"

	"github.com/spf13/cobra"
)

// listing is how a list of rows is shown: a table, a template, JSON lines or identifiers.
type listing struct {
	format  string
	json    bool
	quiet   bool
	noTrunc bool
}

func (l *listing) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.format, "format", "", "Go `template` for each row, or 'json'")
	cmd.Flags().BoolVar(&l.json, "json", false, "one JSON object a row")
	cmd.Flags().BoolVarP(&l.quiet, "quiet", "q", false, "identifiers only")
	cmd.Flags().BoolVar(&l.noTrunc, "no-trunc", false, "do not cut identifiers and messages")
	cmd.MarkFlagsMutuallyExclusive("format", "json", "quiet")
}

// objectFlags are those of a command that shows one thing.
func (l *listing) objectFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.format, "format", "", "Go `template`, or 'json'")
	cmd.Flags().BoolVar(&l.json, "json", false, "as JSON")
	cmd.MarkFlagsMutuallyExclusive("format", "json")
}

// forScripts is true when the values are asked for, and not what people read.
func (l *listing) forScripts() bool { return l.json || l.format != "" }

// row is one line: the values of the columns for people, and the whole for scripts.
type row struct {
	id    string
	cells []string
	value any
}

func (l *listing) print(w io.Writer, columns []string, rows []row) error {
	switch {
	case l.quiet:
		for _, r := range rows {
			fmt.Fprintln(w, r.id)
		}
		return nil
	case l.forScripts():
		values := make([]any, len(rows))
		for i, r := range rows {
			values[i] = r.value
		}
		return l.printValues(w, values...)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(columns, "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r.cells, "\t"))
	}
	return tw.Flush()
}

// printValues prints each value as JSON or by the template.
func (l *listing) printValues(w io.Writer, values ...any) error {
	if l.json || l.format == "json" {
		enc := json.NewEncoder(w)
		for _, v := range values {
			if err := enc.Encode(v); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		return nil
	}
	t, err := template.New("format").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"upper": strings.ToUpper, "lower": strings.ToLower, "join": strings.Join,
	}).Parse(l.format)
	if err != nil {
		return usageError{fmt.Errorf("--format: %w", err)}
	}
	for _, v := range values {
		if err := t.Execute(w, v); err != nil {
			return usageError{fmt.Errorf("--format: %w", err)}
		}
		fmt.Fprintln(w)
	}
	return nil
}

// short cuts an identifier as Docker's tables do.
func (l *listing) short(id string) string {
	if l.noTrunc || len(id) <= 12 {
		return id
	}
	return id[:12]
}

// clip cuts a message to n characters.
func (l *listing) clip(s string, n int) string {
	r := []rune(s)
	if l.noTrunc || len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
