// Package pki makes and checks the identities of a swarm: the cluster's
// certificate authority, join tokens, node certificates and their renewal, the
// unlock key, and the mutual TLS 1.3 configurations that are built from them.
//
// It sits on the lowest floor: the manager issues with it, the node proves itself
// with it, the wire checks peers with it. It must not know where keys are kept,
// what time it is or where randomness comes from (both are passed in), nor that
// there is a network: it touches no clock, no file and no socket.
//
// Names follow Docker's swarm mode, so that tools which read node certificates
// and tokens keep working: the root is "swarm-ca", a node's common name is its
// ID, its unit is its role, its organization is the cluster's ID.
package pki
