// Package skepapi is skep's own HTTP API, under /skep/v1: what Docker's API has no word for.
//
// It stands beside dockerapi, on the same listeners, reads the same state and writes through the
// same log. It must not know how anything is carried out.
package skepapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Log is where writes go and what is read back: the swarm's, or one that only rehearses.
type Log interface {
	// State is a snapshot that holds every write acknowledged before the call.
	State(ctx context.Context) (*state.Snapshot, error)
	// Propose puts a batch into the log and returns what became of it.
	Propose(ctx context.Context, b *model.Batch) (*model.Outcome, error)
}

// Backend is what the API needs of the daemon.
type Backend interface {
	Log
	// Down stops this node's tasks, leaves its swarm and ends the daemon, telling each step.
	Down(ctx context.Context, step func(string)) error
}

// requestTimeout bounds a request that is not a stream.
const requestTimeout = time.Minute

type server struct {
	b      Backend
	engine http.Handler // Docker's API of this daemon
	stage  func(Log) http.Handler
	turns  turns
}

// New makes the handler. engine is Docker's API of this daemon, without a version in its paths; stage makes another one that reads and
// writes the given log instead of the swarm's, for rehearsals.
func New(b Backend, engine http.Handler, stage func(Log) http.Handler) http.Handler {
	s := &server{b: b, engine: engine, stage: stage}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /skep/v1/down", s.down)
	mux.HandleFunc("GET /skep/v1/services/{id}/history", s.answer(s.history))
	mux.HandleFunc("GET /skep/v1/services/{id}/why", s.answer(s.why))
	mux.HandleFunc("POST /skep/v1/services/{id}/rollback", s.answer(s.rollback))
	mux.HandleFunc("POST /skep/v1/services/{id}/update/{action}", s.answer(s.update))
	mux.HandleFunc("POST /skep/v1/swarm/accept-loss", s.answer(s.acceptLoss))
	s.stackRoutes(mux)
	mux.HandleFunc("/skep/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, model.NotFoundf("page not found: %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// answer turns a function into a handler: its value as JSON, or its error with the status of its kind.
func (s *server) answer(f func(context.Context, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		v, err := f(ctx, r)
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
	}
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch model.KindOf(err) {
	case model.Invalid, model.FailedPrecondition:
		code = http.StatusBadRequest
	case model.NotFound:
		code = http.StatusNotFound
	case model.Conflict, model.Stale:
		code = http.StatusConflict
	case model.Forbidden:
		code = http.StatusForbidden
	case model.Unavailable:
		code = http.StatusServiceUnavailable
	case model.Unimplemented:
		code = http.StatusNotImplemented
	case model.Exhausted:
		code = http.StatusInsufficientStorage
	}
	body := map[string]string{"message": plain(err.Error())}
	if kind, name := partAt(err); kind != "" {
		body["kind"], body["name"] = kind, name
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// service finds the service that the path names.
func (s *server) service(ctx context.Context, r *http.Request) (*state.Snapshot, *model.Service, error) {
	snap, err := s.b.State(ctx)
	if err != nil {
		return nil, nil, err
	}
	svc, err := snap.FindService(r.PathValue("id"))
	return snap, svc, err
}

// message is one line of a stream, as Docker's clients know it.
type message struct {
	Stream string       `json:"stream,omitempty"`
	Error  *streamError `json:"errorDetail,omitempty"`
}

type streamError struct {
	Message string `json:"message"`
}

// down streams the steps; the stream ends with the daemon.
func (s *server) down(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	say := func(m message) {
		if enc.Encode(m) == nil {
			_ = http.NewResponseController(w).Flush()
		}
	}
	// Half down is worse than down: it goes on when the client does not wait.
	err := s.b.Down(context.WithoutCancel(r.Context()), func(step string) { say(message{Stream: step + "\n"}) })
	if err != nil {
		say(message{Error: &streamError{plain(err.Error())}})
		return
	}
	say(message{Stream: "done\n"})
}

// stamp is a cluster time as text, empty for none.
func stamp(t model.Time) string {
	if t == 0 {
		return ""
	}
	return time.Unix(0, int64(t)).UTC().Format(time.RFC3339Nano)
}
