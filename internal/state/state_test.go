package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"pgregory.net/rapid"
)

// log applies batches as a log does, with indexes that go up.
type log struct {
	t    testing.TB
	s    *Snapshot
	at   uint64
	last *model.Outcome
}

func newLog(t testing.TB) *log {
	l := &log{t: t, s: New()}
	l.must(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{1}}})
	l.must(model.Change{PutNode: &model.Node{ID: 1, Blocks: []netip.Prefix{netip.MustParsePrefix("10.255.1.0/24")}, Description: swarm.NodeDescription{Hostname: "one", Resources: swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 1 << 30}}}})
	return l
}

func (l *log) apply(txns ...model.Txn) []error {
	l.at++
	l.s, l.last = l.s.Apply(l.at, &model.Batch{Actor: "test", Time: model.Time(l.at), Txns: txns})
	return l.last.Results
}

func (l *log) must(changes ...model.Change) {
	l.t.Helper()
	if err := l.apply(model.Txn{Changes: changes})[0]; err != nil {
		l.t.Fatal(err)
	}
}

func serviceSpec(t testing.TB, raw string) model.ServiceSpec {
	s, err := model.ParseSpec[swarm.ServiceSpec]([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (l *log) service(id model.ServiceID, name, task string, ports ...swarm.PortConfig) model.Change {
	spec := serviceSpec(l.t, fmt.Sprintf(`{"Name":%q,"TaskTemplate":%s}`, name, task))
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil {
		l.t.Fatal(err)
	}
	tpl.ID = l.s.LastTemplate() + 1
	return model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, Ports: ports}}
}

func TestServiceLife(t *testing.T) {
	l := newLog(t)
	l.must(l.service(1, "web", `{}`))
	if err := l.apply(model.Txn{Changes: []model.Change{l.service(2, "web", `{}`)}})[0]; model.KindOf(err) != model.Conflict {
		t.Errorf("second service of the name: %v", err)
	}
	v := l.s.ServiceByName("web")
	stale := model.Guard{Key: model.ServiceKey(1), Group: model.GroupSpec, Version: v.SpecVersion}
	l.must(l.service(1, "web", `{"ForceUpdate":1}`))
	if err := l.apply(model.Txn{Guards: []model.Guard{stale}, Changes: []model.Change{l.service(1, "web", `{"ForceUpdate":2}`)}})[0]; model.KindOf(err) != model.Stale {
		t.Errorf("stale update: %v", err)
	}
	v = l.s.Service(1)
	if len(v.Revisions) != 2 || v.Current().Num != 2 || v.Previous().Num != 1 || v.SpecVersion != l.at-1 {
		t.Errorf("after an update: %d revisions, version %d", len(v.Revisions), v.SpecVersion)
	}
	for i := range 40 {
		l.must(l.service(1, "web", fmt.Sprintf(`{"ForceUpdate":%d}`, i+10)))
	}
	if v = l.s.Service(1); len(v.Revisions) != maxRevisions || v.Current().Num != 42 {
		t.Errorf("history: %d revisions up to %d", len(v.Revisions), v.Current().Num)
	}
	if n := l.s.temps.Len(); n != maxRevisions {
		t.Errorf("%d templates stored, want those of the %d revisions", n, maxRevisions)
	}
	l.must(model.Change{DeleteService: 1})
	if l.s.ServiceByName("web") != nil || l.s.temps.Len() != 0 {
		t.Error("a deleted service left its name or templates")
	}
	l.must(l.service(3, "web", `{}`))
}

func TestTransactionIsAllOrNothing(t *testing.T) {
	l := newLog(t)
	l.must(l.service(1, "web", `{}`))
	errs := l.apply(
		model.Txn{Changes: []model.Change{
			{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: 1}, Template: 1}},
			{DeleteTask: &model.TaskID{Service: 1, Num: 99}},
		}},
		model.Txn{Changes: []model.Change{{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: 2}, Template: 1}}}},
	)
	if errs[0] == nil || errs[1] != nil {
		t.Fatalf("results = %v", errs)
	}
	if l.s.NumTasks() != 1 || l.s.Task(model.TaskID{Service: 1, Num: 2}) == nil {
		t.Errorf("%d tasks; the refused transaction left something", l.s.NumTasks())
	}
	for _, k := range l.last.Touched {
		if k == model.TaskKey(model.TaskID{Service: 1, Num: 1}) {
			t.Error("a refused transaction is in Touched")
		}
	}
}

