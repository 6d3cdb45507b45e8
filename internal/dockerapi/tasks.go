package dockerapi

import (
	"iter"
	"net/http"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

func (s *Server) listTasks(r *request) error {
	f, err := readFilters(r, "id", "name", "label", "service", "node", "desired-state", "runtime", "_up-to-date")
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	want, err := readTaskFilter(snap, f)
	if err != nil {
		return err
	}
	tv := newTaskViewer(snap)
	out := []taskView{}
	for t := range want.candidates(snap) {
		if !want.matches(tv, t) {
			continue
		}
		v, err := tv.view(t)
		if err != nil {
			return err
		}
		out = append(out, v)
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) getTask(r *request) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	t, err := snap.FindTask(r.vars["id"])
	if err != nil {
		return err
	}
	v, err := newTaskViewer(snap).view(t)
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, v)
}

// taskFilter is a client's filters with the names looked up.
type taskFilter struct {
	filters
	services []model.ServiceID
	nodes    []model.NodeID
	desired  []model.TaskState
}

func readTaskFilter(snap *state.Snapshot, f filters) (*taskFilter, error) {
	tf := &taskFilter{filters: f}
	for _, ref := range f["service"] {
		svc, err := snap.FindService(ref)
		if err != nil {
			return nil, err
		}
		tf.services = append(tf.services, svc.ID)
	}
	for _, ref := range f["node"] {
		n, err := snap.FindNode(ref)
		if err != nil {
			return nil, err
		}
		tf.nodes = append(tf.nodes, n.ID)
	}
	for _, name := range f["desired-state"] {
		st, ok := model.ParseTaskState(name)
		if !ok {
			return nil, model.Invalidf("invalid desired-state filter: '%s'", name)
		}
		tf.desired = append(tf.desired, st)
	}
	return tf, nil
}

// candidates are the tasks to look at: those of the services or the nodes asked for.
func (tf *taskFilter) candidates(snap *state.Snapshot) iter.Seq[*model.Task] {
	return func(yield func(*model.Task) bool) {
		switch {
		case len(tf.services) > 0:
			slices.Sort(tf.services)
			for _, id := range slices.Compact(tf.services) {
				for t := range snap.Tasks(id) {
					if !yield(t) {
						return
					}
				}
			}
		case len(tf.nodes) > 0:
			slices.Sort(tf.nodes)
			for _, id := range slices.Compact(tf.nodes) {
				for t := range snap.TasksOnNode(id) {
					if !yield(t) {
						return
					}
				}
			}
		default:
			for t := range snap.AllTasks() {
				if !yield(t) {
					return
				}
			}
		}
	}
}

func (tf *taskFilter) matches(tv *taskViewer, t *model.Task) bool {
	switch {
	case ended(tv.snap, t),
		len(tf.nodes) > 0 && !slices.Contains(tf.nodes, t.Node),
		len(tf.desired) > 0 && !slices.Contains(tf.desired, t.Desired),
		tf.has("_up-to-date") && !upToDate(tv.snap, t),
		!tf.exact("runtime", "container"):
		return false
	}
	if tf.has("id") && !tf.prefix("id", tv.namer.TaskID(t.ID)) {
		return false
	}
	if tf.has("name") && !tf.prefix("name", taskName(tv.namer, tv.serviceName(t), t)) {
		return false
	}
	return !tf.has("label") || tf.labels("label", tv.serviceLabels(t))
}

// ended reports whether a task is about to be deleted with its service, and was not listed a moment later. `docker stack
// rm --detach=false` counts tasks that it has seen ended, and waits forever when they go between two of its looks; of
// those that are listed as long as they run it waits for the last.
func ended(snap *state.Snapshot, t *model.Task) bool {
	return t.State.Terminal() && snap.Service(t.ID.Service) == nil
}

// upToDate reports whether a task is made from what its service's spec asks for now: Docker's
// hidden _up-to-date filter, on which the CLI's progress display rests.
func upToDate(snap *state.Snapshot, t *model.Task) bool {
	svc := snap.Service(t.ID.Service)
	return svc != nil && t.Template == svc.Template && t.JobIteration == svc.JobIteration
}
