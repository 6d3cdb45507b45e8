package cli

import (
	"cmp"
	"fmt"
	"runtime"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (c *cli) version() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of client and daemon", Args: args(cobra.NoArgs),
		Example: "  skep version\n  skep version --format '{{.Client.Version}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := map[string]any{"Client": map[string]string{
				"Version": c.Version.Version, "GitCommit": c.Version.Commit, "GoVersion": runtime.Version(), "Os": runtime.GOOS, "Arch": runtime.GOARCH,
			}}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			server, serverErr := cl.ServerVersion(cmd.Context(), client.ServerVersionOptions{})
			if serverErr == nil {
				out["Server"] = server
			}
			w := cmd.OutOrStdout()
			if l.forScripts() {
				return cmp.Or(l.printValues(w, out), c.explain(serverErr))
			}
			fmt.Fprintf(w, "Client:  skep %s (%s), %s, %s/%s\n", c.Version.Version, c.Version.Commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			if serverErr != nil {
				return c.explain(serverErr)
			}
			fmt.Fprintf(w, "Daemon:  skep %s, API %s (from %s)\n", server.Version, server.APIVersion, server.MinAPIVersion)
			return nil
		},
	}
	l.objectFlags(cmd)
	return cmd
}

func (c *cli) info() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "info", Short: "Show this node and its swarm", Args: args(cobra.NoArgs),
		Example: "  skep info\n  skep info --format '{{.Swarm.NodeID}} {{.Swarm.LocalNodeState}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.connect()
			if err != nil {
				return err
			}
			res, err := cl.Info(cmd.Context(), client.InfoOptions{})
			if err != nil {
				return c.explain(err)
			}
			i, w := res.Info, cmd.OutOrStdout()
			if l.forScripts() {
				return l.printValues(w, i)
			}
			fmt.Fprintf(w, "Node:        %s (%s)\n", i.Name, i.Swarm.NodeAddr)
			fmt.Fprintf(w, "Host:        %s, kernel %s, %d CPUs, %s memory\n", i.OperatingSystem, i.KernelVersion, i.NCPU, units.BytesSize(float64(i.MemTotal)))
			fmt.Fprintf(w, "Data root:   %s\n", i.DockerRootDir)
			fmt.Fprintf(w, "Containers:  %d running, %d stopped; %d images\n", i.ContainersRunning, i.ContainersStopped, i.Images)
			fmt.Fprintf(w, "Swarm:       %s\n", swarmLine(&i.Swarm))
			if i.Swarm.Error != "" {
				fmt.Fprintf(w, "Error:       %s\n", i.Swarm.Error)
			}
			for _, warning := range i.Warnings {
				fmt.Fprintf(w, "Warning:     %s\n", warning)
			}
			return nil
		},
	}
	l.objectFlags(cmd)
	return cmd
}

func swarmLine(s *swarm.Info) string {
	switch {
	case s.LocalNodeState != swarm.LocalNodeStateActive:
		return string(s.LocalNodeState)
	case s.ControlAvailable:
		return fmt.Sprintf("active, this node is a manager (%s); %s, %s", s.NodeID, count(s.Nodes, "node"), count(s.Managers, "manager"))
	}
	return fmt.Sprintf("active, this node is a worker (%s)", s.NodeID)
}
