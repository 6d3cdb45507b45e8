package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// reference is Docker Engine 29.7.2 on a quiet host with two cores. It was not
// measured at removal and in memory for fewer than 100 replicas.
func reference() map[int]result {
	return map[int]result{
		1:   {start: 410 * time.Millisecond, startCPU: 0.13},
		10:  {start: 850 * time.Millisecond, startCPU: 0.88},
		50:  {start: 4300 * time.Millisecond, startCPU: 4.2},
		100: {start: 8600 * time.Millisecond, startCPU: 9.0, remove: 8600 * time.Millisecond, removeCPU: 6.7, pss: 635},
	}
}

const referenceIdlePSS = 134 // MB

// printTable prints what was measured. A figure is followed by its ratio to the
// reference's, and CPU seconds also by that to the calibration loop beside them.
func printTable(w io.Writer, name string, idle float64, results []result) error {
	fmt.Fprintf(w, "\n%s beside Docker Engine 29.7.2 on a quiet host with two cores (×: ratio to it; cal: ratio to a calibration loop of this run)\n\n", name)
	fmt.Fprintf(w, "memory when idle: %.0f MB PSS, Docker %d MB, %s\n\n", idle, referenceIdlePSS, ratio(idle, referenceIdlePSS))
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "\tall run\tDocker\t×\tCPU s\tDocker\t×\tcal\tall gone\tDocker\t×\tCPU s\tDocker\t×\tcal\tMB PSS\tDocker\t×\t")
	known := reference()
	for _, r := range results {
		d := known[r.replicas]
		fmt.Fprintf(out, "%d\t", r.replicas)
		compare(out, "%.2f", r.start.Seconds(), d.start.Seconds())
		compare(out, "%.2f", r.startCPU, d.startCPU)
		fmt.Fprintf(out, "%.2f\t", r.startCPU/r.calibration)
		compare(out, "%.2f", r.remove.Seconds(), d.remove.Seconds())
		compare(out, "%.2f", r.removeCPU, d.removeCPU)
		fmt.Fprintf(out, "%.2f\t", r.removeCPU/r.calibration)
		compare(out, "%.0f", r.pss, d.pss)
		fmt.Fprintln(out)
	}
	if err := out.Flush(); err != nil || len(results) == 0 {
		return err
	}
	last := results[len(results)-1]
	all := last.startCPU + last.removeCPU
	_, err := fmt.Fprintf(w, "\nOf the %.2f CPU s of starting and removing %d, the long-lived processes used %.2f; shims and runc the other %.2f.\n",
		all, last.replicas, last.daemon, all-last.daemon)
	return err
}

// compare prints a figure, the reference's and their ratio as three cells.
func compare(w io.Writer, format string, have, want float64) {
	fmt.Fprintf(w, format+"\t", have)
	if want == 0 {
		fmt.Fprint(w, "-\t-\t")
		return
	}
	fmt.Fprintf(w, format+"\t%s\t", want, ratio(have, want))
}

func ratio(have, want float64) string { return fmt.Sprintf("%.2f×", have/want) }
