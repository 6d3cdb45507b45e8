package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestChanges(t *testing.T) {
	w := newWorld(t)
	at := func(name string) string { return filepath.Join(w.host, "layers", name) }
	dirs := map[string][]*os.File{}
	for _, d := range []string{"up/etc", "up/new/sub", "up/opaque", "up/touched", "up/run", "high/opaque", "high/etc", "low/etc", "low/opaque/b", "low/touched", "low/hidden", "low/gone"} {
		w.must(os.MkdirAll(at(d), 0o755))
	}
	for name, text := range map[string]string{
		"up/etc/passwd": "x", "up/etc/added": "x", "up/etc/hosts": "", "up/new/sub/f": "x", "up/opaque/a": "x", "up/etc/twice": "x", "up/run/resolv": "",
		"low/etc/passwd": "x", "low/etc/twice": "x", "low/opaque/a": "x", "low/opaque/c": "x", "low/gone/f": "x", "high/opaque/d": "x", "low/run": "",
	} {
		w.must(os.MkdirAll(filepath.Dir(at(name)), 0o755))
		w.must(os.WriteFile(at(name), []byte(text), 0o644))
	}
	for _, name := range []string{"up/gone", "high/etc/twice", "up/etc/removed"} {
		w.must(unix.Mknod(at(name), unix.S_IFCHR, 0))
	}
	w.must(os.Symlink(w.host+"/secret", at("up/link")))
	if err := unix.Setxattr(at("up/opaque"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Skipf("no trusted attributes here: %v", err)
	}
	for _, d := range []string{"up", "high", "low"} {
		f, err := os.Open(at(d))
		w.must(err)
		defer f.Close()
		dirs[d] = append(dirs[d], f)
	}
	lower := []*os.File{dirs["high"][0], dirs["low"][0]}
	got, err := Changes(context.Background(), dirs["up"][0], lower, []string{"/etc/hosts", "/run/resolv/"})
	w.must(err)
	var lines []string
	for _, c := range got {
		lines = append(lines, fmt.Sprint(c.Kind, c.Path))
	}
	const want = "0/etc 1/etc/added 0/etc/passwd 2/etc/removed 1/etc/twice 2/gone 1/link 1/new 1/new/sub 1/new/sub/f 0/opaque 0/opaque/a 2/opaque/b 2/opaque/c 2/opaque/d 0/touched"
	if text := strings.Join(lines, " "); text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Changes(ended, dirs["up"][0], lower, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended client: %v", err)
	}
	w.must(os.MkdirAll(filepath.Join(at("up"), strings.Repeat("d/", maxDepth+2)), 0o755))
	if _, err := Changes(context.Background(), dirs["up"][0], lower, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("too deep: %v", err)
	}
}
