package test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
)

// loadCommand is the script command
//
//	load start NAME [-rate N] [-for DURATION] FROM URL   begin N new connections a second
//	load stop NAME [-burst DURATION]                     end, when it has lasted so long; print figures
//
// FROM is "client", the client host with each of its addresses in turn, or the name of a service, all of whose running
// tasks are clients then. A name in the URL is asked for again with each request, of the task's own resolver.
// stop fails when a request failed (with -burst, when failures lie further apart than that), and when the
// machine did not manage nine tenths of the rate.
func loadCommand(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("want start NAME … or stop NAME …")
	}
	name := args[1]
	switch l := s.loads[name]; {
	case args[0] == "start" && l == nil:
		l, err := newLoad(ctx, s, args[2:])
		if err != nil {
			return "", err
		}
		s.loads[name] = l
		l.start()
		return "", nil
	case args[0] == "stop" && l != nil:
		flags := flag.NewFlagSet("load stop", flag.ContinueOnError)
		burst := flags.Duration("burst", 0, "")
		if err := flags.Parse(args[2:]); err != nil {
			return "", err
		}
		select {
		case <-time.After(time.Until(l.begun.Add(l.least))):
		case <-ctx.Done():
		}
		delete(s.loads, name)
		l.stop()
		return l.report(), l.judge(*burst)
	}
	return "", fmt.Errorf("load %s %s: unknown, or already so", args[0], name)
}

const (
	loadPatience = 10 * time.Second // of one request
	// loadFlying bounds the requests under way; each may hold a thread while it connects.
	loadFlying = 400
)

// load makes new connections at a rate, one request on each.
type load struct {
	url     *url.URL
	rate    int // a second
	least   time.Duration
	clients []loadClient
	begun   time.Time
	took    time.Duration
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu          sync.Mutex
	asked       int
	failures    map[string]int // by reason
	first, last time.Time      // failures
	slowest     time.Duration
	replicas    map[string]int // answers, by host name
	seen        map[netip.Addr]int
}

// loadClient is where connections come from.
type loadClient struct {
	place *lab.Place
	addr  netip.Addr // the zero Addr: whatever the route says
}

func newLoad(ctx context.Context, s *story, args []string) (_ *load, err error) {
	l := &load{failures: map[string]int{}, replicas: map[string]int{}, seen: map[netip.Addr]int{}}
	flags := flag.NewFlagSet("load start", flag.ContinueOnError)
	flags.IntVar(&l.rate, "rate", 100, "")
	flags.DurationVar(&l.least, "for", 0, "")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() != 2 || l.rate < 1 || l.rate > 2000 {
		return nil, errors.New("want FROM and URL, and a rate of 1 to 2000")
	}
	if l.url, err = url.Parse(flags.Arg(1)); err != nil {
		return nil, err
	}
	if l.url.Scheme != "http" || l.url.Port() == "" {
		return nil, errors.New("want http://HOST:PORT/PATH")
	}
	if l.clients, err = s.loadClients(ctx, flags.Arg(0)); err != nil {
		return nil, err
	}
	if len(l.clients) == 0 {
		return nil, errors.New("there is nobody to ask")
	}
	return l, nil
}

func (s *story) loadClients(ctx context.Context, from string) ([]loadClient, error) {
	if from == "client" {
		out, err := s.client.Output(ctx, "ip", "-4", "-o", "address", "show", "dev", "eth0", "scope", "global")
		if err != nil {
			return nil, err
		}
		var list []loadClient
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			i := slices.Index(words, "inet")
			if i < 0 || i+1 >= len(words) {
				return nil, fmt.Errorf("an address without an address: %s", line)
			}
			prefix, err := netip.ParsePrefix(words[i+1])
			if err != nil {
				return nil, err
			}
			place, err := s.client.Place()
			if err != nil {
				return nil, errors.Join(err, closePlaces(list))
			}
			list = append(list, loadClient{place: place, addr: prefix.Addr()})
		}
		return list, nil
	}
	places, err := s.placesOf(ctx, from)
	var list []loadClient
	for _, p := range places {
		list = append(list, loadClient{place: p})
	}
	return list, err
}

// placesOf are the networks of a service's running tasks.
func (s *story) placesOf(ctx context.Context, service string) ([]*lab.Place, error) {
	text, err := pids(ctx, s, []string{service})
	if err != nil {
		return nil, err
	}
	var list []*lab.Place
	for line := range strings.Lines(text) {
		var id string
		var pid int
		if _, err := fmt.Sscan(line, &id, &pid); err != nil || pid <= 0 {
			return nil, fmt.Errorf("a task without a process: %q", line)
		}
		place, err := s.node.PlaceOf(pid)
		if err != nil {
			for _, p := range list {
				err = errors.Join(err, p.Close())
			}
			return nil, err
		}
		list = append(list, place)
	}
	return list, nil
}

func closePlaces(list []loadClient) (err error) {
	for _, c := range list {
		err = errors.Join(err, c.place.Close())
	}
	return err
}

