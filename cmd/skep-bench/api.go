package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// pollEvery is how often the state is asked for: often enough for the figures, rarely
// enough not to become part of them.
const pollEvery = 25 * time.Millisecond

// api is the little of Docker's API that the benchmark needs.
type api struct{ client *http.Client }

func newAPI(socket string) *api {
	return &api{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}}
}

// call sends a request; body is sent as JSON unless it is a reader. A status of 400
// and above is an error.
func (a *api) call(ctx context.Context, method, path string, body, answer any) error {
	var in io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		in, kind = b, "application/x-tar"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://api/v1.44"+path, in)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(text)))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

func (a *api) load(ctx context.Context, tar string) error {
	f, err := os.Open(tar)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.call(ctx, http.MethodPost, "/images/load?quiet=1", f, nil)
}

func (a *api) create(ctx context.Context, name string, replicas int) (string, error) {
	spec := map[string]any{
		"Name": name,
		"Mode": map[string]any{"Replicated": map[string]any{"Replicas": replicas}},
		"TaskTemplate": map[string]any{
			"ContainerSpec": map[string]any{"Image": "tiny:1"},
			"RestartPolicy": map[string]any{"Condition": "none"},
		},
	}
	var made struct{ ID string }
	err := a.call(ctx, http.MethodPost, "/services/create", spec, &made)
	return made.ID, err
}

// awaitRunning waits until n tasks of the service run.
func (a *api) awaitRunning(ctx context.Context, id string, n int) error {
	path := "/services?status=true&filters=" + filter("id", id)
	return a.poll(ctx, fmt.Sprintf("%d tasks run", n), func() (bool, error) {
		var services []struct{ ServiceStatus struct{ RunningTasks int } }
		err := a.call(ctx, http.MethodGet, path, nil, &services)
		return err == nil && len(services) == 1 && services[0].ServiceStatus.RunningTasks == n, err
	})
}

func (a *api) remove(ctx context.Context, id string) error {
	return a.call(ctx, http.MethodDelete, "/services/"+id, nil, nil)
}

// awaitGone waits until the service has no container left.
func (a *api) awaitGone(ctx context.Context, id string) error {
	path := "/containers/json?all=1&filters=" + filter("label", "com.docker.swarm.service.id="+id)
	return a.poll(ctx, "no container is left", func() (bool, error) {
		var left []json.RawMessage
		err := a.call(ctx, http.MethodGet, path, nil, &left)
		return err == nil && len(left) == 0, err
	})
}

// profile writes a CPU profile of the next seconds.
func (a *api) profile(ctx context.Context, seconds int, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://api/debug/pprof/profile?seconds=%d", seconds), nil)
	if err != nil {
		return err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for a profile: %s", resp.Status)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}

func filter(key, value string) string {
	return url.QueryEscape(fmt.Sprintf(`{%q:{%q:true}}`, key, value))
}

func (a *api) poll(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(pollEvery):
		}
	}
}
