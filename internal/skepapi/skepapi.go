// Package skepapi is skep's own HTTP API, under /skep/v1: what Docker's API has no word for.
//
// It stands beside dockerapi, on the same listeners, and must not know how anything is done:
// whoever does it is handed in.
package skepapi

import (
	"context"
	"encoding/json"
	"net/http"
)

// Node is what the API can ask of the daemon.
type Node interface {
	// Down stops this node's tasks, leaves its swarm and ends the daemon, telling each step.
	Down(ctx context.Context, step func(string)) error
}

// New makes the handler.
func New(n Node) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /skep/v1/down", func(w http.ResponseWriter, r *http.Request) { down(w, r, n) })
	mux.HandleFunc("/skep/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"message":"page not found"}` + "\n"))
	})
	return mux
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
func down(w http.ResponseWriter, r *http.Request, n Node) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	say := func(m message) {
		if enc.Encode(m) == nil {
			_ = http.NewResponseController(w).Flush()
		}
	}
	// Half down is worse than down: it goes on when the client does not wait.
	err := n.Down(context.WithoutCancel(r.Context()), func(step string) { say(message{Stream: step + "\n"}) })
	if err != nil {
		say(message{Error: &streamError{err.Error()}})
		return
	}
	say(message{Stream: "done\n"})
}
