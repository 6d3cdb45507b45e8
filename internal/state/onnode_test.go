package state

import (
	"maps"
	"slices"
	"testing"

	"github.com/skep-swarm/skep/internal/model"
	"pgregory.net/rapid"
)

// TestNodeTasksNeverChange makes versions of a list from versions of any age, so that many want the same room behind
// the end, and looks after every step whether all of them are still what they were when they were made.
func TestNodeTasksNeverChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			list nodeTasks
			want map[model.TaskID]listed
		}
		versions := []version{{want: map[model.TaskID]listed{}}}
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			// The newest one most of the time: lists become long enough to have room.
			from := versions[max(rapid.IntRange(-len(versions), len(versions)-1).Draw(t, "from"), 0)]
			if rapid.Bool().Draw(t, "newest") {
				from = versions[len(versions)-1]
			}
			next := version{want: maps.Clone(from.want)}
			id := model.TaskID{Service: model.ServiceID(rapid.IntRange(1, 3).Draw(t, "service")), Num: uint64(rapid.IntRange(1, 40).Draw(t, "num"))}
			if rapid.IntRange(0, 3).Draw(t, "what") == 0 {
				next.list = from.list.without(id)
				delete(next.want, id)
			} else {
				l := listed{task: id, placeVer: uint64(step)}
				next.list, next.want[id] = from.list.with(l), l
			}
			versions = append(versions, next)
			for i, v := range versions {
				want := slices.SortedFunc(maps.Values(v.want), func(a, b listed) int {
					if a.task.Less(b.task) {
						return -1
					}
					return 1
				})
				if !slices.Equal(v.list.list, want) {
					t.Fatalf("step %d: version %d is %v, was %v", step, i, v.list.list, want)
				}
			}
		}
	})
}
