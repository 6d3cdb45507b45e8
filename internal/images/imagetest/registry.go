package imagetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Registry is an image registry in memory with faults to order. It is an http.Handler: serve it where the test wants it, by
// TLS or without. It takes pushes and serves pulls, parts of blobs included. Safe for concurrent use.
type Registry struct {
	mu       sync.Mutex
	blobs    map[digest.Digest][]byte
	repos    map[string]map[string]manifest // repository → tag or digest
	uploads  map[string][]byte
	next     int
	user     string
	password string
	tokens   bool
	faults   []Fault
	requests []string
}

type manifest struct {
	mediaType string
	data      []byte
}

// Fault is something that goes wrong. It applies to requests whose method and path, "GET /v2/a/blobs/…", contain Match.
type Fault struct {
	Match string
	Times int // how often; negative means always

	Status int           // answer with this status
	Drop   int           // cut the connection after so many bytes of the body
	Cut    int           // serve only so many bytes, as if there were no more
	Flip   bool          // change a byte
	Wait   chan struct{} // go on when it is closed, or the client went away
	Rate   int           // bytes a second of the body
}

// NewRegistry returns an empty registry that lets everyone in.
func NewRegistry() *Registry {
	return &Registry{blobs: map[digest.Digest][]byte{}, repos: map[string]map[string]manifest{}, uploads: map[string][]byte{}}
}

// Require asks for a user and a password from now on: by basic authentication, or by tokens that are sold at /token.
func (r *Registry) Require(user, password string, tokens bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password, r.tokens = user, password, tokens
}

// Break orders faults; the first that fits a request is used. Without one all goes well again.
func (r *Registry) Break(faults ...Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = slices.Clone(faults)
}

// Requests lists "METHOD path status[ Range]" of all requests so far that contain a text.
func (r *Registry) Requests(containing string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.requests), func(s string) bool { return !strings.Contains(s, containing) })
}

// Put stores a blob and returns its digest.
func (r *Registry) Put(data []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.blobs[d] = data
	return d
}

// PutManifest stores a manifest or an index under a tag, or under its digest alone.
func (r *Registry) PutManifest(repo, tag, mediaType string, data []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	if r.repos[repo] == nil {
		r.repos[repo] = map[string]manifest{}
	}
	m := manifest{mediaType, data}
	r.repos[repo][d.String()] = m
	if tag != "" {
		r.repos[repo][tag] = m
	}
	return d
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	what := req.Method + " " + req.URL.Path
	f := r.fault(what)
	note := &noted{ResponseWriter: w, status: http.StatusOK}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		line := fmt.Sprintf("%s %d", what, note.status)
		if h := req.Header.Get("Range"); h != "" {
			line += " " + h
		}
		r.requests = append(r.requests, line)
	}()
	if f.Wait != nil {
		select {
		case <-f.Wait:
		case <-req.Context().Done():
		}
	}
	if f.Status != 0 {
		fail(note, f.Status, "UNKNOWN", "ordered by the test")
		return
	}
	if req.URL.Path == "/token" {
		r.sellToken(note, req)
		return
	}
	if !r.lets(req) {
		note.Header().Set("Www-Authenticate", r.challenge(req))
		fail(note, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	r.serve(note, req, f)
}

func (r *Registry) fault(what string) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.faults {
		if f := &r.faults[i]; f.Times != 0 && strings.Contains(what, f.Match) {
			f.Times--
			return *f
		}
	}
	return Fault{}
}

// noted remembers an answer's status.
type noted struct {
	http.ResponseWriter
	status int
}

func (n *noted) WriteHeader(status int) {
	n.status = status
	n.ResponseWriter.WriteHeader(status)
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
}

const token = "a-token-that-was-bought"

func (r *Registry) lets(req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.user == "" {
		return true
	}
	if r.tokens {
		return req.Header.Get("Authorization") == "Bearer "+token
	}
	user, password, ok := req.BasicAuth()
	return ok && user == r.user && password == r.password
}

func (r *Registry) challenge(req *http.Request) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.tokens {
		return `Basic realm="test"`
	}
	scheme := "http"
	if req.TLS != nil {
		scheme = "https"
	}
	return fmt.Sprintf(`Bearer realm="%s://%s/token",service="test"`, scheme, req.Host)
}

