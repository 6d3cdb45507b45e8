package dockerapi

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/skep-swarm/skep/internal/testimage"
)

// put sends an archive of one file to web.1, putTo to any container.
func put(t *testing.T, s *Server, path, name, content string) (int, string) {
	t.Helper()
	return putTo(t, serveUnix(t, s), "web.1", path, name, content)
}

func putTo(t *testing.T, host, ref, path, name, content string) (int, string) {
	t.Helper()
	archive, err := testimage.Tar(0o644, tar.Header{Name: name, Uname: content, Uid: os.Getuid(), Gid: os.Getgid()})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPut, "http://d/v1.50/containers/"+ref+"/archive?noOverwriteDirNonDir=true&path="+path, bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := unixClient(host).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestArchive(t *testing.T) {
	s, f, _ := oneTask(t)
	dir := t.TempDir()
	f.node.Files = func(string) string { return dir }
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/data", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if code, body := put(t, s, "/link", "f", "honey"); code != 200 {
		t.Fatalf("put: %d %s", code, body)
	}
	w := call(s, "HEAD", "/containers/web.1/archive?path=/link", "")
	raw, err := base64.StdEncoding.DecodeString(w.Header().Get(statHeader))
	var st container.PathStat
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil || w.Code != 200 || st.Name != "link" || st.LinkTarget != "/data" || st.Mode&os.ModeSymlink == 0 {
		t.Errorf("stat: %d %s, %v", w.Code, raw, err)
	}
	w = call(s, "GET", "/containers/web.1/archive?path=/data/f", "")
	in := tar.NewReader(w.Body)
	h, err := in.Next()
	if err != nil || h.Name != "f" || w.Header().Get("Content-Type") != "application/x-tar" || w.Header().Get(statHeader) == "" {
		t.Fatalf("get: %+v, %v, %v", h, w.Header(), err)
	}
	if b, err := io.ReadAll(in); string(b) != "honey" || err != nil {
		t.Errorf("content %q, %v", b, err)
	}
	for path, want := range map[string]string{
		"/containers/web.1/archive?path=/nope":     "404 Could not find the file /nope in container web.1",
		"/containers/web.1/archive":                "400 bad parameter: 'path' cannot be empty",
		"/containers/web.1/archive?path=/a%00b":    "400 bad parameter: 'path' has a zero byte in it",
		"/containers/nothing/archive?path=/":       "404 No such container: nothing",
		"/containers/web.1/archive?path=/data/f/x": "400 open /data/f/: not a directory",
	} {
		w := call(s, "GET", path, "")
		if got := fmt.Sprint(w.Code, " ", message(t, w)); got != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	for path, want := range map[string]string{
		"/nope":   "404 Could not find the file /nope in container web.1",
		"/data/f": "400 extraction point is not a directory",
	} {
		code, body := put(t, s, path, "f", "x")
		var m struct{ Message string }
		if json.Unmarshal([]byte(body), &m) != nil || want != fmt.Sprint(code, " ", m.Message) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, body := put(t, s, "/data", "../../f", "x"); code != 400 || !strings.Contains(body, "outside of the destination") {
		t.Errorf("%d %s", code, body)
	}
}

func TestChanges(t *testing.T) {
	s, f, id := oneTask(t)
	host := t.TempDir()
	f.node.Files = func(string) string { return filepath.Join(host, "upper") }
	for _, name := range []string{"upper/etc/new", "lower/etc/old"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(host, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if w := call(s, "GET", "/containers/"+id+"/changes", ""); w.Code != 200 || strings.TrimSpace(w.Body.String()) != `[{"Kind":0,"Path":"/etc"},{"Kind":1,"Path":"/etc/new"}]` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
