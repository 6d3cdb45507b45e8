package agent

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// Whatever the interleaving of assignments, desired states, deaths, lost sessions and restarts of the daemon: no reported state goes
// back (the scripted manager judges that), every task ends when it is to end, and nothing is left when all are removed.
func TestChaos(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { chaos(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func chaos(t *testing.T, rnd *rand.Rand) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	m.template(2, simpleSpec(), swarm.PortConfig{TargetPort: 80, PublishMode: swarm.PortConfigPublishModeHost})
	_, stop := h.start(t)
	desired := map[uint64]model.TaskState{}
	removed := map[uint64]bool{}
	num := uint64(0)
	pick := func() uint64 { return 1 + rnd.Uint64N(num) }
	for range 120 {
		switch op := rnd.IntN(10); {
		case op < 3 || num == 0:
			num++
			desired[num] = []model.TaskState{model.StateReady, model.StateRunning}[rnd.IntN(2)]
			m.assign(num, 1+num%2, desired[num])
		case op < 6:
			if n := pick(); !removed[n] {
				desired[n] = max(desired[n], []model.TaskState{model.StateRunning, model.StateShutdown, model.StateRemove}[rnd.IntN(3)])
				m.assign(n, 1+n%2, desired[n])
			}
		case op == 6:
			h.node.End(ContainerID(externalID(pick())), runtime.Exit{Code: rnd.IntN(3)})
		case op == 7:
			if n := pick(); !removed[n] {
				removed[n] = true
				m.remove(model.TaskID{Service: 1, Num: n})
			}
		case op == 8:
			m.disconnect()
		default:
			m.disconnect()
			stop()
			_, stop = h.start(t)
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(2 * time.Millisecond)))) // lets any moment of a step be the one that is met
	}
	defer func() { stop() }()
	eventually(t, "connected", m.connected)
	for n := uint64(1); n <= num; n++ {
		if !removed[n] {
			m.assign(n, 1+n%2, model.StateShutdown)
		}
	}
	for n := uint64(1); n <= num; n++ {
		if id := (model.TaskID{Service: 1, Num: n}); !removed[n] {
			eventually(t, fmt.Sprintf("task %d ends", n), func() bool { return m.state(id).State.Terminal() })
		}
	}
	eventually(t, "nothing runs", func() bool {
		for _, c := range h.node.Containers() {
			if c.State == runtime.Running {
				return false
			}
		}
		return h.net.numTasks() == 0 && h.keeper.numLogs() == 0 && h.keeper.numHeld() == 0
	})
	for n := uint64(1); n <= num; n++ {
		m.remove(model.TaskID{Service: 1, Num: n})
	}
	eventually(t, "nothing is left", func() bool { return len(h.node.Containers()) == 0 })
}
