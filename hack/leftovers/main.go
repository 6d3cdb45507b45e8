// Command leftovers tells what a command leaves behind on this machine: processes,
// mounts, named network namespaces, links, addresses, rules, routes, nftables, cgroups.
//
//	sudo go run ./hack/leftovers sh -c 'make up && make down'
//
// It ends with 1 when something is different afterwards; what other programs did
// meanwhile counts too.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
)

// patience is how long the kernel may take to let go of what was removed.
const patience = 5 * time.Second

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: leftovers COMMAND [ARG…]")
		os.Exit(2)
	}
	diff, err := run(context.Background(), os.Args[1], os.Args[2:]...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "leftovers:", err)
		os.Exit(2)
	}
	for _, line := range diff {
		fmt.Println(line)
	}
	if len(diff) > 0 {
		os.Exit(1)
	}
	fmt.Println("leftovers: none")
}

func run(ctx context.Context, name string, args ...string) ([]string, error) {
	before, err := lab.TakeSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		now, err := lab.TakeSnapshot(ctx)
		if err != nil {
			return nil, err
		}
		diff := now.Diff(before)
		if len(diff) == 0 || time.Now().After(deadline) {
			return diff, nil
		}
	}
}