func (r *Registry) sellToken(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	user, password, ok := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password, ok = req.FormValue("username"), req.FormValue("password"), true
	}
	if !ok || user != r.user || password != r.password {
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request, f Fault) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if path == "" {
		return
	}
	for _, kind := range []string{"/manifests/", "/blobs/uploads/", "/blobs/"} {
		repo, rest, ok := strings.Cut(path, kind)
		if !ok {
			continue
		}
		switch kind {
		case "/manifests/":
			r.serveManifest(w, req, repo, rest, f)
		case "/blobs/uploads/":
			r.serveUpload(w, req, repo, rest)
		default:
			r.serveBlob(w, req, digest.Digest(rest), f)
		}
		return
	}
	fail(w, http.StatusNotFound, "UNSUPPORTED", "no such path")
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, repo, ref string, f Fault) {
	if req.Method == http.MethodPut {
		data, err := io.ReadAll(io.LimitReader(req.Body, 4<<20))
		if err != nil {
			fail(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
			return
		}
		tag := ref
		if strings.HasPrefix(ref, "sha256:") {
			tag = ""
		}
		w.Header().Set("Docker-Content-Digest", r.PutManifest(repo, tag, req.Header.Get("Content-Type"), data).String())
		w.WriteHeader(http.StatusCreated)
		return
	}
	r.mu.Lock()
	m, ok := r.repos[repo][ref]
	r.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.data).String())
	send(w, req, m.mediaType, m.data, f)
}

func (r *Registry) serveUpload(w http.ResponseWriter, req *http.Request, repo, id string) {
	data, err := io.ReadAll(io.LimitReader(req.Body, 1<<30))
	if err != nil {
		fail(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", err.Error())
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if id == "" {
		r.next++
		id = fmt.Sprint(r.next)
	}
	data = append(r.uploads[id], data...)
	if req.Method != http.MethodPut {
		r.uploads[id] = data
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	delete(r.uploads, id)
	want := digest.Digest(req.URL.Query().Get("digest"))
	if digest.FromBytes(data) != want {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "the digest does not match")
		return
	}
	r.blobs[want] = data
	w.Header().Set("Docker-Content-Digest", want.String())
	w.WriteHeader(http.StatusCreated)
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, d digest.Digest, f Fault) {
	r.mu.Lock()
	data, ok := r.blobs[d]
	r.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	send(w, req, "application/octet-stream", data, f)
}

// send serves bytes, or what a fault makes of them.
func send(w http.ResponseWriter, req *http.Request, mediaType string, data []byte, f Fault) {
	if f.Flip {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 0xff
	}
	if f.Cut > 0 {
		data = data[:min(f.Cut, len(data))]
	}
	w.Header().Set("Content-Type", mediaType)
	if f.Drop > 0 || f.Rate > 0 {
		w = &faulty{ResponseWriter: w, req: req, fault: f}
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

// faulty is an answer that comes slowly, or not to its end.
type faulty struct {
	http.ResponseWriter
	req   *http.Request
	fault Fault
	sent  int
}

// pieces of an answer a second, when it is to be slow.
const pieces = 20

func (d *faulty) Write(p []byte) (int, error) {
	for at := 0; at < len(p); {
		n := len(p) - at
		if d.fault.Rate > 0 {
			n = min(n, max(1, d.fault.Rate/pieces))
			select {
			case <-time.After(time.Second / pieces):
			case <-d.req.Context().Done():
				return at, d.req.Context().Err()
			}
		}
		if d.fault.Drop > 0 {
			n = min(n, d.fault.Drop-d.sent)
		}
		wrote, err := d.ResponseWriter.Write(p[at : at+n])
		at, d.sent = at+wrote, d.sent+wrote
		if err != nil {
			return at, err
		}
		if d.fault.Rate > 0 || d.sent == d.fault.Drop {
			_ = http.NewResponseController(d.ResponseWriter).Flush()
		}
		if d.fault.Drop > 0 && d.sent >= d.fault.Drop {
			panic(http.ErrAbortHandler)
		}
	}
	return len(p), nil
}

// Unwrap is for http.ResponseController.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }
