package dockerapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// execConn starts a process over a raw connection, as the CLI does.
type execConn struct {
	net.Conn
	in *bufio.Reader
}

func startExec(t *testing.T, host, version, id, headers string) execConn {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(host, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST %s/exec/%s/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 2\r\n%s\r\n{}", version, id, headers)
	return execConn{conn, bufio.NewReader(conn)}
}

const upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"

func (c execConn) head(t *testing.T) string {
	t.Helper()
	var out []string
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			t.Fatalf("head of the answer: %q, %v", out, err)
		}
		if line = strings.TrimSpace(line); line == "" {
			return strings.Join(out, "|")
		}
		if !strings.HasPrefix(line, "Api-Version") {
			out = append(out, line)
		}
	}
}

func newExec(t *testing.T, c *http.Client, ref, body string) string {
	t.Helper()
	resp, err := c.Post("http://d/containers/"+ref+"/exec", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out container.ExecCreateResponse
	decode(t, resp.Body, &out)
	if resp.StatusCode != 201 || len(out.ID) != 64 {
		t.Fatalf("exec create: %d %+v", resp.StatusCode, out)
	}
	return out.ID
}

func inspectExec(t *testing.T, c *http.Client, id string) container.ExecInspectResponse {
	t.Helper()
	var out container.ExecInspectResponse
	decode(t, get(t, c, "/exec/"+id+"/json").Body, &out)
	return out
}

func TestExecStreams(t *testing.T) {
	s, f := newSwarm(t)
	host := serveUnix(t, s)
	waitFor(t, f.watching)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	c := unixClient(host)
	for _, test := range []struct {
		version, headers string
		tty              bool
		head, out        string
	}{
		{"/v1.50", upgrade, false, "HTTP/1.1 101 UPGRADED|Content-Type: application/vnd.docker.multiplexed-stream|Connection: Upgrade|Upgrade: tcp", "\x01\x00\x00\x00\x00\x00\x00\x06honey\n"},
		{"/v1.41", upgrade, false, "HTTP/1.1 101 UPGRADED|Content-Type: application/vnd.docker.raw-stream|Connection: Upgrade|Upgrade: tcp", "\x01\x00\x00\x00\x00\x00\x00\x06honey\n"},
		{"/v1.50", upgrade, true, "HTTP/1.1 101 UPGRADED|Content-Type: application/vnd.docker.raw-stream|Connection: Upgrade|Upgrade: tcp", "honey\n"},
		{"/v1.24", "", false, "HTTP/1.1 200 OK|Content-Type: application/vnd.docker.raw-stream", "\x01\x00\x00\x00\x00\x00\x00\x06honey\n"},
	} {
		id := newExec(t, c, "web.1", fmt.Sprintf(`{"Cmd":["cat"],"AttachStdin":true,"AttachStdout":true,"AttachStderr":true,"Tty":%v}`, test.tty))
		if e := inspectExec(t, c, id); e.Running || e.ExitCode != nil || e.ProcessConfig.Entrypoint != "cat" || !e.OpenStdin {
			t.Errorf("before its start: %+v", e)
		}
		conn := startExec(t, host, test.version, id, test.headers)
		if head := conn.head(t); head != test.head {
			t.Errorf("%+v: head %q", test, head)
		}
		if e := inspectExec(t, c, id); !e.Running {
			t.Errorf("running: %+v", e)
		}
		waitFor(t, func() bool { return inspectExec(t, c, id).Pid != 0 })
		fmt.Fprintf(conn, "honey\n")
		// The end of the input is not the end of the output.
		if err := conn.Conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(conn.in)
		if err != nil || string(out) != test.out {
			t.Errorf("%+v: output %q, %v", test, out, err)
		}
		if e := inspectExec(t, c, id); e.Running || e.ExitCode == nil || *e.ExitCode != 0 || !e.CanRemove {
			t.Errorf("ended: %+v", e)
		}
		if w := call(s, "POST", "/exec/"+id+"/start", "{}"); w.Code != 409 || !strings.Contains(message(t, w), "has already run") {
			t.Errorf("a second start: %d %s", w.Code, w.Body)
		}
	}
}

// Detach keys leave the process running; a client that is lost does not.
func TestExecDetachAndLoss(t *testing.T) {
	s, f := newSwarm(t)
	host := serveUnix(t, s)
	waitFor(t, f.watching)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	c := unixClient(host)
	const spec = `{"Cmd":["hang"],"AttachStdin":true,"AttachStdout":true,"Tty":true,"DetachKeys":"ctrl-x,y"}`
	id := newExec(t, c, "web.1", spec)
	conn := startExec(t, host, "", id, upgrade)
	conn.head(t)
	if line, err := conn.in.ReadString('\n'); line != "hanging\n" {
		t.Fatalf("%q, %v", line, err)
	}
	fmt.Fprint(conn, "abc\x18z\x18y")
	if rest, err := io.ReadAll(conn.in); err != nil || len(rest) != 0 {
		t.Errorf("after detaching: %q, %v", rest, err)
	}
	_ = conn.Close()
	if e := inspectExec(t, c, id); !e.Running {
		t.Errorf("a process whose client detached: %+v", e)
	}
	id = newExec(t, c, "web.1", spec)
	conn = startExec(t, host, "", id, upgrade)
	conn.head(t)
	waitFor(t, func() bool { return inspectExec(t, c, id).Running })
	_ = conn.Close()
	waitFor(t, func() bool { return !inspectExec(t, c, id).Running })
	if e := inspectExec(t, c, id); *e.ExitCode != 128+15 && *e.ExitCode != 128+1 {
		t.Errorf("exit code %d", *e.ExitCode)
	}
}

func TestExecRefusals(t *testing.T) {
	s, f := newSwarm(t)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	for _, test := range []struct {
		path, body string
		code       int
		text       string
	}{
		{"/containers/nothing/exec", `{"Cmd":["cat"]}`, 404, "No such container: nothing"},
		{"/containers/web.7/exec", `{"Cmd":["cat"]}`, 404, "No such container: web.7"},
		{"/containers/web.1/exec", `{}`, 400, "No exec command specified"},
		{"/containers/web.1/exec", `{"Cmd":["cat"],"DetachKeys":"ctrl-?"}`, 400, "invalid detach keys (ctrl-?) provided: unknown character: 'ctrl-?'"},
		{"/exec/" + strings.Repeat("0", 64) + "/start", `{}`, 404, "No such exec instance: " + strings.Repeat("0", 64)},
		{"/exec/xyz/resize?h=1&w=1", ``, 404, "No such exec instance: xyz"},
	} {
		if w := call(s, "POST", test.path, test.body); w.Code != test.code || message(t, w) != test.text {
			t.Errorf("%s: %d %s", test.path, w.Code, w.Body)
		}
	}
	f.mu.Lock()
	f.stop(model.TaskID{Service: 1, Num: 1})
	f.mu.Unlock()
	id := containerID(f.snap.Cluster().Namer().TaskID(model.TaskID{Service: 1, Num: 1}))
	if w := call(s, "POST", "/containers/"+id+"/exec", `{"Cmd":["cat"]}`); w.Code != 409 || message(t, w) != "container "+id+" is not running" {
		t.Errorf("ended container: %d %s", w.Code, w.Body)
	}
}

// The number of processes that are known is bounded, and they are forgotten in time.
func TestExecBounds(t *testing.T) {
	now := time.Unix(1e9, 0)
	table := newExecTable(func() time.Time { return now }, seeded("execs"))
	add := func() error { return table.add(&execSession{}, 7) }
	for range maxExecs {
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(); model.KindOf(err) != model.Exhausted {
		t.Errorf("one too many: %v", err)
	}
	now = now.Add(execUnused + time.Second)
	if err := add(); err != nil || len(table.all) != 1 {
		t.Errorf("after a while: %v, %d are kept", err, len(table.all))
	}
	for id := range table.all {
		if execNode(id) != 7 {
			t.Errorf("node of %s is %d", id, execNode(id))
		}
	}
}

// Whoever starts one process after the other, as health checks from outside do, is never refused.
func TestEndedExecsGiveWay(t *testing.T) {
	now := time.Unix(1e9, 0)
	table := newExecTable(func() time.Time { return now }, seeded("execs"))
	var ids []string
	for i := range maxExecs + 2 {
		e := &execSession{}
		if err := table.add(e, 7); err != nil {
			t.Fatalf("process %d: %v", i, err)
		}
		ids = append(ids, e.id)
		now = now.Add(time.Millisecond)
		if i > 0 { // the first still runs
			e.end(0, now)
		}
	}
	for i, want := range []bool{true, false, false, true} {
		if _, err := table.get(ids[i]); (err == nil) != want {
			t.Errorf("process %d is known: %v", i, err)
		}
	}
}

// farTask is a manager, its address, and the fake of another node, where the task far.1 runs.
func farTask(t *testing.T) (*Server, string, *fake, *fake) {
	t.Helper()
	s, f := newSwarm(t)
	host := serveUnix(t, s)
	waitFor(t, f.watching)
	f.mu.Lock()
	f.addNode("node-b", swarm.NodeRoleWorker, "10.0.0.2")
	f.mu.Unlock()
	// The other node has the same state, and is node 2 in it.
	other := newFake(time.Now)
	f.mu.Lock()
	f.setLocal(Local{State: swarm.LocalNodeStateActive, Manager: true, Node: 2}) // where the fake puts the task
	f.mu.Unlock()
	create(t, s, `{"Name":"far","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	f.setLocal(Local{State: swarm.LocalNodeStateActive, Manager: true, Node: 1})
	other.snap = f.snap
	other.setLocal(Local{State: swarm.LocalNodeStateActive, Node: 2})
	there := New(Config{Backend: other, Version: Version{Version: "0.1.0"}, Rand: seeded("there")})
	f.others[2] = serveHandler(t, there.Node(), there.Run)
	return s, host, f, other
}

// A container on another node is reached through that node's API.
func TestExecOnAnotherNode(t *testing.T) {
	_, host, f, _ := farTask(t)
	c := unixClient(host)
	id := newExec(t, c, "far.1", `{"Cmd":["cat"],"AttachStdin":true,"AttachStdout":true,"AttachStderr":true}`)
	if execNode(id) != 2 {
		t.Errorf("the exec's node is %d", execNode(id))
	}
	conn := startExec(t, host, "/v1.50", id, upgrade)
	if head := conn.head(t); !strings.HasPrefix(head, "HTTP/1.1 101 UPGRADED|Content-Type: application/vnd.docker.multiplexed-stream") {
		t.Errorf("head %q", head)
	}
	fmt.Fprintf(conn, "honey\n")
	if err := conn.Conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(conn.in); err != nil || string(out) != "\x01\x00\x00\x00\x00\x00\x00\x06honey\n" {
		t.Errorf("output %q, %v", out, err)
	}
	if e := inspectExec(t, c, id); e.Running || e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("ended: %+v", e)
	}
	// A client that is lost is lost there, too.
	id = newExec(t, c, "far.1", `{"Cmd":["hang"],"AttachStdout":true}`)
	conn = startExec(t, host, "/v1.50", id, upgrade)
	conn.head(t)
	waitFor(t, func() bool { return inspectExec(t, c, id).Running })
	_ = conn.Close()
	waitFor(t, func() bool { return !inspectExec(t, c, id).Running })
	// What is not about containers is not served there.
	if resp := get(t, unixClient(f.others[2]), "/services"); resp.StatusCode != 404 {
		t.Errorf("a node serves /services: %d", resp.StatusCode)
	}
	var full container.InspectResponse
	decode(t, get(t, c, "/containers/far.1/json").Body, &full)
	if !strings.HasPrefix(full.Name, "/far.1.") || !full.State.Running {
		t.Errorf("inspect: %+v", full)
	}
}

// A client that does not read what its process writes, and does not go, must not keep the daemon from ending.
func TestExecOfASilentClientEnds(t *testing.T) {
	s, f := newSwarm(t)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	host := serveHandler(t, s, func(context.Context) error { defer close(ended); return s.Run(ctx) })
	defer end()
	waitFor(t, f.watching)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	c := unixClient(host)
	id := newExec(t, c, "web.1", `{"Cmd":["flood"],"AttachStdout":true}`)
	startExec(t, host, "/v1.50", id, upgrade).head(t)
	waitFor(t, func() bool { return inspectExec(t, c, id).Running })
	end()
	select {
	case <-ended:
	case <-time.After(15 * time.Second):
		t.Error("the server does not end")
	}
}

// The header of another node's answer is bounded: it is read before anybody asks for it.
func TestForeignNodeSendsAnEndlessHeader(t *testing.T) {
	_, host, f, _ := farTask(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			for range 64 {
				_, _ = fmt.Fprintf(conn, "X: %s\r\n", strings.Repeat("x", 32<<10))
			}
			_, _ = io.WriteString(conn, "Content-Length: 0\r\n\r\n")
			conn.Close()
		}
	}()
	f.mu.Lock()
	f.others[2] = "unix://" + l.Addr().String()
	f.mu.Unlock()
	resp := get(t, unixClient(host), "/containers/far.1/top")
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 503 || !strings.Contains(string(body), "does not answer") {
		t.Errorf("status %d, %s, %v", resp.StatusCode, body, err)
	}
}

func decode(t *testing.T, r io.Reader, v any) {
	t.Helper()
	if err := json.NewDecoder(r).Decode(v); err != nil {
		t.Fatal(err)
	}
}