func TestRetryIsAppliedOnce(t *testing.T) {
	l := newLog(t)
	b := &model.Batch{ID: [16]byte{9}, Txns: []model.Txn{{Changes: []model.Change{l.service(1, "web", `{}`)}}, {Changes: []model.Change{{DeleteService: 7}}}}}
	s1, o1 := l.s.Apply(10, b)
	s2, o2 := s1.Apply(11, b)
	if !o2.Repeated || o2.Index != 10 || len(o2.Results) != 2 || o2.Results[0] != nil || fmt.Sprint(o2.Results[1]) != fmt.Sprint(o1.Results[1]) {
		t.Errorf("retry: %+v", o2)
	}
	if s2.NumServices() != 1 || s2.Index() != 11 {
		t.Errorf("retry changed the state: %d services at %d", s2.NumServices(), s2.Index())
	}
}

func TestPortsAndAddressesAreGivenOnce(t *testing.T) {
	l := newLog(t)
	p := swarm.PortConfig{TargetPort: 80, PublishedPort: 8080}
	l.must(l.service(1, "web", `{"Resources":{"Reservations":{"MemoryBytes":600000000}}}`, p))
	err := l.apply(model.Txn{Changes: []model.Change{l.service(2, "api", `{}`, p)}})[0]
	want := fmt.Sprintf("port '8080' is already in use by service 'web' (%s) as an ingress port", l.s.Cluster().Namer().ServiceID(1))
	if err == nil || err.Error() != want {
		t.Errorf("second owner of a port: %v, want %s", err, want)
	}
	addr := netip.MustParseAddr("10.255.1.2")
	place := func(num uint64, a netip.Addr) error {
		l.must(model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: num}, Template: 1}})
		return l.apply(model.Txn{Changes: []model.Change{{SetTaskPlace: &model.TaskPlaceSet{Task: model.TaskID{Service: 1, Num: num}, Node: 1, Gateway4: a}}}})[0]
	}
	if err := place(1, addr); err != nil {
		t.Fatal(err)
	}
	if err := place(2, addr.Next()); model.KindOf(err) != model.Stale {
		t.Errorf("memory given twice: %v", err)
	}
	l.must(model.Change{Report: &model.Report{Node: 1, Session: 1, Seq: 1, Tasks: []model.TaskReport{{Task: model.TaskID{Service: 1, Num: 1}, State: model.StateFailed}}}})
	if l.s.AddrInUse(addr) || l.s.Load(1).Tasks != 0 || l.s.Load(1).MemoryBytes != 0 {
		t.Error("a failed task keeps its address or memory")
	}
	if err := place(3, addr); err != nil {
		t.Errorf("after the first failed: %v", err)
	}
}

