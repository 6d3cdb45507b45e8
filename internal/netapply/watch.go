package netapply

import (
	"context"
	"errors"
	"fmt"
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

// A watch collects dirt.
type watch struct {
	n    *Network
	mu   sync.Mutex
	dirt dirt
	ring chan struct{}
	wg   sync.WaitGroup
	fail chan error

	// Of Run's goroutine.
	later  dirt          // what could not be mended, until its time has come
	wait   time.Duration // after the last failure
	failed time.Time     // the last failure of a part
	timer  *time.Timer   // for later
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
	w := &watch{n: n, ring: make(chan struct{}, 1), fail: make(chan error, 8), timer: time.NewTimer(slow)}
	w.timer.Stop()
	defer w.timer.Stop()
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
		case <-w.timer.C:
			w.mark(w.later)
			w.later = dirt{}
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

// round mends what may be wrong and returns how long to rest. One network or task that cannot be mended is tried again
// later, or when something else of it is lost, but not at once; others do not wait for it. When it is the node itself,
// all do.
func (w *watch) round(ctx context.Context) time.Duration {
	d := w.take()
	if !d.any() {
		return 0
	}
	var hold dirt
	if since := time.Since(w.failed); since < retry && w.later.any() {
		hold = w.later
		w.later.merge(dirt{spaces: d.spaces, tables: d.tables}) // it may be about what is held
		w.timer.Reset(retry - since)
	}
	was := w.n.mtu()
	changes, err := w.n.mend(ctx, d, hold)
	if ctx.Err() != nil {
		return 0
	}
	rest := spacing
	switch _, whole := netplan.Parts(err); {
	case whole != nil:
		w.wait = min(max(retry, 2*w.wait), slow)
		rest = w.wait
		w.mark(d)
	case err != nil:
		w.wait = min(max(retry, 2*w.wait), slow)
		w.later.merge(failedParts(err))
		w.failed = time.Now()
		w.timer.Reset(w.wait)
	case !w.later.any():
		w.wait = 0
	}
	if w.n.cfg.OnRepair != nil && (changes > 0 || err != nil) {
		what := fmt.Sprintf("%d changes to the node's networks", changes)
		if now := w.n.mtu(); now != was {
			what += fmt.Sprintf(", which follow the host's MTU of %d", now)
		}
		w.n.cfg.OnRepair(what, err)
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
		{n.host.fd, unix.NETLINK_ROUTE, rtGroups, false, onlyRemovals(unix.RTM_NEWROUTE), func(e event) {
			if relevantUnderlay(e, n.wayOut.Load()) {
				w.mark(dirt{out: true})
			}
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

// known tells whether a link of a sandbox is wanted: the ports of tasks that
// were removed go one after another, and a VXLAN device that the kernel refuses
// may be there for a moment.
func (n *Network) known(link string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if isPort(link) {
		_, ok := n.tasks[link[1:]]
		return ok
	}
	for _, ov := range n.overlays {
		if isVXLAN(link) && netplan.VXLANLink(ov.bare().VNI) == link && ov.space != nil {
			return !ov.space.noVXLAN.Load()
		}
	}
	return true
}

// mend compares the parts that may be wrong with the plan, but for those in hold, unless they may suffer from something
// else than themselves.
func (n *Network) mend(ctx context.Context, d, hold dirt) (int, error) {
	onlyMounts := d.mounts && !d.all && !d.filters && !d.out && !d.inside()
	if onlyMounts && n.mountsOK() {
		return 0, nil // as after every container that starts on this host
	}
	n.state.Lock()
	defer n.state.Unlock()
	if !n.ready {
		return 0, nil
	}
	if d.out && !d.all {
		if err := n.followUnderlay(); err != nil {
			return 0, err
		}
		d.all = n.node.MTU != n.laidMTU
	}
	if d.all {
		total, err := n.pass(ctx)
		return total, n.thenForget(err)
	}
	total, err := 0, os.MkdirAll(n.cfg.Dir, 0o755)
	if err != nil {
		return 0, fmt.Errorf("make namespace folder: %w", err)
	}
	if d.mounts || d.links {
		made, err := n.openGateway()
		if made > 0 || err != nil {
			total, err2 := n.pass(ctx)
			return made + total, n.thenForget(errors.Join(err, err2))
		}
	}
	plan, err := netplan.Make(n.input())
	if err != nil {
		return 0, fmt.Errorf("gateway network: %w", err)
	}
	var errs []error
	if d.mounts || d.inside() {
		c, err := n.mendLinks(ctx, plan, d, hold)
		total, errs = total+c, append(errs, err)
	}
	if d.filters {
		c, err := n.passFilters(ctx, plan)
		total, errs = total+c, append(errs, n.thenForget(err))
	}
	return total, errors.Join(errs...)
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
