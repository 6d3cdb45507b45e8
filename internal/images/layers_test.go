package images_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/images/imagetest"
	"github.com/skep-swarm/skep/internal/testimage"
)

func pack(t *testing.T, headers []tar.Header) []byte {
	t.Helper()
	b, err := testimage.Tar(0o777, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// layered is an archive as docker save makes it of an image with some layers.
func layered(t *testing.T, name string, layers ...[]tar.Header) []byte {
	t.Helper()
	var ids, files []string
	out := []tar.Header{}
	for i, headers := range layers {
		layer := pack(t, headers)
		sum := sha256.Sum256(layer)
		ids = append(ids, "sha256:"+hex.EncodeToString(sum[:]))
		files = append(files, "layer"+string(rune('0'+i))+".tar")
		out = append(out, tar.Header{Name: files[i], Uname: string(layer)})
	}
	config, err := json.Marshal(map[string]any{"architecture": goruntime.GOARCH, "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": files}})
	if err != nil {
		t.Fatal(err)
	}
	return pack(t, append(out, tar.Header{Name: "config.json", Uname: string(config)}, tar.Header{Name: "manifest.json", Uname: string(manifest)}))
}

// Whatever the layers of an image say, nothing of the host is written to, linked or removed.
func TestLoadHostileLayers(t *testing.T) {
	s := store(t, nil)
	top, err := os.MkdirTemp("/tmp", "host") // not below the image's place, and short enough for a link in a tar
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	canary := filepath.Join(top, "canary")
	if err := os.WriteFile(canary, []byte("the host's"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 30) + top[1:]
	link := func(to string) []tar.Header {
		return []tar.Header{{Name: "out", Typeflag: tar.TypeSymlink, Linkname: to}}
	}
	through := func(name string) []tar.Header { return []tar.Header{{Name: "out/" + name, Uname: "x"}} }
	for name, layers := range map[string][][]tar.Header{
		"absolute-link":     {link(top), through("canary")},
		"relative-link":     {link(up), through("planted")},
		"link-in-one-layer": {append(link(top), through("canary")...)},
		"link-to-parent":    {link(filepath.Dir(top)), {{Name: "out/" + filepath.Base(top) + "/canary", Uname: "x"}}},
		"dots":              {{{Name: up + "/planted", Uname: "x"}}},
		"dots-behind":       {{{Name: "a/" + up + "/planted", Uname: "x"}}},
		"absolute":          {{{Name: canary, Uname: "x"}}},
		"directory-by-link": {link(top), {{Name: "out", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "out/planted", Uname: "x"}}},
		"mode-by-link":      {{{Name: "out", Typeflag: tar.TypeSymlink, Linkname: canary, Mode: 0o777, Uid: 5, Gid: 5}}},
		"hard-link-out":     {{{Name: "h", Typeflag: tar.TypeLink, Linkname: up + "/canary"}, {Name: "h", Uname: "x"}}},
		"hard-link-by-link": {link(top), {{Name: "h", Typeflag: tar.TypeLink, Linkname: "out/canary"}, {Name: "h", Uname: "x"}}},
		"hard-link-to-link": {{{Name: "out", Typeflag: tar.TypeSymlink, Linkname: canary}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "out"}, {Name: "h", Typeflag: tar.TypeReg, Size: 0}}},
		"whiteout-by-link":  {link(top), through(".wh.canary")},
		"opaque-by-link":    {link(top), through(".wh..wh..opq")},
		"whiteout-of-up":    {{{Name: "a/.wh...", Uname: ""}, {Name: ".wh...", Uname: ""}}},
		"whiteout-of-self":  {{{Name: "a/.wh..", Uname: ""}, {Name: ".wh..", Uname: ""}}},
		"whiteout-of-dots":  {{{Name: up + "/.wh.canary", Uname: ""}}},
		"the-root-a-link":   {{{Name: "./", Typeflag: tar.TypeSymlink, Linkname: top}, {Name: "planted", Uname: "x"}}},
		"device":            {link(top), {{Name: "out/planted", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}},
	} {
		var said bytes.Buffer
		err := s.Load(t.Context(), bytes.NewReader(layered(t, name+":1", layers...)), &said)
		t.Logf("%s: %v", name, err)
		entries, rerr := os.ReadDir(top)
		body, berr := os.ReadFile(canary)
		var st unix.Stat_t
		serr := unix.Lstat(canary, &st)
		if rerr != nil || berr != nil || serr != nil || len(entries) != 1 || string(body) != "the host's" || st.Nlink != 1 || st.Uid != 0 || st.Mode != unix.S_IFREG|0o600 {
			t.Fatalf("%s changed the host: %v, %q, %d links, user %d, mode %o (%v, %v, %v)", name, entries, body, st.Nlink, st.Uid, st.Mode, rerr, berr, serr)
		}
		if (err == nil) != strings.Contains(said.String(), "Loaded image: "+name+":1") {
			t.Errorf("%s: %v, but it said %q", name, err, said.String())
		}
	}
	if got := load(t, s, imagetest.Archive(t, []string{"good:1"}, small(), imagetest.Config{})); !strings.Contains(got, "Loaded image: good:1") {
		t.Errorf("a good image afterwards: %q", got)
	}
}
