// Package raftlog is the replicated log that the state of a swarm lives by: it
// agrees with the other managers on an order of proposals (Raft), keeps them on
// disk, encrypted, and applies them to a Machine in that order.
//
// It is the only package that knows which Raft library and which write-ahead log
// are used. It must not know what a proposal means: data goes in as bytes and
// comes out of Machine.Apply as a result. The manager proposes and reads with it;
// the wire carries its streams to the other managers.
//
// The layers, from the disk up:
//
//	space     how much room the disk has, and a reserve for the worst moment
//	walFile   the write-ahead log: opened, repaired and reopened
//	store     raft's LogStore and StableStore over it: encrypts, refuses when full
//	snapshots raft's SnapshotStore: encrypted, authenticated to their end
//	fsm       raft's state machine over a Machine
//	Log       proposals, reads, membership, leadership
package raftlog