// TestNewIncarnationGivesNoNumberAgain: what a former life called by a number may still be on a node.
func TestNewIncarnationGivesNoNumberAgain(t *testing.T) {
	l := newLog(t)
	l.must(l.service(1, "web", `{}`))
	l.must(model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: 7}, Template: 1}})
	c := *l.s.Cluster()
	l.must(model.Change{PutCluster: &c})
	if l.s.Service(1).LastTask != 7 || l.s.LastService() != 1 || l.s.LastNode() != 1 {
		t.Error("numbers were left out without a new incarnation")
	}
	c.Incarnation++
	l.must(model.Change{PutCluster: &c})
	if err := l.apply(model.Txn{Changes: []model.Change{{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: 8}, Template: 1}}}})[0]; model.KindOf(err) != model.Conflict {
		t.Errorf("a task's number that may be taken: %v", err)
	}
	if l.s.Service(1).LastTask <= 1000 || l.s.LastService() <= 1000 || l.s.LastNode() <= 1000 || l.s.LastTemplate() <= 1000 || l.s.LastNetwork() <= 1000 ||
		l.s.LastPayload(model.KindSecret) <= 1000 || l.s.LastPayload(model.KindConfig) <= 1000 {
		t.Error("numbers that a former life may have given are given again")
	}
	first := l.s.LastNode()
	c.Incarnation += maxLives + 1
	if err := l.apply(model.Txn{Changes: []model.Change{{PutCluster: &c}}})[0]; model.KindOf(err) != model.Invalid {
		t.Errorf("an incarnation that is too far away: %v", err)
	}
	// The same state was taken up twice: what the life in between gave is not given again either.
	c.Incarnation -= maxLives - 1
	l.must(model.Change{PutCluster: &c})
	if l.s.LastNode() != first+2*skipNodes || l.s.Service(1).LastTask != 7+3*skipTasks {
		t.Errorf("two lives later the last node is %d, the last task %d", l.s.LastNode(), l.s.Service(1).LastTask)
	}
	c.Incarnation--
	if err := l.apply(model.Txn{Changes: []model.Change{{PutCluster: &c}}})[0]; model.KindOf(err) != model.Stale {
		t.Errorf("an incarnation that is over: %v", err)
	}
	again, err := Decode(bytes.NewReader(encoded(t, l.s)))
	if err != nil || again.LastNode() != l.s.LastNode() || again.Service(1).LastTask != l.s.Service(1).LastTask {
		t.Errorf("after a restart: %v", err)
	}
}

// TestAddressesAreOfTheNodesOwnBlocks: a block belongs to one node, however it gets it, and a node gives only
// addresses of its blocks, one task at a time or many.
func TestAddressesAreOfTheNodesOwnBlocks(t *testing.T) {
	l := newLog(t)
	l.must(l.service(1, "web", `{}`))
	block := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	refused := func(kind model.ErrKind, c model.Change) {
		t.Helper()
		if err := l.apply(model.Txn{Changes: []model.Change{c}})[0]; model.KindOf(err) != kind {
			t.Errorf("want %v: %v", kind, err)
		}
	}
	refused(model.Conflict, model.Change{PutNode: &model.Node{ID: 2, Blocks: block("10.255.0.0/16")}})
	refused(model.Conflict, model.Change{PutNode: &model.Node{ID: 2, Blocks: block("10.255.1.128/28")}})
	l.must(model.Change{PutNode: &model.Node{ID: 2, Blocks: block("10.255.2.0/24")}})
	refused(model.Conflict, model.Change{SetNodeBlocks: &model.NodeBlocksSet{Node: 2, Blocks: block("10.255.1.0/24")}})

	foreign := netip.MustParseAddr("10.255.2.2")
	id := model.TaskID{Service: 1, Num: 1}
	refused(model.Stale, model.Change{PutTask: &model.Task{ID: id, Template: 1, Node: 1, State: model.StateAssigned, Gateway4: foreign}})
	refused(model.Stale, model.Change{PutTasks: &model.TasksPut{Service: 1, Template: 1, First: 1, Texts: []string{""},
		Tasks: []model.TaskNew{{Node: 1, State: model.StateAssigned, Gateway4: foreign}}}})
	l.must(model.Change{PutTask: &model.Task{ID: id, Template: 1}})
	refused(model.Stale, model.Change{SetTaskPlace: &model.TaskPlaceSet{Task: id, Node: 1, Gateway4: foreign}})
	l.must(model.Change{SetTaskPlace: &model.TaskPlaceSet{Task: id, Node: 2, Gateway4: foreign}})
}

