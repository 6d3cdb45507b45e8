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
	case l.json || l.format == "json":
		enc := json.NewEncoder(w)
		for _, r := range rows {
			if err := enc.Encode(r.value); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		return nil
	case l.format != "":
		return l.template(w, rows)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(columns, "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r.cells, "\t"))
	}
	return tw.Flush()
}

func (l *listing) template(w io.Writer, rows []row) error {
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
	for _, r := range rows {
		if err := t.Execute(w, r.value); err != nil {
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
