package dockerapi

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// oneTask is a swarm whose service web has one task, with its container's ID.
func oneTask(t *testing.T) (*Server, *fake, string) {
	t.Helper()
	s, f := newSwarm(t)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	return s, f, containerID(f.snap.Cluster().Namer().TaskID(model.TaskID{Service: 1, Num: 1}))
}

func TestStats(t *testing.T) {
	s, f, id := oneTask(t)
	var got container.StatsResponse
	w := call(s, "GET", "/v1.50/containers/web.1/stats?stream=0&one-shot=1", "")
	decode(t, w.Body, &got)
	if w.Code != 200 || got.ID != id || !strings.HasPrefix(got.Name, "/web.1.") || got.Read.IsZero() || !got.PreRead.IsZero() || got.PreCPUStats.SystemUsage != 0 ||
		got.CPUStats.OnlineCPUs != 2 || got.MemoryStats.Limit != 1<<30 || got.MemoryStats.Stats["inactive_file"] != 1<<20 || got.PidsStats.Current != 1 ||
		got.Networks["eth0"].TxBytes != 2000 || len(got.BlkioStats.IoServiceBytesRecursive) != 2 || got.BlkioStats.IoServiceBytesRecursive[1].Value != 8192 {
		t.Errorf("one shot: %d %+v", w.Code, got)
	}
	got = container.StatsResponse{}
	decode(t, call(s, "GET", "/containers/web.1/stats?stream=0", "").Body, &got)
	cpu := got.CPUStats.CPUUsage.TotalUsage - got.PreCPUStats.CPUUsage.TotalUsage
	if sys := got.CPUStats.SystemUsage - got.PreCPUStats.SystemUsage; !got.PreRead.Before(got.Read) || sys == 0 || cpu == 0 {
		t.Errorf("two looks: %+v", got)
	}
	resp := get(t, unixClient(serveUnix(t, s)), "/containers/web.1/stats")
	in := bufio.NewScanner(resp.Body)
	for i := range 2 {
		got = container.StatsResponse{}
		if !in.Scan() || json.Unmarshal(in.Bytes(), &got) != nil || got.Read.IsZero() || got.PreRead.IsZero() != (i == 0) {
			t.Fatalf("answer %d: %s", i, in.Bytes())
		}
	}
	_ = resp.Body.Close()
	if w := call(s, "GET", "/containers/web.1/stats?one-shot=1", ""); w.Code != 400 || message(t, w) != "cannot have stream=true and one-shot=true" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	f.node.End(id, runtime.Exit{})
	got = container.StatsResponse{}
	w = call(s, "GET", "/containers/"+id+"/stats?stream=0", "")
	decode(t, w.Body, &got)
	if w.Code != 200 || got.ID != id || !got.Read.IsZero() || got.MemoryStats.Usage != 0 {
		t.Errorf("an ended container: %d %+v", w.Code, got)
	}
}

func TestTop(t *testing.T) {
	s, _, id := oneTask(t)
	call(s, "GET", "/containers/web.1/stats?stream=0&one-shot=1", "") // the fake node's container starts
	w := call(s, "GET", "/containers/web.1/top?ps_args=-o+pid,cmd", "")
	var got container.TopResponse
	decode(t, w.Body, &got)
	if w.Code != 200 || strings.Join(got.Titles, ",") != "PID,COMMAND" || len(got.Processes) != 2 || got.Processes[0][1] != "web -v x" || got.Processes[1][0] != "-" {
		t.Errorf("%d %+v", w.Code, got)
	}
	for args, text := range map[string]string{
		"-o+pid%3Dx,cmd":         `specifying "pid=x,cmd" is not allowed: the column of process IDs keeps its title`,
		"$(id)":                  `invalid option for ps: "$(id)"`,
		"-C+a/b":                 `invalid option for ps: "a/b"`,
		strings.Repeat("a+", 17): `the options for ps are too long: at most 16 words and 256 characters`,
	} {
		if w := call(s, "GET", "/containers/web.1/top?ps_args="+args, ""); w.Code != 400 || message(t, w) != text {
			t.Errorf("%s: %d %s", args, w.Code, w.Body)
		}
	}
	if _, err := parsePS("USER COMMAND\na b\n", []int{1}); model.KindOf(err) != model.Invalid {
		t.Errorf("no PID: %v", err)
	}
	if w := call(s, "GET", "/containers/nothing/top", ""); w.Code != 404 {
		t.Errorf("%d %s of %s", w.Code, w.Body, id)
	}
}

