package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// removal is a daemon whose stack has two tasks; look n is answered with what is left then.
type removal struct {
	mu    sync.Mutex
	looks int
	left  func(look int) (tasks, containers []string)
}

func (d *removal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.Header().Set("Api-Version", "1.51")
	w.Header().Set("Content-Type", "application/json")
	tasks, containers := d.left(d.looks)
	var list []any
	switch path := r.URL.Path; {
	case r.Method == http.MethodDelete:
		fmt.Fprintln(w, `{"Action":"removed","Kind":"service","Name":"shop_web"}`)
		fmt.Fprintln(w, `{}`)
		return
	case strings.HasSuffix(path, "/status"):
		fmt.Fprint(w, `{"Name":"shop","Services":[{"ID":"s1","Name":"shop_web"}]}`)
		return
	case strings.HasSuffix(path, "/tasks"):
		for _, id := range tasks {
			list = append(list, map[string]any{"ID": id, "ServiceID": "s1"})
		}
	case strings.HasSuffix(path, "/containers/json"):
		d.looks++
		for _, id := range containers {
			list = append(list, map[string]any{"Id": "c" + id, "Labels": map[string]string{taskOf: id, serviceOf: "shop_web"}})
		}
	}
	if list == nil {
		list = []any{}
	}
	_ = json.NewEncoder(w).Encode(list)
}

// serve listens with a handler on a unix socket.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l) // ends with the test
	t.Cleanup(func() { srv.Close() })
	return "unix://" + path
}

// A stack is gone when its tasks have ended and their containers, which hold its volumes, are removed; not those of a new stack of its name.
func TestStackRmWaits(t *testing.T) {
	d := &removal{left: func(look int) (tasks, containers []string) {
		switch look {
		case 0:
			return []string{"t1", "t2"}, []string{"t1", "t2", "old"}
		case 1:
			return []string{"t2"}, []string{"t1", "t2"}
		case 2:
			return nil, []string{"t1"}
		}
		return []string{"new"}, []string{"new"}
	}}
	host := serve(t, d)
	code, out, errs := run(t, host, "stack", "rm", "shop")
	want := "service shop_web removed\nshop_web 0 of 3: tasks ended\nshop_web 1 of 3: tasks ended\nshop_web 2 of 3: tasks ended\nshop_web 3 of 3: tasks ended\nstack shop is gone\n"
	if code != 0 || out != want || errs != "" || d.looks != 4 {
		t.Errorf("exit code %d after %d looks, %q %q", code, d.looks, out, errs)
	}
	if code, out, errs := run(t, host, "stack", "rm", "-q", "--detach", "shop"); code != 0 || out+errs != "" || d.looks != 4 {
		t.Errorf("--detach: exit code %d after %d looks, %q %q", code, d.looks, out, errs)
	}
	d.left = func(int) (tasks, containers []string) { return []string{"t1"}, nil }
	code, _, errs = run(t, host, "stack", "rm", "-q", "--timeout", "1ms", "shop")
	if code != 3 || !strings.Contains(errs, "stack shop is removed, but not all of its tasks have ended after 1ms\nskep: service shop_web: 0 of 1: tasks ended") {
		t.Errorf("--timeout: exit code %d, %q", code, errs)
	}
}
