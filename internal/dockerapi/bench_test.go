package dockerapi

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkProgressPoll is what one waiting CLI asks every 200 ms of a service with 1,000 tasks.
func BenchmarkProgressPoll(b *testing.B) {
	f := newFake(time.Now)
	s := New(Config{Backend: f, Rand: seeded("bench")})
	for _, c := range []struct{ target, body string }{
		{"/swarm/init", `{}`},
		{"/services/create", `{"Name":"web","Mode":{"Replicated":{"Replicas":1000}},"TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`},
	} {
		if w := call(s, "POST", c.target, c.body); w.Code/100 != 2 {
			b.Fatal(w.Code, w.Body)
		}
	}
	query := "/tasks?" + filtersOf(map[string]map[string]bool{"service": {"web": true}, "_up-to-date": {"true": true}})
	b.ReportAllocs()
	for b.Loop() {
		for _, target := range []string{"/services/web?insertDefaults=false", query, "/nodes"} {
			if w := call(s, "GET", target, ""); w.Code != 200 {
				b.Fatal(fmt.Sprint(w.Code, w.Body))
			}
		}
	}
}