func TestKillStopWait(t *testing.T) {
	s, f, id := oneTask(t)
	waits := make(chan string, 1)
	host := serveUnix(t, s)
	resp, err := unixClient(host).Post("http://d/containers/web.1/wait?condition=next-exit", "application/json", nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("the head of a wait: %v, %v", resp, err)
	}
	go func() {
		defer resp.Body.Close()
		var out container.WaitResponse
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || out.Error != nil || out.StatusCode != 137 {
			waits <- "wrong"
			return
		}
		waits <- "137"
	}()
	if w := call(s, "POST", "/containers/web.1/kill?signal=HUP", ""); w.Code != 204 {
		t.Errorf("HUP: %d %s", w.Code, w.Body)
	}
	if c := f.node.Containers(); c[0].State != runtime.Running {
		t.Errorf("after HUP: %+v", c)
	}
	for _, test := range []struct {
		path string
		code int
		text string
	}{
		{"/containers/web.1/kill?signal=NOPE", 400, "cannot kill container: web.1: Invalid signal: NOPE"},
		{"/containers/web.1/kill?signal=999", 400, "cannot kill container: web.1: Invalid signal: 999"},
		{"/containers/none/kill", 404, "cannot kill container: none: No such container: none"},
		{"/containers/none/stop", 404, "No such container: none"},
		{"/containers/web.1/stop?t=x", 400, `invalid value for 't': "x" is not a number of seconds, nor -1 for as long as it takes`},
		{"/containers/web.1/stop?signal=x", 400, "Invalid signal: x"},
		{"/containers/web.1/wait?condition=x", 400, `invalid condition: "x": use not-running, next-exit or removed`},
		{"/containers/web.1/start", 304, ""},
		{"/containers/none/rename?name=x", 404, "No such container: none"},
		{"/containers/web.1/kill", 204, ""},
		{"/containers/web.1/stop", 304, ""},
		{"/containers/web.1/kill", 409, "cannot kill container: web.1: container " + id + " is not running"},
	} {
		w := call(s, "POST", test.path, "")
		if w.Code != test.code || test.text != "" && message(t, w) != test.text {
			t.Errorf("%s: %d %s", test.path, w.Code, w.Body)
		}
	}
	if got := <-waits; got != "137" {
		t.Errorf("the wait says %s", got)
	}
	if len(f.withdrawn) != 0 {
		t.Errorf("a kill does not wait, but it was withdrawn: %v", f.withdrawn)
	}
	var out container.WaitResponse
	decode(t, call(s, "POST", "/containers/"+id+"/wait", "").Body, &out)
	if out.StatusCode != 137 {
		t.Errorf("not-running: %+v", out)
	}
	for action := range taskActions {
		if w := call(s, "POST", "/containers/web.1/"+action, ""); w.Code != http.StatusForbidden || !strings.Contains(message(t, w), "belongs to a task: ") {
			t.Errorf("%s: %d %s", action, w.Code, w.Body)
		}
	}
}

// onHead does something when the head of an answer is sent.
type onHead struct {
	*httptest.ResponseRecorder
	do func()
}

func (h *onHead) WriteHeader(code int) {
	h.ResponseRecorder.WriteHeader(code)
	h.do()
}

