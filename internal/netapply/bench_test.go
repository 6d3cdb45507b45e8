package netapply

import (
	"context"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/netplan"
)

// cpu is the processor time of this process, the kernel's work for it included.
func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkTask(b *testing.B) {
	for _, watched := range []bool{false, true} {
		b.Run(map[bool]string{false: "alone", true: "watched"}[watched], func(b *testing.B) { benchTask(b, watched) })
	}
}

func benchTask(b *testing.B, watched bool) {
	l := newLab(b)
	l.sync()
	if watched {
		l.run()
	}
	ctx := context.Background()
	var add, remove time.Duration
	i := 0
	for b.Loop() {
		task := l.task(i % 200)
		i++
		start := cpu(b)
		if _, err := l.net.AddTask(ctx, task); err != nil {
			b.Fatal(err)
		}
		mid := cpu(b)
		must(b, l.net.RemoveTask(ctx, task.ID))
		add, remove = add+mid-start, remove+cpu(b)-mid
	}
	b.ReportMetric(float64(add.Microseconds())/float64(i), "cpu-µs/add")
	b.ReportMetric(float64(remove.Microseconds())/float64(i), "cpu-µs/remove")
}

func BenchmarkSetPorts(b *testing.B) {
	for _, v := range []struct {
		name string
		n    int
		v6   bool
	}{{"3", 3, true}, {"100", 100, true}, {"1000-IPv4", 1000, false}, {"1000-both", 1000, true}} {
		b.Run(v.name, func(b *testing.B) {
			l := newLab(b)
			l.sync()
			p := netplan.Port{PortKey: netplan.PortKey{Proto: netplan.TCP, Number: 80}}
			a := l.in.Node.Pool4.Addr()
			for i := range v.n {
				a = a.Next()
				p.Backends4 = append(p.Backends4, netip.AddrPortFrom(a, 80))
				if v.v6 {
					p.Backends6 = append(p.Backends6, netip.AddrPortFrom(netplan.Addr6(l.in.Node.Block6, a), 80))
				}
				_ = i
			}
			var used time.Duration
			n := 0
			for b.Loop() {
				start := cpu(b)
				must(b, l.net.SetPorts(context.Background(), []netplan.Port{p}, nil))
				used += cpu(b) - start
				n++
			}
			b.ReportMetric(float64(used.Microseconds())/float64(n), "cpu-µs/op")
		})
	}
}

func BenchmarkSync(b *testing.B) {
	l := newLab(b)
	l.sync()
	in := l.in
	for i := range 100 {
		in.Tasks = append(in.Tasks, l.task(i))
		in.Ports = append(in.Ports, port(netplan.TCP, uint16(1000+i), l.task(i)))
	}
	l.syncWith(in)
	var used time.Duration
	n := 0
	for b.Loop() {
		start := cpu(b)
		if c := l.syncWith(in); c != 0 {
			b.Fatalf("wrote %d requests", c)
		}
		used += cpu(b) - start
		n++
	}
	b.ReportMetric(float64(used.Microseconds())/float64(n), "cpu-µs/op")
}
