package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/signal"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	// killWait is how long a killed container may take to be gone.
	killWait = 10 * time.Second
	// maxStopWait bounds the time that a client lets a container end in.
	maxStopWait = 24 * time.Hour
	// removalCheck is how often a container is looked for whose removal a client waits for.
	removalCheck = 200 * time.Millisecond
)

// emitContainer emits an event of a container that the node does not tell of by itself.
func (s *Server) emitContainer(c *Container, action events.Action, more map[string]string) {
	s.emit(events.ContainerEventType, action, scopeLocal, c.ID, mergedLabels(containerEventAttrs(c), more), s.now())
}

// containerError gives an error of the runtime its status.
func containerError(c *Container, err error) error {
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		return notFoundf("No such container: %s", c.ID)
	case runtime.KindOf(err) == runtime.KindNotRunning:
		return model.Conflictf("%s", err)
	case runtime.KindOf(err) == runtime.KindInvalid:
		return model.Invalidf("%s", err)
	}
	return err
}

// onKill words the errors of a kill as Docker does.
func onKill(h handler) handler {
	return func(r *request) error {
		err := h(r)
		if text := "cannot kill container: "; err != nil && model.KindOf(err) != model.Unknown && !strings.HasPrefix(err.Error(), text) {
			return model.Errorf(model.KindOf(err), "%s%s: %s", text, r.vars["id"], err)
		}
		return err
	}
}

func readSignal(text string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(text)
	if err != nil || !signal.ValidSignalForPlatform(sig) {
		return 0, model.Invalidf("Invalid signal: %s", text)
	}
	return sig, nil
}

// killContainer sends a signal. What the swarm makes of the end that may follow is the restart policy's business.
func (s *Server) killContainer(r *request, c *Container) error {
	sig := syscall.SIGKILL
	if text := r.query("signal"); text != "" {
		var err error
		if sig, err = readSignal(text); err != nil {
			return err
		}
	}
	ctl, err := s.backend.Control(c.ID)
	if err == nil {
		err = s.signalContainer(r.ctx(), c, ctl, sig)
	}
	if err == nil && sig == syscall.SIGKILL {
		_, err = waitEnd(r.ctx(), ctl, killWait)
	}
	if err != nil {
		return containerError(c, err)
	}
	return writeEmpty(r, http.StatusNoContent)
}

func (s *Server) signalContainer(ctx context.Context, c *Container, ctl Control, sig syscall.Signal) error {
	return ctl.Signal(ctx, sig)
}

// waitEnd waits for a container's end, at most for limit; false when it still runs then.
func waitEnd(ctx context.Context, ctl Control, limit time.Duration) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := ctl.Wait(limited)
	switch {
	case err == nil, errors.Is(err, runtime.ErrNotFound):
		return true, nil
	case limited.Err() != nil && ctx.Err() == nil:
		return false, nil
	}
	return false, err
}

// stopContainer takes a container out of what clients are led to, asks it to end and kills it when its time is over. It goes on when
// the client does not wait.
func (s *Server) stopContainer(r *request, c *Container) error {
	ctl, err := s.backend.Control(c.ID)
	if err != nil {
		return err
	}
	st, err := ctl.Status(r.ctx())
	if err != nil {
		return containerError(c, err)
	}
	sig, grace, err := readStop(r, st)
	if err != nil {
		return err
	}
	if st.State != runtime.Running {
		return writeEmpty(r, http.StatusNotModified)
	}
	back := s.backend.Withdraw(context.WithoutCancel(r.ctx()), c.ID)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx()), grace+2*killWait)
	defer cancel()
	err = s.signalContainer(ctx, c, ctl, sig)
	ended := false
	if err == nil {
		ended, err = waitEnd(ctx, ctl, grace)
	}
	if err == nil && !ended {
		if err = s.signalContainer(ctx, c, ctl, syscall.SIGKILL); err == nil {
			ended, err = waitEnd(ctx, ctl, killWait)
		}
	}
	if runtime.KindOf(err) == runtime.KindNotRunning || errors.Is(err, runtime.ErrNotFound) {
		ended, err = true, nil // it ended by itself in between
	}
	if !ended {
		back()
	}
	if err != nil {
		return fmt.Errorf("cannot stop container: %s: %w", r.vars["id"], err)
	}
	if !ended {
		return model.Errorf(unavailable, "cannot stop container: %s: it was killed %s ago and has not ended", r.vars["id"], killWait)
	}
	s.emitContainer(c, events.ActionStop, nil)
	return writeEmpty(r, http.StatusNoContent)
}

