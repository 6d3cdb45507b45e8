package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/skep-swarm/skep/internal/model"
)

// metrics are what /metrics shows: the process, and the state as this manager holds it.
type metrics struct {
	m                                 *member
	index, services, tasks, nodesDesc *prometheus.Desc
}

func newMetrics(m *member) *metrics {
	return &metrics{
		m:         m,
		index:     prometheus.NewDesc("skep_log_applied_index", "Last entry of the log that was applied.", nil, nil),
		services:  prometheus.NewDesc("skep_services", "Services of the swarm.", nil, nil),
		tasks:     prometheus.NewDesc("skep_tasks", "Tasks by observed state.", []string{"state"}, nil),
		nodesDesc: prometheus.NewDesc("skep_nodes", "Nodes by state.", []string{"state"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.index, c.services, c.tasks, c.nodesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *metrics) Collect(ch chan<- prometheus.Metric) {
	a := c.m.active()
	if a == nil {
		return
	}
	s := a.replica.Snapshot()
	tasks, nodes := map[model.TaskState]int{}, map[string]int{}
	for t := range s.AllTasks() {
		tasks[t.State]++
	}
	for n := range s.Nodes() {
		nodes[string(n.State)]++
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.index, float64(s.Index()))
	gauge(c.services, float64(s.NumServices()))
	for state, n := range tasks {
		gauge(c.tasks, float64(n), state.String())
	}
	for state, n := range nodes {
		gauge(c.nodesDesc, float64(n), state)
	}
}

// serveMetrics serves --metrics-addr until ctx ends.
func serveMetrics(ctx context.Context, addr string, m *member) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("--metrics-addr: %w", err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(newMetrics(m), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ConnState: (&connLimit{max: maxMetricsConns}).changed,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
