package main

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Names of the keys in Redis.
const (
	visitsKey   = "demo:visits"   // a number
	replicasKey = "demo:replicas" // task → number
)

// countWithin is how long a visitor waits for Redis, in which it may restart.
const countWithin = 5 * time.Second

// identity is who answers.
type identity struct{ Task, Host, Node, Version string }

// A site answers visitors.
type site struct {
	log   *slog.Logger
	redis *redisClient
	who   identity

	met, draining atomic.Bool
	served        atomic.Int64
	lastConn      atomic.Int64 // when the last connection came, in nanoseconds since 1970; 0 for none
}

// visit is what a visitor gets to know.
type visit struct {
	identity
	Number   int64
	Client   string
	Replicas []share
}

// share is how many visits one replica has answered.
type share struct {
	Task    string
	Visits  int64
	Percent int64 // of those of the busiest
	Me      bool
}

func (s *site) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /health", s.health)
	return mux
}

// noteConn remembers when connections come, for drain.
func (s *site) noteConn(_ net.Conn, state http.ConnState) {
	if state == http.StateNew {
		s.lastConn.Store(time.Now().UnixNano())
	}
}

// meetRedis waits until Redis answers for the first time. A program without it is not well; once it has been there
// its absence is Redis's illness, and to replace this program would not help.
func (s *site) meetRedis(ctx context.Context) {
	for {
		try, cancel := context.WithTimeout(ctx, countWithin)
		_, err := s.redis.do(try, []string{"PING"})
		cancel()
		if err == nil {
			s.met.Store(true)
			s.log.Info("met Redis", "address", s.redis.addr)
			return
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("Redis does not answer yet", "address", s.redis.addr, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (s *site) health(w http.ResponseWriter, _ *http.Request) {
	switch {
	case s.draining.Load():
		http.Error(w, "ending", http.StatusServiceUnavailable)
	case !s.met.Load():
		http.Error(w, "Redis has not answered yet", http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "well")
	}
}

func (s *site) home(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	v, err := s.count(r)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept")
	if err != nil {
		s.log.Warn("a visit was not counted", "client", v.Client, "error", err)
		w.Header().Set("Retry-After", "2")
		http.Error(w, fmt.Sprintf("%s is here, but cannot count: Redis does not answer", s.who.Task), http.StatusServiceUnavailable)
		return
	}
	s.served.Add(1)
	s.log.Info("visit", "number", v.Number, "client", v.Client, "took", time.Since(begin).Round(time.Microsecond))
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "visit %d, answered by %s (container %s, version %s) on node %s, to %s\n", v.Number, v.Task, v.Host, v.Version, v.Node, v.Client)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := page.Execute(w, v); err != nil {
		s.log.Warn("the page was not sent", "client", v.Client, "error", err)
	}
}

// count makes the visit known to Redis and asks it for everybody's.
func (s *site) count(r *http.Request) (visit, error) {
	v := visit{identity: s.who, Client: client(r)}
	ctx, cancel := context.WithTimeout(r.Context(), countWithin)
	defer cancel()
	answers, err := s.redis.do(ctx, []string{"INCR", visitsKey}, []string{"HINCRBY", replicasKey, s.who.Task, "1"}, []string{"HGETALL", replicasKey})
	if err != nil {
		return v, err
	}
	number, ok := answers[0].(int64)
	pairs, ok2 := answers[2].([]any)
	if !ok || !ok2 {
		return v, fmt.Errorf("redis answered a count with %v", answers)
	}
	v.Number, v.Replicas = number, shares(pairs, s.who.Task)
	return v, nil
}

// shares sorts what HGETALL answered by task; me is the task that asks.
func shares(pairs []any, me string) []share {
	var all []share
	most := int64(1)
	for pair := range slices.Chunk(pairs, 2) {
		if len(pair) < 2 {
			break
		}
		name, _ := pair[0].(string)
		text, _ := pair[1].(string)
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			continue // somebody else's
		}
		most = max(most, n)
		all = append(all, share{Task: name, Visits: n, Me: name == me})
	}
	for i := range all {
		all[i].Percent = all[i].Visits * 100 / most
	}
	slices.SortFunc(all, func(a, b share) int { return cmp.Compare(a.Task, b.Task) })
	return all
}

// client is the visitor's address: what the proxy in front says, else the connection's.
func client(r *http.Request) string {
	if said, _, _ := strings.Cut(r.Header.Get("X-Forwarded-For"), ","); net.ParseIP(strings.TrimSpace(said)) != nil {
		return strings.TrimSpace(said)
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))
