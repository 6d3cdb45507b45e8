package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
)

func TestMain(m *testing.M) {
	lab.Dispatch()
	os.Exit(m.Run())
}

func save(t *testing.T, img Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := img.Save(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entries reads a tar into memory.
func entries(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = content
	}
}

func TestSave(t *testing.T) {
	img := Tiny("tiny:7", []byte("program"))
	raw := save(t, img)
	if !bytes.Equal(raw, save(t, Tiny("tiny:7", []byte("program")))) {
		t.Error("the same image came out as other bytes")
	}
	files := entries(t, bytes.NewReader(raw))
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || manifest[0].RepoTags[0] != "tiny:7" || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest %+v", manifest)
	}
	if want := digest(files[manifest[0].Config]) + ".json"; manifest[0].Config != want {
		t.Errorf("config is named %s, its hash is %s", manifest[0].Config, want)
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		Config Config
	}
	if err := json.Unmarshal(files[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	layer := files[manifest[0].Layers[0]]
	if config.RootFS.DiffIDs[0] != "sha256:"+digest(layer) {
		t.Error("the layer's digest is not its content's")
	}
	if config.Config.Entrypoint[0] != "/testserver" {
		t.Errorf("config %+v", config.Config)
	}
	in := entries(t, bytes.NewReader(layer))
	if string(in["testserver"]) != "program" {
		t.Errorf("the layer holds %v", in)
	}
	if _, ok := in["etc/"]; !ok {
		t.Error("a parent directory was not made")
	}
}

func TestSaveRefusesPathsThatLeadOut(t *testing.T) {
	err := Image{Ref: "x:1", Files: []File{{Path: "../x", Mode: 0o644}}}.Save(io.Discard)
	if err == nil {
		t.Error("want an error")
	}
	err = Image{Ref: "x:1", Files: []File{{Path: "x", Mode: fs.ModeNamedPipe}}}.Save(io.Discard)
	if err == nil {
		t.Error("want an error for a named pipe")
	}
}

func TestCacheMakesOnce(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed: apt-get install busybox-static")
	}
	c := Cache{Dir: filepath.Join(t.TempDir(), "cache"), Source: "../.."}
	one, err := c.Tar(t.Context(), "busybox")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(one)
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.Tar(t.Context(), "busybox")
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(two)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the second call made the image again")
	}
	if _, err := c.Tar(t.Context(), "no-such"); err == nil || !strings.Contains(err.Error(), "nginx") {
		t.Errorf("an unknown kind: %v", err)
	}
}

// unpack writes the files of an image into a directory, to run it without a runtime.
func unpack(t *testing.T, img Image, root string) {
	t.Helper()
	for _, f := range img.Files {
		path := filepath.Join(root, f.Path)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			switch {
			case f.Mode.IsDir():
				err = os.MkdirAll(path, f.Mode.Perm())
			case f.Mode&fs.ModeSymlink != 0:
				err = os.Symlink(f.Link, path)
			default:
				err = os.WriteFile(path, f.Data, f.Mode.Perm())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// runImage runs an image's program in a chroot on a host of a lab, and returns what a
// GET of the URL answers once it is up.
func runImage(t *testing.T, img Image, url string, command ...string) string {
	t.Helper()
	return runUntil(t, img, func(ctx context.Context, h *lab.Host) (string, error) { return fetch(ctx, h.HTTPClient(), url) }, command...)
}

// runUntil does so until ask gets an answer.
func runUntil(t *testing.T, img Image, ask func(context.Context, *lab.Host) (string, error), command ...string) string {
	t.Helper()
	if err := lab.Available(); err != nil {
		t.Skip("needs a lab: ", err)
	}
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := l.AddHost(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, img, root)
	script := `mkdir -p $0/dev $0/proc && mount --rbind /dev $0/dev && mount -t proc proc $0/proc && exec chroot $0 "$@"`
	cmd := h.Command(t.Context(), "sh", append([]string{"-c", script, root}, command...)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		body, err := ask(ctx, h)
		if err == nil {
			return body
		}
		select {
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("never answered: %v\n%s", err, log.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestNginxServes(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get here, so no nginx from Debian's packages")
	}
	img, err := Nginx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if size := len(save(t, img)); size > 20<<20 {
		t.Errorf("the image is %d MB", size>>20)
	}
	if got := runImage(t, img, "http://127.0.0.1:80/", img.Config.Cmd...); !strings.Contains(got, "Hello from nginx") || !strings.Contains(got, " in web, to 127.0.0.1") {
		t.Errorf("it answers %q", got)
	}
}

func TestTinyServes(t *testing.T) {
	c := Cache{Dir: t.TempDir(), Source: "../.."}
	server, err := c.program(t.Context(), "testserver")
	if err != nil {
		t.Fatal(err)
	}
	img := Tiny(TinyRef, server)
	if got := runImage(t, img, "http://[::1]:8080/", img.Config.Entrypoint...); !strings.Contains(got, "hostname: web\n") || !strings.Contains(got, "client: [::1]:") {
		t.Errorf("it answers %q", got)
	}
}
