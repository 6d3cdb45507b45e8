// Package wire is what managers and nodes say to each other, and the one TCP port on which they say it.
//
// It stands between dispatch and agent (and, for Raft's streams, raftlog) and the network: the protocol as protobuf
// messages (generated code in wire/pb), a listener that shares one mutual-TLS port between protocols by ALPN, the gRPC
// server and client with their limits, and conversions between the messages and package model. It must not know what a
// node does with a task, nor who may be a node: certificates, their roots and their renewal come in as *tls.Config.
package wire

//go:generate ../../hack/protogen/gen.sh
