// Command skep-keeper is the keeper process alone (see package keeper), so
// that what runs beside the tasks all the time is small.
package main

import (
	"os"

	"github.com/skep-swarm/skep/internal/keeper"
)

func main() { os.Exit(keeper.Main(os.Args[1:])) }
