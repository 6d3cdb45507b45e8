package skepapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/compose"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

const (
	// stackLabel is what Docker's clients find a stack's objects by; imageLabel keeps a service's image as the file names it.
	stackLabel = "com.docker.stack.namespace"
	imageLabel = "com.docker.stack.image"
	// maxDeploy bounds the body of a deploy, in bytes: configs and secrets come with it.
	maxDeploy = 32 << 20
	// maxAuths bounds the credentials of all registries, in bytes.
	maxAuths = 1 << 20
	// deployLimit bounds a deploy; most of its time is spent asking registries.
	deployLimit = 10 * time.Minute
)

// Deploy is the body that deploys a stack.
type Deploy struct {
	Stack compose.Stack
	// Prune removes services of the stack that the definition does not have.
	Prune bool
	// Resolve says when registries are asked what an image's name means: "always" (the default), "changed" or "never".
	Resolve string
	// Auth are values of X-Registry-Auth, by the registry's host.
	Auth map[string]string
	// Reason is kept with the revision.
	Reason string
	// earlier is true for a revision that the stack had: values of secrets and configs do not come with it.
	earlier bool
	// last is why the plan before this one came too late.
	last error
}

// Step is one line of the answer to a deploy or a removal, as JSON.
type Step struct {
	// Action is created, updated, unchanged, removed, busy (it would be removed, but is in use) or kept (for earlier revisions); empty in
	// the last line.
	Action, Kind, Name string   `json:",omitempty"`
	Warnings           []string `json:",omitempty"`
	// Revision is the stack's, in the last line; Error says why it is the last, Kind and Name then which part it is about.
	Revision uint64 `json:",omitempty"`
	Error    string `json:",omitempty"`
}

// StackSummary is one stack in a list.
type StackSummary struct {
	Name     string
	Services int
	// Revision is 0 for a stack that another client deployed.
	Revision  uint64
	UpdatedAt string `json:",omitempty"`
}

// StackRevision is one entry of a stack's history.
type StackRevision struct {
	Number     uint64
	Current    bool
	At         string
	Actor      string
	Reason     string
	Definition *compose.Stack
}

func (s *server) stackRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /skep/v1/stacks", s.answer(s.stacks))
	mux.HandleFunc("PUT /skep/v1/stacks/{name}", s.deploy)
	mux.HandleFunc("POST /skep/v1/stacks/{name}/plan", s.answer(s.planStack))
	mux.HandleFunc("POST /skep/v1/stacks/{name}/prune", s.pruneStack)
	mux.HandleFunc("GET /skep/v1/stacks/{name}/status", s.answer(s.stackStatus))
	mux.HandleFunc("GET /skep/v1/stacks/{name}/history", s.answer(s.stackHistory))
	mux.HandleFunc("POST /skep/v1/stacks/{name}/rollback", s.rollbackStack)
	mux.HandleFunc("DELETE /skep/v1/stacks/{name}", s.removeStack)
}

