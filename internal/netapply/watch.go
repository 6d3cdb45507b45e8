package netapply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// Times of the watch. What was removed is back within settle, or spacing when
// something was mended just before, and the time that mending takes.
const (
	settle   = 30 * time.Millisecond  // after the first change, so that a series is mended once
	spacing  = 100 * time.Millisecond // between two passes
	retry    = time.Second            // after a pass that failed, doubled up to slow
	slow     = 15 * time.Second
	fullScan = 2 * time.Minute // for what no notification tells, such as sysctls
)

// dirt is what may be wrong.
type dirt struct {
	filters bool         // nftables
	links   bool         // host link and sandbox
	mounts  bool         // namespace files
	spaces  map[int]bool // namespaces of tasks and networks, by the gateway sandbox's number for them
	tables  map[int]bool // those of tasks whose rules were changed
	all     bool
}

func (d *dirt) any() bool {
	return d.filters || d.links || d.mounts || d.all || len(d.spaces)+len(d.tables) > 0
}

func (d *dirt) merge(o dirt) {
	d.filters, d.links = d.filters || o.filters, d.links || o.links
	d.mounts, d.all = d.mounts || o.mounts, d.all || o.all
	if len(o.spaces) > 0 && d.spaces == nil {
		d.spaces = map[int]bool{}
	}
	maps.Copy(d.spaces, o.spaces)
	if len(o.tables) > 0 && d.tables == nil {
		d.tables = map[int]bool{}
	}
	maps.Copy(d.tables, o.tables)
}

// A watch collects dirt.
type watch struct {
	n    *Network
	mu   sync.Mutex
	dirt dirt
	ring chan struct{}
	wg   sync.WaitGroup
	fail chan error
	wait time.Duration // after the last failure
}

func (w *watch) mark(o dirt) {
	w.mu.Lock()
	w.dirt.merge(o)
	w.mu.Unlock()
	select {
	case w.ring <- struct{}{}:
	default:
	}
}

func (w *watch) take() dirt {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dirt
	w.dirt = dirt{}
	return d
}

// Run watches the kernel and mends what others take away, until ctx ends. It
// returns nil then, and an error when it can no longer watch. Before the first
// Sync it waits for it.
func (n *Network) Run(ctx context.Context) error {
	w := &watch{n: n, ring: make(chan struct{}, 1), fail: make(chan error, 8)}
	defer w.wg.Wait()
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch the network: %w", err)
	}
	defer unix.Close(stop)
	w.spawn(func() error { return watchMounts(stop, func() { w.mark(dirt{mounts: true}) }) })
	defer w.wg.Wait()
	defer func() { _, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }()

	var monitors []*monitor
	closeAll := func() {
		for _, m := range monitors {
			m.close()
		}
		monitors = nil
	}
	defer closeAll()
	n.reopen() // a Run before this one may have taken the news
	full := time.NewTicker(fullScan)
	defer full.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.fail:
			return err
		case <-n.wake:
			closeAll()
			if monitors, err = w.listen(); err != nil {
				return err
			}
			// What happened before we listened was not heard.
			w.mark(dirt{all: true})
			continue
		case <-full.C:
			w.mark(dirt{all: true})
			continue
		case <-w.ring:
		}
		if !pause(ctx, settle) {
			return nil
		}
		rest := w.round(ctx)
		if !pause(ctx, rest) {
			return nil
		}
	}
}

// round mends what may be wrong and returns how long to rest.
func (w *watch) round(ctx context.Context) time.Duration {
	d := w.take()
	if !d.any() {
		return 0
	}
	changes, err := w.n.mend(ctx, d)
	if ctx.Err() != nil {
		return 0
	}
	rest := spacing
	if err != nil {
		w.wait = min(max(retry, 2*w.wait), slow)
		rest = w.wait
		w.mark(d)
	} else {
		w.wait = 0
	}
	if w.n.cfg.OnRepair != nil && (changes > 0 || err != nil) {
		w.n.cfg.OnRepair(fmt.Sprintf("%d changes to the node's networks", changes), err)
	}
	return rest
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *watch) spawn(f func() error) {
	w.wg.Go(func() {
		if err := f(); err != nil {
			select {
			case w.fail <- err:
			default:
			}
		}
	})
}

