package dockerapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Nodes are the other nodes of the swarm.
type Nodes interface {
	// DialNode connects to the API that a node serves for its own containers (Server.Node).
	DialNode(ctx context.Context, node model.NodeID) (net.Conn, error)
}

// localOnly marks requests that another manager has sent here.
type localOnly struct{}

// Node is the part of the API that a node serves to managers: what concerns its own containers.
func (s *Server) Node() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, path, err := splitVersion(r.URL.Path)
		if err == nil && !strings.HasPrefix(path, "/containers/") && !strings.HasPrefix(path, "/exec/") {
			err = errPageNotFound
		}
		if err != nil {
			writeError(&startedWriter{ResponseWriter: w}, statusOf(err), err.Error())
			return
		}
		s.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), localOnly{}, true)))
	})
}

// onContainer makes a handler of one that works on a container: on whatever node the container is, the request finds it.
func (s *Server) onContainer(h func(*request, *Container) error) handler {
	return func(r *request) error {
		list, err := s.backend.ListContainers(r.ctx())
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		c, err := findContainer(list, r.vars["id"])
		if err == nil {
			return h(r, c)
		}
		if model.KindOf(err) != model.NotFound || r.ctx().Value(localOnly{}) != nil || notManager(s.backend.Local(), unavailable) != nil {
			return err
		}
		snap, serr := s.state(r.ctx())
		if serr != nil {
			return err
		}
		t, ambiguous := findTaskContainer(snap, r.vars["id"])
		if ambiguous != nil {
			return ambiguous
		}
		if t == nil {
			return err
		}
		id := containerID(snap.Cluster().Namer().TaskID(t.ID))
		if t.Node == s.backend.Local().Node {
			if c, err = findContainer(list, id); err != nil {
				return notFoundf("No such container: %s", r.vars["id"])
			}
			return h(r, c)
		}
		return s.forward(r, t.Node, id)
	}
}

// findTaskContainer looks for a container in the whole swarm by what a task's container can be called: the container's ID or a
// prefix of it, its name, and, of the task that runs there, the name of its slot (web.2). Not the task's ID: `docker inspect` asks
// for containers first, and means the task.
func findTaskContainer(snap *state.Snapshot, ref string) (*model.Task, error) {
	ref = strings.TrimPrefix(ref, "/")
	if len(ref) > model.IDLen && ref[len(ref)-model.IDLen-1] == '.' {
		if t, err := snap.FindTask(ref); err == nil && t.Node != 0 {
			return t, nil
		}
	}
	if t := taskInSlot(snap, ref); t != nil {
		return t, nil
	}
	if strings.Trim(ref, "0123456789abcdef") != "" || ref == "" {
		return nil, nil
	}
	namer := snap.Cluster().Namer()
	var found *model.Task
	for t := range snap.AllTasks() {
		if t.Node == 0 || !strings.HasPrefix(containerID(namer.TaskID(t.ID)), ref) {
			continue
		}
		if found != nil {
			return nil, model.Invalidf("multiple IDs found with provided prefix: %s", ref)
		}
		found = t
	}
	return found, nil
}

// taskInSlot is the running task that service.slot, or service.node of a global service, means.
func taskInSlot(snap *state.Snapshot, ref string) *model.Task {
	dot := strings.LastIndexByte(ref, '.')
	if dot < 0 {
		return nil
	}
	svc := snap.ServiceByName(ref[:dot])
	if svc == nil {
		return nil
	}
	namer := snap.Cluster().Namer()
	var found *model.Task
	for t := range snap.Tasks(svc.ID) {
		if t.Node == 0 || t.State.Terminal() || t.State < model.StateStarting {
			continue
		}
		n := snap.Node(t.Node)
		if fmt.Sprint(t.Slot) == ref[dot+1:] || t.Slot == 0 && (namer.NodeID(t.Node) == ref[dot+1:] || n != nil && n.Hostname() == ref[dot+1:]) {
			if found == nil || t.State == model.StateRunning {
				found = t
			}
		}
	}
	return found
}

