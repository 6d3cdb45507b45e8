package netapply

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/skep-swarm/skep/internal/netplan"
)

// Tasks come and go while services change: in the end every namespace holds what it should, and
// a full pass finds nothing to do.
func TestChangesTogether(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	l.run()
	ctx := context.Background()
	nets := []uint64{7, 8}
	for _, num := range nets {
		e.overlay(overlayOf(num, fmt.Sprintf("10.0.%d.0/24", num)))
	}
	vips := map[uint64]map[netip.Addr]netplan.VIP{7: {}, 8: {}}
	check := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	var tasks sync.Map
	var wg sync.WaitGroup
	for _, num := range nets {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, num))
			for range 60 {
				v := vipOf(fmt.Sprintf("10.0.%d.%d", num, 2+r.IntN(6)), "")
				for i := range r.IntN(4) {
					v.Backends = append(v.Backends, netip.AddrFrom4([4]byte{10, 0, byte(num), byte(100 + i)}))
				}
				if r.IntN(4) == 0 {
					delete(vips[num], v.Addr)
					check(e.net.SetVIPs(ctx, num, nil, []netip.Addr{v.Addr}))
					continue
				}
				vips[num][v.Addr] = v
				check(e.net.SetVIPs(ctx, num, []netplan.VIP{v}, nil))
			}
		})
	}
	for w := range 3 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(w)))
			for range 20 {
				i := w*4 + r.IntN(4)
				task := taskOf(e.node, i)
				task.Nets = []netplan.Attachment{on(7, fmt.Sprint("10.0.7.", 100+i)), on(8, fmt.Sprint("10.0.8.", 100+i))}
				if _, here := tasks.Load(i); here && r.IntN(2) == 0 {
					check(e.net.RemoveTask(ctx, task.ID))
					tasks.Delete(i)
					continue
				}
				_, err := e.net.AddTask(ctx, task)
				check(err)
				tasks.Store(i, task)
			}
		})
	}
	wg.Wait()
	in := netplan.Input{Node: e.node}
	for _, num := range nets {
		o := overlayOf(num, fmt.Sprintf("10.0.%d.0/24", num))
		for _, v := range vips[num] {
			o.VIPs = append(o.VIPs, v)
		}
		in.Overlays = append(in.Overlays, o)
	}
	tasks.Range(func(_, v any) bool { in.Tasks = append(in.Tasks, v.(netplan.Task)); return true })
	if len(in.Tasks) == 0 {
		t.Fatal("no task is left to look at")
	}
	if n, err := e.net.Sync(ctx, in); n != 0 || err != nil {
		t.Errorf("a full pass over %d tasks wrote %d requests, %v", len(in.Tasks), n, err)
	}
}
