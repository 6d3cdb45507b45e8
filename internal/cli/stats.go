package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// maxAsked is how many containers are asked for their usage at a time.
const maxAsked = 16

// statsRow is what --format and --json see of a task's usage.
type statsRow struct {
	ID, Name, Node, CPU, Memory, Limit, MemoryShare, NetIn, NetOut, Read, Written string
	Processes                                                                     uint64
}

func (c *cli) stats() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "stats [TASK…]", Short: "Show what tasks use of their nodes", Long: "Show what tasks use of their nodes, all that run when none is named.\n\n" + taskHelp,
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return c.completeTask(cmd, nil, word)
		},
		Example: `  skep stats
  skep stats web.1 web.2 --format '{{.Name}} {{.CPU}} {{.Memory}}'`,
		RunE: func(cmd *cobra.Command, names []string) error {
			cl, err := c.connect()
			if err != nil {
				return err
			}
			list, err := c.statsRows(cmd.Context(), cl, names)
			if err != nil {
				return c.explain(err)
			}
			var rows []row
			for _, v := range list {
				rows = append(rows, row{v.ID, []string{v.Name, v.Node, v.CPU, v.Memory + " / " + v.Limit, v.MemoryShare, v.NetIn + " / " + v.NetOut,
					v.Read + " / " + v.Written, fmt.Sprint(v.Processes)}, v})
			}
			return l.print(cmd.OutOrStdout(), []string{"NAME", "NODE", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"}, rows)
		},
	}
	l.flags(cmd)
	return cmd
}

// statsRows asks for the usage of tasks, several at a time. One that ends meanwhile is left out, unless it was asked for by name.
func (c *cli) statsRows(ctx context.Context, cl *client.Client, names []string) ([]statsRow, error) {
	asked, err := c.statsOf(ctx, cl, names)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(asked))
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxAsked)
	for i := range asked {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = readStats(ctx, cl, &asked[i])
		})
	}
	wg.Wait()
	var out []statsRow
	for i, err := range errs {
		if err != nil && (len(names) > 0 || !errdefs.IsNotFound(err)) {
			return nil, err
		}
		if err == nil {
			out = append(out, asked[i])
		}
	}
	slices.SortStableFunc(out, func(a, b statsRow) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// statsOf are the rows to fill: those named, or all tasks that run.
func (c *cli) statsOf(ctx context.Context, cl *client.Client, names []string) ([]statsRow, error) {
	var out []statsRow
	for _, n := range names {
		id, err := c.container(ctx, cl, n)
		if err != nil {
			return nil, err
		}
		out = append(out, statsRow{ID: id})
	}
	tasks, err := runningTasks(ctx, cl, "")
	if err != nil {
		return nil, err
	}
	services, err := serviceNames(ctx, cl)
	if err != nil {
		return nil, err
	}
	hosts, err := hostNames(ctx, cl)
	if err != nil {
		return nil, err
	}
	for i := range tasks {
		t := &tasks[i]
		known := statsRow{ID: t.Status.ContainerStatus.ContainerID, Name: slotName(services[t.ServiceID], t), Node: hosts[t.NodeID]}
		if len(names) == 0 {
			out = append(out, known)
			continue
		}
		for j := range out {
			if r := &out[j]; strings.HasPrefix(known.ID, r.ID) || r.ID == known.Name || r.ID == known.Name+"."+t.ID {
				*r = known
			}
		}
	}
	return out, nil
}

// readStats fills a row.
func readStats(ctx context.Context, cl *client.Client, r *statsRow) error {
	res, err := cl.ContainerStats(ctx, r.ID, client.ContainerStatsOptions{IncludePreviousSample: true})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var s container.StatsResponse
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return fmt.Errorf("read what %s uses: %w", r.ID, err)
	}
	r.Name = cmp.Or(r.Name, strings.TrimPrefix(s.Name, "/"))
	r.CPU = fmt.Sprintf("%.2f%%", cpuShare(&s))
	used := s.MemoryStats.Usage
	for _, key := range []string{"total_inactive_file", "inactive_file"} {
		// Pages of files that nobody has touched lately are given back as soon as they are needed.
		if n, ok := s.MemoryStats.Stats[key]; ok {
			used -= min(n, used)
			break
		}
	}
	r.Memory, r.Limit, r.MemoryShare = units.BytesSize(float64(used)), units.BytesSize(float64(s.MemoryStats.Limit)), "0.00%"
	if s.MemoryStats.Limit > 0 {
		r.MemoryShare = fmt.Sprintf("%.2f%%", float64(used)/float64(s.MemoryStats.Limit)*100)
	}
	var in, out, read, written uint64
	for _, n := range s.Networks {
		in, out = in+n.RxBytes, out+n.TxBytes
	}
	for _, b := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(b.Op) {
		case "read":
			read += b.Value
		case "write":
			written += b.Value
		}
	}
	size := func(n uint64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
	r.NetIn, r.NetOut, r.Read, r.Written, r.Processes = size(in), size(out), size(read), size(written), s.PidsStats.Current
	return nil
}

// cpuShare is in percent of one processor.
func cpuShare(s *container.StatsResponse) float64 {
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	passed := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage)
	if used <= 0 || passed <= 0 {
		return 0
	}
	return used / passed * float64(s.CPUStats.OnlineCPUs) * 100
}
