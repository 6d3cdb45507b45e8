// Package netplan says, as plain values, what the kernel of one node must hold
// for the gateway network and for overlay networks: links, addresses, routes, policy rules, neighbours,
// sysctls and nftables rules in the host's namespace, in the gateway sandbox
// and in each task's namespace.
//
// It stands between the agent, which knows the node's tasks and published
// ports, and package netapply, which compares a Plan with the kernel and
// carries out the difference. It is pure: it knows neither the kernel nor a
// clock, and the same Input always gives the same Plan. It must not know what
// a service or a cluster is.
//
// The layout of one node:
//
//	 host namespace            gateway sandbox             task namespaces
//	┌───────────────┐         ┌────────────────────┐      ┌──────────────┐
//	│ skep-<inst> ──┼── veth ─┼─ host     br-gw ─┬─┼─veth─┼─ gw          │
//	│ table inet    │         │ table inet       ├─┼─veth─┼─ gw          │
//	│  skep-<inst>  │         │  skep-<inst>     └─┼─ …   └──────────────┘
//	└───────────────┘         └────────────────────┘
//
// Published ports are translated once, in the host's namespace, and the packet
// is then routed, so that a task sees its client's own address. A further host
// adds a device vx-gw, neighbours and routes to the sandbox and nothing to a
// task.
//
// Every overlay network that the node has tasks in is a sandbox of its own, so
// that subnets may overlap and the host's filters do not reach it:
//
//	 host namespace        sandbox of network 7            task namespaces
//	┌───────────────┐     ┌──────────────────────────┐    ┌─────────────────┐
//	│ UDP port 4789 ┼ ─ ─ ┼ vx-4097    br ─┬─ t<id> ─┼────┼─ eth0           │
//	│               │     │  static entries├─ t<id> ─┼────┼─ eth1           │
//	└───────────────┘     └────────────────┴─────────┘    │  table inet     │
//	                                                      │   skep-<inst>   │
//	                                                      └─────────────────┘
//
// Its VXLAN device is there while other nodes have tasks in the network, and
// each of their tasks adds neighbour and forwarding entries and nothing else. Virtual
// addresses are translated where a connection begins, in the task's namespace,
// which has those of its own networks only.
package netplan