// A client that knows by the head of the answer that it is waited for may kill the container at once: that is the next exit.
func TestWaitHead(t *testing.T) {
	for _, cond := range []string{"", "not-running", "next-exit"} {
		s, f, id := oneTask(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		w := &onHead{httptest.NewRecorder(), func() { f.node.End(id, runtime.Exit{Code: 9}) }}
		s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", "/containers/"+id+"/wait?condition="+cond, nil))
		var out container.WaitResponse
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != 200 || out.StatusCode != 9 || out.Error != nil {
			t.Errorf("%q: %d %q, %v", cond, w.Code, w.Body, err)
		}
	}
}

// An exec runs from the head of its answer on, however long its process takes to start.
func TestExecHead(t *testing.T) {
	s, _, _ := oneTask(t)
	e := &execSession{spec: runtime.ExecSpec{Args: []string{"slow"}}}
	if err := s.execs.add(e, 1); err != nil {
		t.Fatal(err)
	}
	running := func() bool {
		var out container.ExecInspectResponse
		decode(t, call(s, "GET", "/exec/"+e.id+"/json", "").Body, &out)
		return out.Running
	}
	if running() {
		t.Error("it runs before its start")
	}
	if err := e.begin(); err != nil {
		t.Fatal(err)
	}
	if !running() {
		t.Error("it does not run when its start is accepted")
	}
	if e.end(126, s.now()); running() {
		t.Error("it runs after its start failed")
	}
}

// A container that ignores its signal is killed when its time is over, and all of it is told.
func TestStopIgnored(t *testing.T) {
	s, f, id := oneTask(t)
	f.node.Behave = func(runtime.Spec) fakeBehaviour { return fakeBehaviour{IgnoresStop: true} }
	if w := call(s, "POST", "/containers/web.1/stop?t=0&signal=INT", ""); w.Code != 204 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	var got []string
	for _, m := range eventsOf(s) {
		if m.Actor.ID == id && m.Action == "stop" {
			got = append(got, string(m.Action))
		}
	}
	signals := 0
	for _, step := range f.node.Steps() {
		if strings.HasPrefix(step, "signal ") {
			signals++
		}
	}
	if len(got) != 1 || signals != 2 {
		t.Errorf("events %v, %d signals", got, signals)
	}
	if !slices.Equal(f.withdrawn, []string{"running"}) {
		t.Errorf("withdrawn: %v", f.withdrawn)
	}
}

// All of it works through a manager for a container on another node, streams too.
func TestIntoAnotherNode(t *testing.T) {
	s, host, _, other := farTask(t)
	dir := t.TempDir()
	other.node.Files = func(string) string { return dir }
	c := unixClient(host)
	in := bufio.NewScanner(get(t, c, "/containers/far.1/stats").Body)
	var st container.StatsResponse
	for range 2 {
		if !in.Scan() || json.Unmarshal(in.Bytes(), &st) != nil || st.Read.IsZero() || !strings.HasPrefix(st.Name, "/far.1.") {
			t.Fatalf("stats: %s", in.Bytes())
		}
	}
	var top container.TopResponse
	decode(t, get(t, c, "/containers/far.1/top").Body, &top)
	if len(top.Processes) != 2 {
		t.Errorf("top: %+v", top)
	}
	if code, body := putTo(t, host, "far.1", "/", "f", strings.Repeat("honey", 1<<16)); code != 200 {
		t.Errorf("put: %d %s", code, body)
	}
	resp := get(t, c, "/containers/far.1/archive?path=/f")
	tr := tar.NewReader(resp.Body)
	if h, err := tr.Next(); err != nil || h.Name != "f" || h.Size != 5<<16 || resp.Header.Get(statHeader) == "" {
		t.Errorf("get: %+v, %v", h, err)
	}
	if n, err := io.Copy(io.Discard, tr); n != 5<<16 || err != nil {
		t.Errorf("content: %d, %v", n, err)
	}
	if head, err := c.Head("http://d/containers/far.1/archive?path=/f"); err != nil || head.StatusCode != 200 || head.Header.Get(statHeader) == "" {
		t.Errorf("head: %+v, %v", head, err)
	}
	waiting, err := c.Post("http://d/containers/far.1/wait", "application/json", nil)
	if err != nil || waiting.StatusCode != 200 {
		t.Fatalf("wait: %+v, %v", waiting, err)
	}
	defer waiting.Body.Close()
	if w := call(s, "POST", "/containers/far.1/kill", ""); w.Code != 204 {
		t.Errorf("kill: %d %s", w.Code, w.Body)
	}
	var end container.WaitResponse
	if decode(t, waiting.Body, &end); end.StatusCode != 137 {
		t.Errorf("wait: %+v", end)
	}
}