func TestReportsOnlyMoveForward(t *testing.T) {
	l := newLog(t)
	id := model.TaskID{Service: 1, Num: 1}
	l.must(l.service(1, "web", `{}`))
	l.must(model.Change{PutTask: &model.Task{ID: id, Template: 1, Node: 1, State: model.StateAssigned}})
	report := func(session, seq uint64, st model.TaskState) error {
		return l.apply(model.Txn{Changes: []model.Change{{Report: &model.Report{Node: 1, Session: session, Seq: seq, Tasks: []model.TaskReport{{Task: id, State: st}}}}}})[0]
	}
	if err := report(1, 2, model.StateRunning); err != nil {
		t.Fatal(err)
	}
	for _, late := range [][2]uint64{{1, 1}, {1, 2}, {0, 9}} {
		if err := report(late[0], late[1], model.StateFailed); model.KindOf(err) != model.Stale {
			t.Errorf("report %v: %v, want superseded", late, err)
		}
	}
	if err := report(1, 3, model.StateStarting); err != nil || l.s.Task(id).State != model.StateRunning {
		t.Errorf("a report took the task back to %s (%v)", l.s.Task(id).State, err)
	}
	if err := report(2, 1, model.StateComplete); err != nil || l.s.Task(id).State != model.StateComplete {
		t.Errorf("a new session's report was lost: %s, %v", l.s.Task(id).State, err)
	}
}

// TestReplicasAgree applies random batches and compares the state with one that was restored from
// a snapshot half-way, byte for byte.
func TestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		var other *Snapshot
		n := rapid.IntRange(1, 60).Draw(t, "batches")
		half := rapid.IntRange(0, n).Draw(t, "half")
		for i := range n {
			b := randomBatch(t, s, i)
			data, err := EncodeBatch(b)
			if err != nil {
				t.Fatal(err)
			}
			b, err = DecodeBatch(data)
			if err != nil {
				t.Fatal(err)
			}
			s, _ = s.Apply(uint64(i+1), b)
			if other != nil {
				other, _ = other.Apply(uint64(i+1), b)
			}
			if i == half {
				other = reload(t, s)
			}
		}
		if other == nil {
			other = reload(t, s)
		}
		if !bytes.Equal(encoded(t, s), encoded(t, other)) {
			t.Fatal("two replicas differ")
		}
		checkIndexes(t, s)
		checkIndexes(t, other)
	})
}

