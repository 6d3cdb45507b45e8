package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"
)

// isTerminal reports whether a person watches standard output.
func (c *cli) isTerminal() bool {
	f, ok := c.Stdout.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && c.Getenv("TERM") != "dumb"
}

// progressView shows how far the services of a stack are: as a table that is drawn anew on a terminal, as a line for each change
// elsewhere.
type progressView struct {
	out         io.Writer
	quiet, live bool
	lines       int // drawn
	said        map[string]string
}

func (v *progressView) show(st *stackStatus) {
	if v.quiet {
		return
	}
	if v.live {
		v.draw(st)
		return
	}
	for _, s := range st.Services {
		text := fmt.Sprintf("%d of %d", s.progress(), s.Desired)
		if s.Why != "" {
			text += ": " + s.Why
		}
		if v.said[s.Name] != text {
			v.said[s.Name] = text
			fmt.Fprintf(v.out, "%s %s\n", s.Name, text)
		}
	}
}

// draw replaces what was drawn before.
func (v *progressView) draw(st *stackStatus) {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, s := range st.Services {
		mark := "…"
		switch {
		case s.Failed:
			mark = "✗"
		case s.Converged:
			mark = "✓"
		}
		why := []rune(s.Why)
		if len(why) > 60 {
			why = append(why[:59], '…')
		}
		fmt.Fprintf(tw, "%s %s\t%d/%d\t%s\n", mark, s.Name, s.progress(), s.Desired, string(why))
	}
	_ = tw.Flush() // into memory
	if v.lines > 0 {
		fmt.Fprintf(v.out, "\x1b[%dA\x1b[J", v.lines)
	}
	v.lines = len(st.Services)
	_, _ = io.WriteString(v.out, b.String()) // who does not read has gone
}

func (v *progressView) end() { v.lines = 0 }

func (v *progressView) say(line string) {
	if !v.quiet {
		fmt.Fprintln(v.out, line)
	}
}
