// Package netapply makes the kernel of one node what a netplan says: network
// namespaces, links, addresses, routes, neighbours and nftables rules, by
// netlink alone.
//
// The agent drives it: one full Sync at start, then AddTask, RemoveTask and
// SetPorts as assignments change. Run watches the kernel and repairs what
// others remove. Everything is idempotent, and on a kernel that is already
// right nothing is written, so that a restart of the daemon disturbs no
// traffic.
//
// It must not know why a task or a port is there, nor anything of the cluster.
package netapply