func encoded(t interface{ Fatal(...any) }, s *Snapshot) []byte {
	var buf bytes.Buffer
	if err := s.Encode(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func reload(t *rapid.T, s *Snapshot) *Snapshot {
	out, err := Decode(bytes.NewReader(encoded(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func randomBatch(t *rapid.T, s *Snapshot, i int) *model.Batch {
	b := &model.Batch{Time: model.Time(rapid.Int64Range(0, 1000).Draw(t, "time"))}
	b.ID[0] = byte(rapid.IntRange(0, 255).Draw(t, "id"))
	if i == 0 {
		b.Txns = []model.Txn{{Changes: []model.Change{{PutCluster: &model.Cluster{IDKey: [16]byte{1}}},
			{PutNode: &model.Node{ID: 1, Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Description: swarm.NodeDescription{Resources: swarm.Resources{NanoCPUs: 1e9, MemoryBytes: 1 << 20}}}}}}}
		return b
	}
	svc := model.ServiceID(rapid.Uint64Range(1, 5).Draw(t, "service"))
	task := model.TaskID{Service: svc, Num: rapid.Uint64Range(1, 6).Draw(t, "task")}
	states := []model.TaskState{model.StatePending, model.StateAccepted, model.StateRunning, model.StateFailed, model.StateShutdown}
	st := rapid.SampledFrom(states).Draw(t, "state")
	for range rapid.IntRange(1, 4).Draw(t, "txns") {
		var c model.Change
		switch rapid.IntRange(0, 7).Draw(t, "kind") {
		case 0:
			spec, _ := model.ParseSpec[swarm.ServiceSpec](fmt.Appendf(nil, `{"Name":"s%d","TaskTemplate":{"ForceUpdate":%d,"Resources":{"Reservations":{"MemoryBytes":300000}}}}`, svc, i))
			tpl, _ := model.NewTemplate(svc, spec, "")
			tpl.ID = s.LastTemplate() + 1
			c.NewRevision = &model.NewRevision{Service: svc, Spec: spec, Template: tpl, Ports: []swarm.PortConfig{{PublishedPort: uint32(rapid.IntRange(1, 4).Draw(t, "port"))}}}
		case 1:
			c.DeleteService = svc
		case 2, 3:
			c.PutTask = &model.Task{ID: task, Template: s.LastTemplate()}
		case 4:
			c.SetTaskPlace = &model.TaskPlaceSet{Task: task, Node: 1, Gateway4: netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 4).Draw(t, "addr"))})}
		case 5:
			c.DeleteTask = &task
		case 6:
			c.Report = &model.Report{Node: 1, Session: 1, Seq: uint64(i), Tasks: []model.TaskReport{{Task: task, State: st}}}
		case 7:
			c.SetTaskDesired = &model.TaskDesiredSet{Task: task, Desired: st}
		}
		b.Txns = append(b.Txns, model.Txn{Changes: []model.Change{c}})
	}
	return b
}

// checkIndexes compares what the indexes say with what the objects say.
func checkIndexes(t *rapid.T, s *Snapshot) {
	loads := map[model.NodeID]Load{}
	addrs := 0
	for task := range s.AllTasks() {
		if !placed(task) {
			continue
		}
		l := loads[task.Node]
		l.Tasks++
		l.MemoryBytes += 300000
		loads[task.Node] = l
		if task.Gateway4.IsValid() {
			addrs++
			if !s.AddrInUse(task.Gateway4) {
				t.Fatalf("address %s of a task is not in the index", task.Gateway4)
			}
		}
	}
	indexed := 0
	s.addrs.runs.Scan(func(_ uint32, run addrBits) bool {
		for _, w := range run {
			indexed += bits.OnesCount64(w)
		}
		return true
	})
	if indexed != addrs {
		t.Fatalf("%d addresses in the index, %d in use", indexed, addrs)
	}
	if all := s.AddrsInUse(netip.MustParsePrefix("0.0.0.0/0")); all != addrs {
		t.Fatalf("%d addresses are counted in use, %d are", all, addrs)
	}
	for id, l := range loads {
		if s.Load(id).Tasks != l.Tasks {
			t.Fatalf("load of node %d = %+v, want %+v", id, s.Load(id), l)
		}
		if s.Load(id).MemoryBytes > 1<<20 {
			t.Fatalf("node %d gave more memory than it has: %+v", id, s.Load(id))
		}
	}
	for v := range s.Services() {
		for _, p := range v.Ports {
			if owner, ok := s.PortOwner("tcp", p.PublishedPort); !ok || owner != v.ID {
				t.Fatalf("port %d of %s belongs to %d", p.PublishedPort, v.Name(), owner)
			}
		}
	}
}

// Addresses of a block are counted as one by one, wherever it begins and ends.
func TestAddrsAreCounted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		base := rapid.Uint32Range(1<<16, 1<<16+1<<10).Draw(t, "base")
		for _, k := range rapid.SliceOf(rapid.Uint32Range(base, base+1<<10)).Draw(t, "taken") {
			s.addrs.add(k)
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], rapid.Uint32Range(base, base+1<<10).Draw(t, "at"))
		block := netip.PrefixFrom(netip.AddrFrom4(b), rapid.IntRange(21, 32).Draw(t, "bits")).Masked()
		want := 0
		for a := block.Addr(); block.Contains(a); a = a.Next() {
			if s.AddrInUse(a) {
				want++
			}
		}
		if got := s.AddrsInUse(block); got != want {
			t.Fatalf("%d of %s are counted, %d are in use", got, block, want)
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	data, err := EncodeBatch(&model.Batch{Txns: []model.Txn{{Changes: []model.Change{{DeleteService: 1}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeBatch(data)
		if err == nil {
			New().Apply(1, b)
		}
	})
}

func BenchmarkApplyReports(b *testing.B) {
	l := newLog(b)
	l.must(l.service(1, "web", `{}`))
	const n = 1000
	for i := range n {
		l.must(model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: uint64(i + 1)}, Template: 1, Node: 1, State: model.StateAssigned}})
	}
	report := &model.Report{Node: 1, Session: 1}
	for i := range n {
		report.Tasks = append(report.Tasks, model.TaskReport{Task: model.TaskID{Service: 1, Num: uint64(i + 1)}, State: model.StateRunning})
	}
	base, seq := l.s, uint64(0)
	for b.Loop() {
		seq++
		report.Seq = seq
		base.Apply(l.at+1, &model.Batch{Txns: []model.Txn{{Changes: []model.Change{{Report: report}}}}})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/task")
}
