package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/spf13/cobra"
)

const (
	statusEvery = 250 * time.Millisecond
	// steadyFor is how long everything has to run before a deploy counts as done: a program that ends at once runs, too, for a moment.
	steadyFor = 2 * time.Second
	// giveUpAfter is how often tasks of a service may fail while nothing else of the stack moves: what it waited for is there, or will
	// not come.
	giveUpAfter = 3
)

// await waits until the stack's services have converged, and says how far they are.
func (c *cli) await(cmd *cobra.Command, name string, w *waiting) error {
	if w.detach {
		return nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), w.timeout)
	defer cancel()
	view := &progressView{out: cmd.OutOrStdout(), quiet: w.quiet, live: c.isTerminal(), said: map[string]string{}}
	defer view.end()
	var steady time.Time
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var st stackStatus
	patience := patience{seen: map[string]*failures{}}
	for {
		var now stackStatus
		if err := c.call(ctx, http.MethodGet, stackPath(name, "status"), &now); err == nil {
			st = now
		} else if ctx.Err() == nil {
			return err
		}
		view.show(&st)
		failed, waits := st.sort()
		if len(failed) == 0 {
			failed = patience.over(&st, time.Now())
		}
		switch {
		case len(failed) > 0:
			return c.notUp(cmd, failed, 1)
		case len(waits) > 0:
			steady = time.Time{}
		case steady.IsZero():
			steady = time.Now()
		case time.Since(steady) >= steadyFor:
			view.say("stack " + name + " is up")
			return nil
		}
		if err := c.nextLook(ctx, cmd, tick, fmt.Sprintf("stack %s is not up after %v", name, w.timeout), waits); err != nil {
			return err
		}
	}
}

// patience counts the failures of services while nothing else of their stack gets on.
type patience struct {
	seen   map[string]*failures
	others string // how far all are
}

// failures are those of one service: how many since something else got on, the task of the last, and when that was seen.
type failures struct {
	count int
	last  string
	at    time.Time
}

// over are the services that keep failing. One whose tasks fail until another service is there is none, as long as that one gets on. A
// service that runs counts as being there when it has not failed for a while: one that fails again and again runs in between.
func (p *patience) over(st *stackStatus, now time.Time) []stackService {
	var how strings.Builder
	for _, s := range st.Services {
		f := p.seen[s.Name]
		if f == nil {
			f = new(failures)
			p.seen[s.Name] = f
		}
		if s.LastFailure != f.last {
			f.last, f.at = s.LastFailure, now
			f.count++
		}
		switch settled := f.last == "" || now.Sub(f.at) >= steadyFor; {
		case settled && s.Converged:
			f.count = 0
			fmt.Fprintf(&how, "%s up ", s.Name)
		case f.last == "":
			fmt.Fprintf(&how, "%s %d %d ", s.Name, s.Running, s.Completed)
		default:
			fmt.Fprintf(&how, "%s %d ", s.Name, s.Completed)
		}
	}
	if now := how.String(); now != p.others {
		p.others = now
		for _, f := range p.seen {
			f.count = min(f.count, 1)
		}
	}
	var out []stackService
	for _, s := range st.Services {
		if p.seen[s.Name].count >= giveUpAfter && s.Running < s.Desired {
			s.Why = "its tasks keep failing: " + cmp.Or(s.LastError, s.Why)
			out = append(out, s)
		}
	}
	return out
}

// nextLook waits until it is time to look again. When the time is over it says late, and what is waited for, with exit code 3; when the
// user breaks off, that is the error.
func (c *cli) nextLook(ctx context.Context, cmd *cobra.Command, tick *time.Ticker, late string, waits []stackService) error {
	select {
	case <-tick.C:
		return nil
	case <-ctx.Done():
	}
	if err := cmd.Context().Err(); err != nil {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "skep: "+late)
	return c.notUp(cmd, waits, 3)
}

// notUp says which services are not as they should be, and why.
func (c *cli) notUp(cmd *cobra.Command, list []stackService, code int) error {
	for _, s := range list {
		fmt.Fprintf(cmd.ErrOrStderr(), "skep: service %s: %d of %d: %s\n", s.Name, s.progress(), s.Desired, cmp.Or(s.Why, "not yet"))
	}
	return exitCode(code)
}

// stackService and stackStatus are what the daemon says of a stack.
type stackService struct {
	ID, Name, Mode, Image       string
	Desired, Running, Completed uint64
	Converged, Failed           bool
	Why                         string
	LastFailure, LastError      string
	Ports                       []swarm.PortConfig
}

type stackStatus struct {
	Name     string
	Revision uint64
	Services []stackService
}

func (s *stackService) progress() uint64 {
	if strings.HasSuffix(s.Mode, "-job") {
		return s.Completed
	}
	return s.Running
}

func (s *stackStatus) sort() (failed, waits []stackService) {
	for _, v := range s.Services {
		switch {
		case v.Failed:
			failed = append(failed, v)
		case !v.Converged:
			waits = append(waits, v)
		}
	}
	return failed, waits
}
