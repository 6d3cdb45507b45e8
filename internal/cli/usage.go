package cli

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// flagLine is one flag in cobra's help: its name with what it takes, and what it does.
var flagLine = regexp.MustCompile(`^(\s+(?:-\w, )?--\S+(?: \S+)?)\s{3,}(\S.*)$`)

// plainUsage shows the usage of a command as cobra does, but for "[=true|false]" behind every switch.
func plainUsage(cmd *cobra.Command) error {
	out := cmd.OutOrStderr()
	var b bytes.Buffer
	cmd.SetOut(&b)
	err := new(cobra.Command).UsageFunc()(cmd)
	cmd.SetOut(out)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(out, alignFlags(b.String()))
	return err
}

// alignFlags takes "[=true|false]" out of a usage, and aligns what follows.
func alignFlags(usage string) string {
	lines := strings.Split(usage, "\n")
	parts := make([][]string, len(lines))
	width := 0
	for i, line := range lines {
		if m := flagLine.FindStringSubmatch(line); m != nil {
			m[1] = strings.TrimSuffix(m[1], "[=true|false]")
			parts[i], width = m, max(width, len(m[1]))
		}
	}
	for i, m := range parts {
		if m != nil {
			lines[i] = fmt.Sprintf("%-*s   %s", width, m[1], m[2])
		}
	}
	return strings.Join(lines, "\n")
}
