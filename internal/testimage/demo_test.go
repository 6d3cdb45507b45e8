package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
)

func needDebian(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"apt-get", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here, so no image from Debian's packages", tool)
		}
	}
}

func TestDemoRedisServes(t *testing.T) {
	needDebian(t)
	img, err := DemoRedis(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw := save(t, img)
	if len(raw) > 25<<20 {
		t.Errorf("the image is %d MB", len(raw)>>20)
	}
	ping := func(ctx context.Context, h *lab.Host) (string, error) {
		c, err := h.Dial(ctx, "tcp", "127.0.0.1:6379")
		if err != nil {
			return "", err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return "", err
		}
		if _, err := io.WriteString(c, "PING\r\n"); err != nil {
			return "", err
		}
		answer := make([]byte, len("+PONG\r\n"))
		_, err = io.ReadFull(c, answer)
		return string(answer), err
	}
	if got := runUntil(t, img, ping, img.Config.Cmd...); got != "+PONG\r\n" {
		t.Errorf("it answers %q", got)
	}
	// Its program looks into what it serves, and a shell is there.
	names := map[string]*tar.Header{}
	in := tar.NewReader(bytes.NewReader(layerOf(t, raw)))
	for h, err := in.Next(); !errors.Is(err, io.EOF); h, err = in.Next() {
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = h
	}
	for _, name := range []string{"usr/bin/redis-server", "usr/bin/redis-cli", "bin/sh"} {
		if names[name] == nil {
			t.Errorf("the image has no %s", name)
		}
	}
	if d := names["data/"]; d == nil || d.Uid != redisUser || d.Gid != redisUser {
		t.Errorf("the data directory is %+v", d)
	}
}

// layerOf is the one layer of an image.
func layerOf(t *testing.T, raw []byte) []byte {
	t.Helper()
	for name, content := range entries(t, bytes.NewReader(raw)) {
		if strings.HasSuffix(name, "/layer.tar") {
			return content
		}
	}
	t.Fatal("no layer")
	return nil
}

func TestHealthcheckIsDockers(t *testing.T) {
	raw := save(t, DemoWeb("7", []byte("program")))
	for name, content := range entries(t, bytes.NewReader(raw)) {
		if !strings.HasSuffix(name, ".json") || name == "manifest.json" {
			continue
		}
		var config struct {
			Config struct {
				Healthcheck struct {
					Test                                          []string
					Interval, Timeout, StartPeriod, StartInterval int64
					Retries                                       int
				}
				User string
			}
		}
		if err := json.Unmarshal(content, &config); err != nil {
			t.Fatal(err)
		}
		if h := config.Config.Healthcheck; strings.Join(h.Test, " ") != "CMD /demoweb -health" || h.Interval != 5e9 || h.Timeout != 3e9 || h.StartInterval != 5e8 || h.Retries != 3 {
			t.Errorf("health check %+v", h)
		}
		if config.Config.User != "65534:65534" {
			t.Errorf("user %q", config.Config.User)
		}
		return
	}
	t.Fatal("no configuration")
}