// listen opens the monitors of the namespaces as they are now.
func (w *watch) listen() ([]*monitor, error) {
	n := w.n
	n.state.RLock()
	defer n.state.RUnlock()
	if n.gw == nil || n.host == nil {
		return nil, nil
	}
	link, gwPort := n.node.HostLink(), n.gwFW.port
	var out []*monitor
	for _, v := range []struct {
		fd, proto int
		groups    []int
		all       bool
		prog      []unix.SockFilter
		each      func(event)
	}{
		{n.host.fd, unix.NETLINK_ROUTE, rtGroups, false, onlyRemovals(), func(e event) {
			if relevantHost(e, link, int(n.hostIndex.Load())) {
				w.mark(dirt{links: true})
			}
		}},
		{n.gw.fd, unix.NETLINK_ROUTE, rtGroups, true, onlyRemovals(), func(e event) {
			switch {
			case !relevantGateway(e), e.typ == unix.RTM_DELLINK && !n.known(parseLink(e.body).name):
			case e.nsid >= 0:
				w.mark(dirt{spaces: map[int]bool{e.nsid: true}})
			default:
				w.mark(dirt{links: true})
			}
		}},
		{n.host.fd, unix.NETLINK_NETFILTER, []int{groupNFTables}, false, ignoreSender(n.hostFW.port), func(e event) {
			if relevantFilter(e, link) {
				w.mark(dirt{filters: true})
			}
		}},
		{n.gw.fd, unix.NETLINK_NETFILTER, []int{groupNFTables}, true, ignoreSender(nfPort), func(e event) {
			switch {
			case e.nsid < 0 && e.port == gwPort, !relevantFilter(e, link):
			case e.nsid >= 0:
				w.mark(dirt{tables: map[int]bool{e.nsid: true}})
			default:
				w.mark(dirt{filters: true})
			}
		}},
	} {
		m, err := openMonitor(v.fd, v.proto, v.groups, v.all, v.prog)
		if err != nil {
			for _, o := range out {
				o.close()
			}
			return nil, err
		}
		out = append(out, m)
		w.spawn(func() error { return m.run(v.each) })
	}
	return out, nil
}

// known tells whether a link of the sandbox is wanted: the ports of tasks that
// were removed go one after another.
func (n *Network) known(link string) bool {
	if !isPort(link) {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.tasks[link[1:]]
	return ok
}

// mend compares the parts that may be wrong with the plan.
func (n *Network) mend(ctx context.Context, d dirt) (int, error) {
	onlyMounts := d.mounts && !d.all && !d.links && !d.filters && len(d.spaces)+len(d.tables) == 0
	if onlyMounts && n.mountsOK() {
		return 0, nil // as after every container that starts on this host
	}
	n.state.Lock()
	defer n.state.Unlock()
	if !n.ready {
		return 0, nil
	}
	if d.all {
		return n.pass(ctx)
	}
	total, err := 0, os.MkdirAll(n.cfg.Dir, 0o755)
	if err != nil {
		return 0, fmt.Errorf("make namespace folder: %w", err)
	}
	if d.mounts || d.links {
		made, err := n.openGateway()
		if made > 0 || err != nil {
			total, err2 := n.pass(ctx)
			return made + total, errors.Join(err, err2)
		}
	}
	plan, err := netplan.Make(n.input())
	if err != nil {
		return 0, fmt.Errorf("gateway network: %w", err)
	}
	if d.mounts || d.links || len(d.spaces)+len(d.tables) > 0 {
		c, err := n.mendLinks(ctx, plan, d)
		total += c
		if err != nil {
			return total, err
		}
	}
	if d.filters {
		c, err := n.passFilters(ctx, plan)
		total += c
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// mountsOK tells whether every namespace file is in its place.
func (n *Network) mountsOK() bool {
	n.state.RLock()
	defer n.state.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ready {
		return true
	}
	for _, st := range n.tasks {
		if !isNS(n.Path(st.task)) {
			return false
		}
	}
	for num := range n.overlays {
		if !isNS(n.sandboxPath(num)) {
			return false
		}
	}
	return isNS(n.gatewayPath())
}