// onExec makes a handler of one that works on a further process of a container.
func (s *Server) onExec(h func(*request, *execSession) error) handler {
	return func(r *request) error {
		id := r.vars["id"]
		e, err := s.execs.get(id)
		if err == nil {
			return h(r, e)
		}
		node, l := execNode(id), s.backend.Local()
		if node == 0 || node == l.Node || r.ctx().Value(localOnly{}) != nil || notManager(l, unavailable) != nil {
			return err
		}
		snap, serr := s.state(r.ctx())
		if serr != nil || snap.Node(node) == nil {
			return err
		}
		return s.forward(r, node, id)
	}
}

// maxAnswerHead bounds the status and the header of a node's answer, in bytes.
const maxAnswerHead = 256 << 10

// forward sends a request to the node that can answer it; id takes the place of what the client called its object.
func (s *Server) forward(r *request, node model.NodeID, id string) error {
	conn, err := s.backend.DialNode(r.ctx(), node)
	if err != nil {
		return fmt.Errorf("reach the container's node: %w", err)
	}
	defer conn.Close()
	out := r.Clone(r.ctx())
	out.URL.Scheme, out.URL.Host, out.Host, out.RequestURI = "http", "node", "node", ""
	_, path, err := splitVersion(r.URL.Path)
	if err != nil {
		return err
	}
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	_, rest, _ = strings.Cut(rest, "/")
	out.URL.Path = strings.TrimSuffix(r.URL.Path, path) + "/" + first + "/" + id + "/" + rest
	out.URL.RawPath = ""
	// The node answers this request and then nothing more on the connection; an upgraded one is its own end.
	upgrade := r.Header.Get("Upgrade") != ""
	out.Close = !upgrade
	stop := context.AfterFunc(r.ctx(), func() { _ = conn.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- out.Write(conn) }()
	head := &io.LimitedReader{R: conn, N: maxAnswerHead}
	buffered := bufio.NewReader(head)
	answer, err := http.ReadResponse(buffered, out)
	head.N = math.MaxInt64
	if err != nil {
		_ = conn.Close()
		<-sent
		return model.Errorf(unavailable, "the container's node does not answer: %v", err)
	}
	defer answer.Body.Close()
	stream := answer.Header.Get("Content-Type")
	if answer.StatusCode == http.StatusSwitchingProtocols || answer.StatusCode == http.StatusOK && stream == rawStream && r.Method == http.MethodPost {
		<-sent
		return joinStreams(r, stream, conn, buffered)
	}
	// What is left of the request's body is not waited for: the server ends its reading when this handler returns.
	return copyAnswer(r, answer)
}

// copyAnswer passes an answer on as it comes.
func copyAnswer(r *request, answer *http.Response) error {
	h := r.w.Header()
	for k, v := range answer.Header {
		if k != "Connection" && k != "Date" {
			h[k] = v
		}
	}
	r.w.WriteHeader(answer.StatusCode)
	rc := http.NewResponseController(r.w)
	if err := rc.Flush(); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := answer.Body.Read(buf)
		if n > 0 {
			if _, werr := r.w.Write(buf[:n]); werr != nil {
				return nil // the client is gone
			}
			if ferr := rc.Flush(); ferr != nil {
				return nil // the same
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the node's answer: %w", err)
		}
	}
}

// joinStreams connects a client with a node until either is through.
func joinStreams(r *request, contentType string, node net.Conn, ahead io.Reader) error {
	client, err := hijack(r, contentType)
	if err != nil {
		return err
	}
	go func() {
		// The node must hear of the end of the client's input, and of the client's end.
		if _, err := io.Copy(node, client); err == nil {
			if w, ok := node.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
				return
			}
		}
		_ = node.Close()
	}()
	done := make(chan struct{})
	client.wg.Go(func() {
		select {
		case <-client.lost:
			_ = node.Close()
		case <-done:
		}
	})
	_, err = io.Copy(client.Conn, ahead)
	close(done)
	if err != nil {
		client.hangUp()
	}
	client.finish()
	_ = node.Close() // it may have been before
	return nil
}