// stacks lists what has services, networks, secrets or configs.
func (s *server) stacks(ctx context.Context, _ *http.Request) (any, error) {
	snap, err := s.b.State(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]*StackSummary{}
	see := func(labels map[string]string) *StackSummary {
		name := labels[stackLabel]
		if name == "" {
			return &StackSummary{}
		}
		if found[name] == nil {
			found[name] = &StackSummary{Name: name}
		}
		return found[name]
	}
	for svc := range snap.Services() {
		see(svc.Spec().Labels).Services++
	}
	for n := range snap.Networks() {
		see(n.Labels)
	}
	for _, kind := range []model.Kind{model.KindSecret, model.KindConfig} {
		for p := range snap.Payloads(kind) {
			see(p.Spec.Typed.Labels)
		}
	}
	out := make([]StackSummary, 0, len(found))
	for name, v := range found {
		if st := snap.Stack(name); st != nil {
			v.Revision, v.UpdatedAt = st.Current().Num, stamp(st.UpdatedAt)
		}
		out = append(out, *v)
	}
	slices.SortFunc(out, func(a, b StackSummary) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (s *server) stackHistory(ctx context.Context, r *http.Request) (any, error) {
	snap, err := s.b.State(ctx)
	if err != nil {
		return nil, err
	}
	st, err := findStack(snap, r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	out := make([]StackRevision, 0, len(st.Revisions))
	for _, rev := range st.Revisions {
		v := StackRevision{Number: rev.Num, Current: rev == st.Current(), At: stamp(rev.At), Actor: rev.Actor, Reason: rev.Reason, Definition: new(compose.Stack)}
		if err := json.Unmarshal(rev.Definition, v.Definition); err != nil {
			return nil, fmt.Errorf("revision %d of stack %s: %w", rev.Num, st.Name, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func findStack(snap *state.Snapshot, name string) (*model.Stack, error) {
	st := snap.Stack(name)
	if before, err := found(snap, name); st == nil && err == nil && before != nil {
		return nil, model.NotFoundf("stack %s has no history yet: another client deployed it. Its first 'skep stack deploy' keeps it as it is now, as revision 1", name)
	}
	if st == nil {
		return nil, model.NotFoundf("stack %s has no history: it was not deployed by 'skep stack deploy' (see 'skep stack ls')", name)
	}
	return st, nil
}

// readDeploy reads and checks the body of a deploy or a plan.
func readDeploy(r *http.Request) (*Deploy, error) {
	d := new(Deploy)
	body, err := io.ReadAll(io.LimitReader(r.Body, maxDeploy+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the request: %w", err)
	case len(body) > maxDeploy:
		return nil, model.Invalidf("the stack has more than %d bytes with its configs and secrets", maxDeploy)
	}
	if err := json.Unmarshal(body, d); err != nil {
		return nil, model.Invalidf("invalid JSON: %v", err)
	}
	if name := r.PathValue("name"); d.Stack.Name != name {
		return nil, model.Invalidf("the stack in the body is called %q, the path says %q", d.Stack.Name, name)
	}
	switch d.Resolve {
	case "":
		d.Resolve = "always"
	case "always", "changed", "never":
	default:
		return nil, model.Invalidf("resolve image %q: use always, changed or never", d.Resolve)
	}
	return d, nil
}

// steps is a stream of Steps as lines of JSON.
type steps struct {
	w     http.ResponseWriter
	enc   *json.Encoder
	begun bool
}

func newSteps(w http.ResponseWriter) *steps { return &steps{w: w, enc: json.NewEncoder(w)} }

func (s *steps) say(st Step) {
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	if s.enc.Encode(st) == nil {
		_ = http.NewResponseController(s.w).Flush()
	}
}

// end tells the outcome: as a status when nothing was said yet.
func (s *steps) end(revision uint64, err error) {
	switch {
	case err == nil:
		s.say(Step{Revision: revision})
	case !s.begun:
		fail(s.w, err)
	default:
		kind, name := partAt(err)
		s.say(Step{Kind: kind, Name: name, Error: plain(err.Error())})
	}
}

func (s *server) deploy(w http.ResponseWriter, r *http.Request) {
	out := newSteps(w)
	ctx, cancel := context.WithTimeout(r.Context(), deployLimit)
	defer cancel()
	d, err := readDeploy(r)
	if err != nil {
		out.end(0, err)
		return
	}
	if d.Reason == "" {
		d.Reason = "deploy"
	}
	out.end(s.apply(ctx, d, out.say))
}

// rollbackStack deploys an earlier revision again, as a new one.
func (s *server) rollbackStack(w http.ResponseWriter, r *http.Request) {
	out := newSteps(w)
	ctx, cancel := context.WithTimeout(r.Context(), deployLimit)
	defer cancel()
	d, err := s.earlier(ctx, r)
	if err != nil {
		out.end(0, err)
		return
	}
	out.end(s.apply(ctx, d, out.say))
}

// earlier makes the deploy that goes back to the revision that a request names, or to the one before the last.
func (s *server) earlier(ctx context.Context, r *http.Request) (*Deploy, error) {
	snap, err := s.b.State(ctx)
	if err != nil {
		return nil, err
	}
	st, err := findStack(snap, r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	var rev *model.StackRevision
	if text := r.URL.Query().Get("to"); text != "" {
		num, err := revisionNumber(text)
		if err != nil {
			return nil, err
		}
		if rev = st.Revision(num); rev == nil {
			return nil, model.NotFoundf("stack %s has no revision %d: it keeps %d to %d", st.Name, num, st.Revisions[0].Num, st.Current().Num)
		}
	} else if n := len(st.Revisions); n < 2 {
		return nil, model.Errorf(model.FailedPrecondition, "stack %s has no revision before the one in force", st.Name)
	} else {
		rev = st.Revisions[n-2]
	}
	auth, err := readAuth(r)
	if err != nil {
		return nil, err
	}
	d := &Deploy{Auth: auth, Prune: true, Resolve: "never", Reason: fmt.Sprintf("roll back to revision %d", rev.Num), earlier: true}
	if err := json.Unmarshal(rev.Definition, &d.Stack); err != nil {
		return nil, fmt.Errorf("revision %d of stack %s: %w", rev.Num, st.Name, err)
	}
	return d, nil
}

// readAuth reads the credentials that may come with a rollback: a service that is made again has none of its own.
func readAuth(r *http.Request) (map[string]string, error) {
	var body struct{ Auth map[string]string }
	switch err := json.NewDecoder(io.LimitReader(r.Body, maxAuths)).Decode(&body); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, model.Invalidf("invalid JSON: %v", err)
	}
	return body.Auth, nil
}

// planStack says what a deploy would do.
func (s *server) planStack(ctx context.Context, r *http.Request) (any, error) {
	d, err := readDeploy(r)
	if err != nil {
		return nil, err
	}
	p, err := s.plan(ctx, d)
	if err != nil {
		return nil, err
	}
	return p.view(), nil
}

// removeStack removes all that carries the stack's label, and its history. Volumes stay: they are the nodes' own.
func (s *server) removeStack(w http.ResponseWriter, r *http.Request) {
	out := newSteps(w)
	ctx, cancel := context.WithTimeout(r.Context(), deployLimit)
	defer cancel()
	out.end(0, s.remove(ctx, r.PathValue("name"), out.say))
}

func (s *server) remove(ctx context.Context, name string, say func(Step)) error {
	done, err := s.turns.take(ctx, name)
	if err != nil {
		return fmt.Errorf("wait for a deploy of stack %s: %w", name, err)
	}
	defer done()
	snap, err := s.b.State(ctx)
	if err != nil {
		return err
	}
	if snap.Cluster() == nil {
		return errNoSwarm
	}
	var errs []error
	found := 0
	drop := func(kind, id, called string) {
		found++
		err := s.docker(ctx, http.MethodDelete, "/"+kind+"s/"+id, nil, nil, nil)
		if err != nil && model.KindOf(err) != model.NotFound {
			errs = append(errs, fmt.Errorf("remove %s %s: %w", kind, called, err))
			return
		}
		say(Step{Action: "removed", Kind: kind, Name: called})
	}
	namer := snap.Cluster().Namer()
	for svc := range snap.Services() {
		if svc.Spec().Labels[stackLabel] == name {
			drop("service", namer.ServiceID(svc.ID), svc.Name())
		}
	}
	for _, kind := range []model.Kind{model.KindSecret, model.KindConfig} {
		for p := range snap.Payloads(kind) {
			if p.Spec.Typed.Labels[stackLabel] == name {
				drop(kind.String(), namer.ID(p.Key()), p.Name())
			}
		}
	}
	for n := range snap.Networks() {
		if n.Labels[stackLabel] == name {
			drop("network", namer.ID(model.NetworkKey(n.ID)), n.Name)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if snap.Stack(name) == nil {
		if found == 0 {
			return model.NotFoundf("nothing found in stack: %s", name)
		}
		return nil
	}
	// It went with the last of its parts, unless it never had one.
	err = s.propose(ctx, "remove stack "+name, model.Time(time.Now().UnixNano()), model.Txn{Changes: []model.Change{{DeleteStack: name}}})
	if model.KindOf(err) == model.NotFound {
		return nil
	}
	return err
}

// labelled reports whether a service is of a stack.
func labelled(svc *swarm.ServiceSpec, stack string) bool { return svc.Labels[stackLabel] == stack }
