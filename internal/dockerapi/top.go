package dockerapi

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/skep-swarm/skep/internal/model"
)

const (
	// maxPSArgs and maxPSLen bound what a client may hand to ps.
	maxPSArgs = 16
	maxPSLen  = 256
	// maxListed is how many processes ps is asked for by number; for more it lists all, which are sorted out here.
	maxListed = 1000
)

var (
	psArg = regexp.MustCompile(`^[A-Za-z0-9,_%.+=:-]+$`)
	// psRenamed finds a title of the client's own for the column that lines are told apart by, which ps spells name=title.
	psRenamed = regexp.MustCompile(`(?:^|[,o-])pid=`)
)

// containerTop lists a container's processes as the node's own ps shows them.
func (s *Server) containerTop(r *request, c *Container) error {
	args, err := readPSArgs(r.query("ps_args"))
	if err != nil {
		return err
	}
	if err := notRunning(c); err != nil {
		return err
	}
	ctl, err := s.backend.Control(c.ID)
	if err != nil {
		return err
	}
	pids, err := ctl.Processes(r.ctx())
	if err != nil {
		return containerError(c, err)
	}
	text, err := s.listProcesses(r.ctx(), args, pids)
	if err != nil {
		return err
	}
	out, err := parsePS(text, pids)
	if err != nil {
		return err
	}
	s.emitContainer(c, events.ActionTop, nil)
	return writeJSON(r, http.StatusOK, out)
}

// readPSArgs takes only what is a word of ps: no option of ps opens a file or runs a program.
func readPSArgs(text string) ([]string, error) {
	if strings.TrimSpace(text) == "" {
		text = "-ef"
	}
	args := strings.Fields(text)
	if len(text) > maxPSLen || len(args) > maxPSArgs {
		return nil, model.Invalidf("the options for ps are too long: at most %d words and %d characters", maxPSArgs, maxPSLen)
	}
	for _, a := range args {
		if !psArg.MatchString(a) {
			return nil, model.Invalidf("invalid option for ps: %q", a)
		}
		if psRenamed.MatchString(a) {
			return nil, model.Invalidf("specifying %q is not allowed: the column of process IDs keeps its title", a)
		}
	}
	return args, nil
}

func (s *Server) listProcesses(ctx context.Context, args []string, pids []int) (string, error) {
	if n := len(pids); n > 0 && n <= maxListed {
		list := make([]string, n)
		for i, p := range pids {
			list[i] = strconv.Itoa(p)
		}
		// Some options cannot be used together with a list.
		if text, err := s.backend.PS(ctx, append(slices.Clone(args), "-q"+strings.Join(list, ","))); err == nil {
			return text, nil
		}
	}
	return s.backend.PS(ctx, args)
}

// parsePS keeps the lines of a container's processes. What follows the last title belongs to the last column.
func parsePS(text string, pids []int) (*container.TopResponse, error) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	out := &container.TopResponse{Titles: strings.Fields(lines[0]), Processes: [][]string{}}
	at := slices.Index(out.Titles, "PID")
	if at < 0 {
		return nil, model.Invalidf("Couldn't find PID field in ps output: add pid to the columns")
	}
	belongs := false
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) <= at {
			continue
		}
		if f[at] != "-" { // else it is a thread of the process before
			pid, err := strconv.Atoi(f[at])
			if err != nil {
				//lint:ignore ST1005 Docker's words
				return nil, fmt.Errorf("Unexpected pid '%s': %w", f[at], err)
			}
			_, belongs = slices.BinarySearch(pids, pid)
		}
		if !belongs {
			continue
		}
		if n := len(out.Titles); len(f) > n {
			f = append(f[:n-1:n-1], strings.Join(f[n-1:], " "))
		}
		out.Processes = append(out.Processes, f)
	}
	return out, nil
}
