package netapply

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/netplan"
)

// manyVIPs are n virtual addresses of 10.0.0.0/16 with so many backends each.
func manyVIPs(n, backends int) []netplan.VIP {
	out := make([]netplan.VIP, n)
	for i := range out {
		out[i].Addr = netip.AddrFrom4([4]byte{10, 0, byte(i / 200), byte(2 + i%200)})
		for j := range backends {
			k := i*backends + j
			out[i].Backends = append(out[i].Backends, netip.AddrFrom4([4]byte{10, 0, byte(100 + k/200), byte(2 + k%200)}))
		}
	}
	return out
}

func (l *lab) bigNetwork(vips []netplan.VIP, tasks int) end {
	e := l.alone()
	o := overlayOf(7, "10.0.0.0/16")
	o.VIPs = vips
	e.overlay(o)
	for i := range tasks {
		t := taskOf(e.node, i)
		t.Nets = []netplan.Attachment{on(7, fmt.Sprint("10.0.250.", 2+i))}
		_, err := e.net.AddTask(context.Background(), t)
		must(l.t, err)
	}
	return e
}

// BenchmarkTaskWithVIPs adds a task to a network with 1,000 virtual addresses of ten backends each.
func BenchmarkTaskWithVIPs(b *testing.B) {
	l := newLab(b)
	e := l.bigNetwork(manyVIPs(1000, 10), 0)
	var used time.Duration
	i := 0
	for b.Loop() {
		t := taskOf(e.node, i%200)
		t.Nets = []netplan.Attachment{on(7, fmt.Sprint("10.0.250.", 2+i%200))}
		i++
		start := cpu(b)
		_, err := e.net.AddTask(context.Background(), t)
		must(b, err)
		used += cpu(b) - start
		must(b, e.net.RemoveTask(context.Background(), t.ID))
	}
	b.ReportMetric(float64(used.Microseconds())/float64(i), "cpu-µs/task")
}

// BenchmarkVIPChange changes one service of a network of 1,000, or of 20, in the namespaces of all its tasks.
func BenchmarkVIPChange(b *testing.B) {
	for _, v := range []struct{ vips, tasks int }{{1000, 1}, {1000, 10}, {20, 100}} {
		b.Run(fmt.Sprintf("%d-services-%d-tasks", v.vips, v.tasks), func(b *testing.B) {
			l := newLab(b)
			vips := manyVIPs(v.vips, 10)
			e := l.bigNetwork(vips, v.tasks)
			var used time.Duration
			i := 0
			for b.Loop() {
				c := vips[i%len(vips)]
				c.Backends = c.Backends[:5+i/len(vips)%2]
				i++
				start := cpu(b)
				must(b, e.net.SetVIPs(context.Background(), 7, []netplan.VIP{c}, nil))
				used += cpu(b) - start
			}
			b.ReportMetric(float64(used.Microseconds())/float64(i), "cpu-µs/change")
			for _, st := range e.net.tasks {
				if st.gen == 0 {
					b.Fatal("a change was not carried as such")
				}
			}
		})
	}
}
