// Package model holds the nouns of a swarm: Cluster, Node, Service, Revision,
// Template, Task, Network, Payload (a secret or a config), Stack and Image, the
// order of task states, the changes that may be made to them, and the validation
// of what users send.
//
// It is the lowest floor. Everything else speaks in its terms, so it must not
// know who calls it: no clock, no randomness, no network, no files, no logger.
// User-facing specs are Docker's API objects (moby/api/types/swarm), kept as the
// canonical JSON that was accepted, with a typed view beside it; whatever field
// this version does not know survives in the JSON.
//
// Objects are immutable once they are in a state.Snapshot: change a copy.
package model
