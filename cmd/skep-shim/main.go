// Command skep-shim is the parent of one container: it starts it by runc, keeps its exit code, and outlives the daemon.
//
// skep embeds this program and writes it to its data root; people do not run it.
package main

import (
	"os"

	"github.com/skep-swarm/skep/internal/shim"
)

func main() {
	os.Exit(shim.Main(os.Args, os.Stdout, os.Stderr))
}
