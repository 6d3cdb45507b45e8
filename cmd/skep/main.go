// Command skep runs and drives a swarm; `skep --help` says how.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"

	"github.com/skep-swarm/skep/internal/cli"
	"github.com/skep-swarm/skep/internal/daemon"
)

// Set by the linker; see the Makefile.
var (
	version = "0.1.0-dev"
	commit  = "unknown"
)

func main() {
	// The first thread cannot be ended, and what it sees is what /proc says of this process. The daemon has goroutines that give their
	// thread mounts of its own and throw it away: they must get another one.
	runtime.LockOSThread()
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return cli.Run(ctx, cli.Config{
		Version: cli.Version{Version: version, Commit: commit},
		Daemon:  daemon.Command(version, commit, daemon.Main),
		Stdout:  os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Environ: os.Environ, Stdin: os.Stdin,
	}, os.Args[1:])
}