func (l *load) start() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.begun = cancel, time.Now()
	flying := make(chan struct{}, loadFlying)
	l.wg.Go(func() {
		for i := 0; ; i++ {
			// One that comes late makes the next ones come sooner.
			due := l.begun.Add(time.Duration(i) * time.Second / time.Duration(l.rate))
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(due)):
			}
			select {
			case <-ctx.Done():
				return
			case flying <- struct{}{}:
			}
			l.wg.Go(func() {
				defer func() { <-flying }()
				l.one(l.clients[i%len(l.clients)])
			})
		}
	})
}

// stop begins no more requests and waits for those under way.
func (l *load) stop() {
	l.cancel()
	l.took = time.Since(l.begun)
	l.wg.Wait()
	_ = closePlaces(l.clients) // nothing was written to them
}

// one makes a request on a connection of its own, and only one.
func (l *load) one(c loadClient) {
	ctx, cancel := context.WithTimeout(context.Background(), loadPatience)
	defer cancel()
	begun := time.Now()
	replica, seen, err := l.ask(ctx, c)
	took := time.Since(begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	l.slowest = max(l.slowest, took)
	if err != nil {
		l.failures[reason(err)]++
		if l.first.IsZero() || begun.Before(l.first) {
			l.first = begun
		}
		if begun.After(l.last) {
			l.last = begun
		}
		return
	}
	l.replicas[replica]++
	l.seen[seen]++
}

// reason is an error without what differs from one request to the next.
func reason(err error) string {
	var op *net.OpError
	var errno syscall.Errno
	switch {
	case errors.As(err, &op) && errors.As(err, &errno):
		return op.Op + ": " + errno.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	return err.Error()
}

func (l *load) ask(ctx context.Context, c loadClient) (replica string, seen netip.Addr, err error) {
	host := l.url.Hostname()
	if _, err := netip.ParseAddr(host); err != nil {
		if host, err = lookUp(ctx, c, host); err != nil {
			return "", seen, err
		}
	}
	conn, err := c.place.Dial(ctx, "tcp", c.addr, net.JoinHostPort(host, l.url.Port()))
	if err != nil {
		return "", seen, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", seen, err
		}
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", l.url.RequestURI(), l.url.Host); err != nil {
		return "", seen, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", seen, fmt.Errorf("reading the answer: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", seen, fmt.Errorf("reading the body: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", seen, errors.New(resp.Status)
	}
	return whoAnswered(string(body))
}

// whoAnswered reads the test server's answer: its host name, and whom it saw.
func whoAnswered(body string) (replica string, seen netip.Addr, err error) {
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "hostname: "); ok {
			replica = rest
		}
		if rest, ok := strings.CutPrefix(line, "client: "); ok {
			port, err := netip.ParseAddrPort(rest)
			if err != nil {
				return "", seen, err
			}
			seen = port.Addr().Unmap()
		}
	}
	if replica == "" || !seen.IsValid() {
		return "", seen, errors.New("the answer is not the test server's")
	}
	return replica, seen, nil
}

// lookUp asks the task's resolver for an address.
func lookUp(ctx context.Context, c loadClient, name string) (string, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.place.Dial(ctx, network, netip.Addr{}, "127.0.0.11:53")
	}}
	addrs, err := r.LookupNetIP(ctx, "ip4", name+".")
	if err != nil {
		return "", fmt.Errorf("looking up: %w", err)
	}
	return addrs[0].String(), nil
}

func (l *load) failed() (n int) {
	for _, m := range l.failures {
		n += m
	}
	return n
}

func (l *load) report() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests in %.1fs, %.0f/s, %d failed, %d replicas answered %d clients, slowest %v\n",
		l.asked, l.took.Seconds(), float64(l.asked)/l.took.Seconds(), l.failed(), len(l.replicas), len(l.seen), l.slowest.Round(time.Millisecond))
	for _, why := range slices.Sorted(maps.Keys(l.failures)) {
		fmt.Fprintf(&b, "failed %d: %s\n", l.failures[why], why)
	}
	if l.failed() > 0 {
		fmt.Fprintf(&b, "failures from %v to %v\n", l.first.Sub(l.begun).Round(time.Millisecond), l.last.Sub(l.begun).Round(time.Millisecond))
	}
	for _, name := range slices.Sorted(maps.Keys(l.replicas)) {
		fmt.Fprintf(&b, "replica %s %d\n", name, l.replicas[name])
	}
	for _, a := range slices.SortedFunc(maps.Keys(l.seen), netip.Addr.Compare) {
		fmt.Fprintf(&b, "client %s %d\n", a, l.seen[a])
	}
	return b.String()
}

func (l *load) judge(burst time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	switch n := l.failed(); {
	case n > 0 && burst == 0:
		err = fmt.Errorf("%d requests failed", n)
	case n > 0 && l.last.Sub(l.first) > burst:
		err = fmt.Errorf("%d requests failed, over %v", n, l.last.Sub(l.first))
	case n > 0 && n == l.asked:
		err = errors.New("every request failed")
	}
	if made := float64(l.asked) / l.took.Seconds(); made < 0.9*float64(l.rate) {
		err = errors.Join(err, fmt.Errorf("this machine made %.0f connections/s of %d: too few to tell", made, l.rate))
	}
	return err
}
