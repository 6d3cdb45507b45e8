package runtime

import (
	"syscall"
	"time"
)

// Action is what happened to a container, in Docker's words.
type Action string

// The actions of containers, in the order in which they may come; a kill may come more than once.
const (
	ActionCreate  Action = "create"
	ActionStart   Action = "start"
	ActionKill    Action = "kill" // a signal was sent, of whatever kind
	ActionOOM     Action = "oom"
	ActionDie     Action = "die"
	ActionStop    Action = "stop" // it ended because Stop was asked for
	ActionDestroy Action = "destroy"
)

// Event is one thing that happened to a container of the node. An implementation that can tell events calls a function with
// each as it happens; that function returns at once.
type Event struct {
	Action    Action
	Container Container // as it was then
	Signal    syscall.Signal
	At        time.Time
}
