package sim

import (
	"container/heap"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/skep-swarm/skep/internal/model"
)

const (
	ms     = int64(time.Millisecond)
	second = int64(time.Second)
	minute = int64(time.Minute)
)

// epoch is the swarm's clock when a simulation begins.
const epoch = model.Time(1_700_000_000 * second)

// Senders of events, in the order in which events of one moment happen.
const (
	senderLog     = 0
	senderMember  = 1 // and the member's number
	senderUser    = 50
	senderNemesis = 51
	senderNode    = 100 // and the node's number
)

// Options are what a simulation is made from.
type Options struct {
	Seed uint64
	// Mutation breaks a law on purpose; see mutations.
	Mutation Mutation
	// Trace gets every event as a line when it is not nil.
	Trace io.Writer
	// script replaces users and nemesis by a story of its own.
	script func(*world)
	// config replaces what the seed would draw.
	config *config
}

// Result is how a simulation went.
type Result struct {
	Seed uint64
	// Hash is that of the trace: the same for the same seed.
	Hash    uint64
	Steps   int
	Virtual time.Duration
	Batches int
	// Failure is nil when no law was broken.
	Failure *Failure
	world   *world
}

// world is everything there is.
type world struct {
	opt  Options
	cfg  config
	rng  *rand.Rand
	now  int64 // ns since the beginning
	heap eventHeap
	seqs [256]uint64

	log     *simLog
	members []*member
	nodes   []*node
	users   *users
	faults  *nemesis
	judge   *judge
	net     network
	zombie  *member // of a former life, that still serves nodes; usually nil
	lives   uint64  // of the swarm: the highest incarnation so far
	quiet   *slog.Logger

	trace   trace
	healing bool // no new faults
	over    bool
	steps   int
	turn    int
	failure *Failure
	mut     *mutator
}

// event is something that happens at a moment.
type event struct {
	at     int64
	sender int
	seq    uint64
	do     func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	a, b := &h[i], &h[j]
	if a.at != b.at {
		return a.at < b.at
	}
	if a.sender != b.sender {
		return a.sender < b.sender
	}
	return a.seq < b.seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return e
}

// after lets something happen in a while.
func (w *world) after(sender int, delay int64, do func()) {
	w.seqs[sender]++
	heap.Push(&w.heap, event{w.now + max(delay, 0), sender, w.seqs[sender], do})
}

// Run simulates one seed to its end or to the first broken law.
func Run(o Options) Result {
	w := newWorld(o)
	w.setUp()
	if o.script != nil {
		o.script(w)
	} else {
		w.users.begin()
		w.faults.begin()
	}
	w.loop()
	return Result{Seed: o.Seed, Hash: w.trace.hash, Steps: w.steps, Virtual: time.Duration(w.now), Batches: len(w.log.entries), Failure: w.failure, world: w}
}

func newWorld(o Options) *world {
	w := &world{opt: o, rng: rand.New(rand.NewPCG(o.Seed, 0x5ce9)), quiet: slog.New(slog.DiscardHandler)}
	w.cfg = newConfig(w.rng)
	if o.config != nil {
		w.cfg = *o.config
	}
	w.trace.out = o.Trace
	w.log = newLog(w)
	w.judge = newJudge(w)
	w.users = &users{w: w}
	w.faults = &nemesis{w: w}
	w.mut = &mutator{w: w, kind: o.Mutation}
	return w
}

// maxSteps bounds a simulation, so that two who answer each other for ever are found.
const maxSteps = 400_000

func (w *world) loop() {
	for len(w.heap) > 0 && !w.over && w.failure == nil {
		e := heap.Pop(&w.heap).(event)
		w.now = e.at
		e.do()
		w.steps++
		if w.steps > maxSteps {
			w.fail("no end: %d events, and the swarm does not come to rest", w.steps)
		}
	}
}

// between is a random duration.
func (w *world) between(from, to int64) int64 {
	if to <= from {
		return from
	}
	if w.cfg.even {
		return from + (to-from)/8
	}
	return from + w.rng.Int64N(to-from)
}

// pick is one of n.
func (w *world) pick(n int) int {
	if w.cfg.even {
		w.turn++
		return w.turn % n
	}
	return w.rng.IntN(n)
}

// chance is true once in a while.
func (w *world) chance(p float64) bool { return p > 0 && !w.cfg.even && w.rng.Float64() < p }

// fault is a chance that is gone once everything heals.
func (w *world) fault(p float64) bool { return !w.healing && w.chance(p) }

// config is one seed's mixture of troubles: not every history has all of them, because some
// hide others.
type config struct {
	members, nodes int
	chaos          int64 // how long users and nemesis are at work
	users          int64 // mean time between writes
	faults         int64 // mean time between faults, 0 for none

	lost, unknown, late, slow float64 // fates of batches
	lag                       float64 // chance that a member applies an entry late
	stale                     float64 // chance that the planner has not heard of the newest steps
	skew                      int64
	steps                     bool // clocks step
	smallBlocks               bool // nodes own few addresses
	blockBits                 int  // how few
	trouble                   float64
	slowStop                  float64
	disasters                 bool // the swarm is taken up again from an older state
	outages                   bool // many hosts lose power at once
	even                      bool // nothing is left to chance: for comparing two histories
}

func newConfig(r *rand.Rand) config {
	c := config{members: 1 + 2*r.IntN(2), nodes: 2 + r.IntN(4), chaos: (30 + r.Int64N(90)) * second}
	pick := func(p float64) float64 {
		if r.IntN(2) == 0 {
			return 0
		}
		return r.Float64() * p
	}
	c.users = (500 + r.Int64N(6000)) * ms
	if r.IntN(6) > 0 {
		c.faults = (1000 + r.Int64N(12000)) * ms
	}
	c.lost, c.unknown, c.late, c.slow = pick(.1), pick(.1), pick(.15), pick(.2)
	c.lag, c.stale = pick(.3), pick(.3)
	if r.IntN(2) == 0 {
		c.skew = r.Int64N(3 * second)
	}
	c.steps = r.IntN(3) == 0
	c.smallBlocks = r.IntN(2) == 0
	c.trouble, c.slowStop = pick(.4), pick(.3)
	c.disasters, c.outages = r.IntN(4) == 0, r.IntN(3) == 0
	c.blockBits = 28 + r.IntN(2)
	return c
}