// readStop is the signal and the time that a client gives a container, or else its service.
func readStop(r *request, st runtime.Status) (syscall.Signal, time.Duration, error) {
	sig, err := signal.ParseSignal(st.StopSignal)
	if err != nil {
		sig = syscall.SIGTERM
	}
	if text := r.query("signal"); text != "" {
		if sig, err = readSignal(text); err != nil {
			return 0, 0, err
		}
	}
	grace := st.StopGrace
	if text := r.query("t"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < -1 {
			return 0, 0, model.Invalidf("invalid value for 't': %q is not a number of seconds, nor -1 for as long as it takes", text)
		}
		grace = time.Duration(n) * time.Second
		if n < 0 || n > int(maxStopWait/time.Second) {
			grace = maxStopWait
		}
	}
	return sig, grace, nil
}

// waitContainer tells the exit code of a container when it has ended. The head of the answer is sent at once: clients wait for
// it before they go on.
func (s *Server) waitContainer(r *request, c *Container) error {
	cond := container.WaitCondition(r.query("condition"))
	switch cond {
	case "", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return model.Invalidf("invalid condition: %q: use not-running, next-exit or removed", cond)
	}
	ctl, err := s.backend.Control(c.ID)
	if err != nil {
		return err
	}
	// Whether it runs is read before the head is sent: what the client does then, it does to a container that is waited for.
	st, err := ctl.Status(r.ctx())
	if err != nil {
		return containerError(c, err)
	}
	out := newJSONStream(r)
	out.start()
	exit, err := awaitCondition(r.ctx(), ctl, st, cond)
	if r.ctx().Err() != nil {
		return nil // the client is gone
	}
	answer := container.WaitResponse{StatusCode: int64(exit.Code)}
	if err != nil {
		answer.Error = &container.WaitExitError{Message: containerError(c, err).Error()}
	}
	out.write(answer)
	return out.err
}

// awaitCondition waits until a container, which was as st says, is as a client wants it. One that ended does not start again: its next
// exit never comes, but its removal does.
func awaitCondition(ctx context.Context, ctl Control, st runtime.Status, cond container.WaitCondition) (exit runtime.Exit, err error) {
	exit = st.Exit
	switch {
	case st.State == runtime.Exited && cond == container.WaitConditionNextExit:
		cond = container.WaitConditionRemoved
	case st.State == runtime.Created && (cond == "" || cond == container.WaitConditionNotRunning):
		return exit, nil
	case st.State != runtime.Exited:
		if exit, err = ctl.Wait(ctx); err != nil {
			return exit, err
		}
	}
	for cond == container.WaitConditionRemoved {
		if _, err := ctl.Status(ctx); errors.Is(err, runtime.ErrNotFound) {
			break
		} else if err != nil {
			return exit, err
		}
		if err := pause(ctx, removalCheck); err != nil {
			return exit, err
		}
	}
	return exit, nil
}

// ofTask refuses what cannot be done to a container that is a task's, with what to do instead.
func ofTask(line string) func(*request, *Container) error {
	return func(_ *request, c *Container) error {
		return model.Errorf(model.Forbidden, "container %s belongs to a task: %s", c.Name, line)
	}
}

// startContainer has nothing to do: a container starts when its task does, once.
func (s *Server) startContainer(r *request, c *Container) error {
	if c.State == container.StateRunning {
		return writeEmpty(r, http.StatusNotModified)
	}
	return ofTask("it runs once, and the swarm starts another in its place; use docker service update --force to start a service anew")(r, c)
}
