package compose

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pos is a place in a file. The zero Pos is nowhere.
type Pos struct {
	File string `json:",omitempty"` // as the user named it
	Line int    `json:",omitempty"` // from 1
	Col  int    `json:",omitempty"` // from 1, in bytes
}

func (p Pos) String() string {
	switch {
	case p.File == "":
		return ""
	case p.Line == 0:
		return p.File + ": "
	case p.Col == 0:
		return fmt.Sprintf("%s:%d: ", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Col)
}

func (p Pos) compare(q Pos) int {
	return cmp.Or(cmp.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Col, q.Col))
}

// Problem is one thing that is wrong with a file.
type Problem struct {
	Pos
	Text string // what is wrong and what to do
}

func (p Problem) Error() string { return p.Pos.String() + p.Text }

// Problems is the error of Load and Render for files that cannot be used: all that was found in the
// step that failed, in order of files and lines.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, x := range p {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds what one step reports.
const maxProblems = 50

func (p *Problems) add(pos Pos, format string, args ...any) {
	if len(*p) < maxProblems {
		*p = append(*p, Problem{pos, fmt.Sprintf(format, args...)})
	}
}

// err is nil when there are none.
func (p *Problems) err() error {
	if len(*p) == 0 {
		return nil
	}
	slices.SortStableFunc(*p, func(a, b Problem) int { return a.compare(b.Pos) })
	return slices.CompactFunc(*p, func(a, b Problem) bool { return a == b })
}

// AsProblems finds the problems in an error of Load or Render.
func AsProblems(err error) (Problems, bool) {
	var p Problems
	ok := errors.As(err, &p)
	return p, ok
}

// Warning is something in a file that is not what it seems.
type Warning struct {
	Pos
	Service string `json:",omitempty"`
	Key     string `json:",omitempty"`
	Text    string // what happens instead
}

func (w Warning) String() string {
	s := w.Pos.String()
	if w.Service != "" {
		s += "service " + w.Service + ": "
	}
	if w.Key != "" {
		s += "key " + w.Key + " "
	}
	return s + w.Text
}

func (l *loader) warn(pos Pos, service, key, format string, args ...any) {
	const maxWarnings = 1000
	if len(l.warnings) < maxWarnings {
		l.warnings = append(l.warnings, Warning{pos, service, key, fmt.Sprintf(format, args...)})
	}
}

func (l *loader) sortedWarnings() []Warning {
	slices.SortStableFunc(l.warnings, func(a, b Warning) int {
		return cmp.Or(a.compare(b.Pos), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Text, b.Text))
	})
	return slices.Compact(l.warnings)
}

// meant is the candidate that a mistyped word is nearest to, or "".
func meant(word string, candidates []string) string {
	best, bestDistance := "", max(len(word)/3, 1)+1
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if d := distance(strings.ToLower(word), c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the number of letters to insert, remove, change or swap.
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return 1 << 20
	}
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
