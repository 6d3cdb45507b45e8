package main

import (
	"strings"
	"testing"
	"time"
)

func TestPrintTable(t *testing.T) {
	var b strings.Builder
	results := []result{
		{replicas: 100, start: 4300 * time.Millisecond, startCPU: 3, remove: 2 * time.Second, removeCPU: 1, pss: 127, calibration: 0.5},
		{replicas: 7, start: time.Second, startCPU: 1, remove: time.Second, removeCPU: 1, pss: 10, daemon: 0.5, calibration: 1},
	}
	if err := printTable(&b, "skep", 67, results); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	last := func(i int) string { return strings.Join(strings.Fields(lines[len(lines)-i-2]), " ") }
	if want := "100 4.30 8.60 0.50× 3.00 9.00 0.33× 6.00 2.00 8.60 0.23× 1.00 6.70 0.15× 2.00 127 635 0.20×"; last(2) != want {
		t.Errorf("got  %s\nwant %s", last(2), want)
	}
	if want := "7 1.00 - - 1.00 - - 1.00 1.00 - - 1.00 - - 1.00 10 - -"; last(1) != want {
		t.Errorf("got  %s\nwant %s", last(1), want)
	}
	if want := "Of the 2.00 CPU s of starting and removing 7, the long-lived processes used 0.50; shims and runc the other 1.50."; lines[len(lines)-1] != want {
		t.Errorf("got  %s\nwant %s", lines[len(lines)-1], want)
	}
	if !strings.Contains(b.String(), "memory when idle: 67 MB PSS, Docker 134 MB, 0.50×") {
		t.Error(b.String())
	}
}
