package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"
)

// traffic asks a URL again and again, from several connections at once.
type traffic struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	asked  int
	failed int
	last   error // of the last failure
}

func (t *traffic) stop() {
	t.cancel()
	t.wg.Wait()
}

// trafficCommand is the script command
//
//	traffic start [-again] URL   begin; with -again a refused connection is tried again
//	                             for a second: a task may run before it listens
//	traffic stop        end, and print "N requests, M failed"; fail when M is not 0
func trafficCommand(_ context.Context, s *story, args []string) (string, error) {
	switch {
	case (len(args) == 2 || len(args) == 3 && args[1] == "-again") && args[0] == "start" && s.traffic == nil:
		ctx, cancel := context.WithCancel(context.Background())
		url, patience := args[len(args)-1], time.Duration(0)
		if len(args) == 3 {
			patience = time.Second
		}
		t := &traffic{cancel: cancel}
		s.traffic = t
		client := s.client.HTTPClient()
		client.Timeout = 10 * time.Second
		for range 2 {
			t.wg.Go(func() {
				for ctx.Err() == nil {
					_, err := get(ctx, client, url)
					for begun := time.Now(); errors.Is(err, syscall.ECONNREFUSED) && time.Since(begun) < patience; {
						_, err = get(ctx, client, url)
					}
					if ctx.Err() != nil {
						return // ours, not the server's
					}
					t.mu.Lock()
					t.asked++
					if err != nil {
						t.failed++
						t.last = err
					}
					t.mu.Unlock()
					// A rate that leaves the two cores to what is tested.
					select {
					case <-ctx.Done():
					case <-time.After(5 * time.Millisecond):
					}
				}
			})
		}
		return "", nil
	case len(args) == 1 && args[0] == "stop" && s.traffic != nil:
		t := s.traffic
		s.traffic = nil
		t.stop()
		out := fmt.Sprintf("%d requests, %d failed\n", t.asked, t.failed)
		if t.asked == 0 {
			return out, errors.New("no request was made")
		}
		if t.failed > 0 {
			return out, fmt.Errorf("requests failed, the last one: %w", t.last)
		}
		return out, nil
	}
	return "", errors.New("want start [-again] URL, or stop after that")
}

// connCommand is the script command
//
//	conn open NAME ADDRESS   connect to an echo server of the tiny image
//	conn check NAME          send a line over that connection and get it back
func connCommand(ctx context.Context, s *story, args []string) (string, error) {
	switch {
	case len(args) == 3 && args[0] == "open":
		c, err := s.client.Dial(ctx, "tcp", args[2])
		if err != nil {
			return "", err
		}
		s.conns[args[1]] = c
		return readLine(c)
	case len(args) == 2 && args[0] == "check" && s.conns[args[1]] != nil:
		c := s.conns[args[1]]
		if _, err := io.WriteString(c, "still there\n"); err != nil {
			return "", err
		}
		return readLine(c)
	}
	return "", errors.New("want open NAME ADDRESS, or check NAME")
}

func readLine(c net.Conn) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	var line []byte
	for b := make([]byte, 1); len(line) < 4096; {
		if _, err := c.Read(b); err != nil {
			return string(line), err
		}
		line = append(line, b[0])
		if b[0] == '\n' {
			break
		}
	}
	return string(line), nil
}

// A watch counts a service's running tasks again and again.
type watch struct {
	cancel      context.CancelFunc
	wg          sync.WaitGroup
	looks       int
	least, most int
	problem     error
}

func (w *watch) stop() {
	w.cancel()
	w.wg.Wait()
}

// watchCommand is the script command
//
//	watch start NAME   begin to count the running tasks of a service
//	watch stop         end, and print "least L most M" of what was seen
func watchCommand(_ context.Context, s *story, args []string) (string, error) {
	switch {
	case len(args) == 2 && args[0] == "start" && s.watch == nil:
		ctx, cancel := context.WithCancel(context.Background())
		w := &watch{cancel: cancel, least: -1}
		s.watch = w
		w.wg.Go(func() {
			for ctx.Err() == nil {
				if err := w.look(ctx, s, args[1]); err != nil && ctx.Err() == nil {
					w.problem = err
				}
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
		return "", nil
	case len(args) == 1 && args[0] == "stop" && s.watch != nil:
		w := s.watch
		s.watch = nil
		w.stop()
		out := fmt.Sprintf("least %d most %d of %d looks\n", w.least, w.most, w.looks)
		if w.problem == nil && w.looks < 5 {
			w.problem = errors.New("too few looks")
		}
		return out, w.problem
	}
	return "", errors.New("want start NAME, or stop after that")
}

func (w *watch) look(ctx context.Context, s *story, name string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dialSocket(ctx) }}}
	text, err := get(ctx, &client, "http://skep/services?status=true&filters="+url.QueryEscape(`{"name":["`+name+`"]}`))
	if err != nil {
		return err
	}
	var services []struct{ ServiceStatus struct{ RunningTasks int } }
	if err := json.Unmarshal([]byte(text), &services); err != nil {
		return err
	}
	if len(services) != 1 {
		return fmt.Errorf("there are %d services %s", len(services), name)
	}
	n := services[0].ServiceStatus.RunningTasks
	if w.looks++; w.least < 0 || n < w.least {
		w.least = n
	}
	w.most = max(w.most, n)
	return nil
}

// hostCommand is the script command
//
//	host crash      the node dies with all its processes
//	host poweroff   the same, in silence: nothing more comes from it
//	host boot       it comes back: files are there, /run and the exec root are empty
//	host unplug     its cable is pulled
//	host plug       and put back
func hostCommand(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("want crash, poweroff, boot, unplug or plug")
	}
	switch args[0] {
	case "crash", "poweroff":
		end := s.node.Crash
		if args[0] == "poweroff" {
			end = s.node.PowerLoss
		}
		if err := end(); err != nil {
			return "", err
		}
		if s.daemon != nil {
			<-s.ended
			s.daemon = nil
		}
		return "", os.RemoveAll(s.exec())
	case "boot":
		return "", s.node.Boot(ctx)
	case "unplug":
		return "", s.node.LinkDown()
	case "plug":
		return "", s.node.LinkUp()
	}
	return "", fmt.Errorf("unknown: host %s", args[0])
}
