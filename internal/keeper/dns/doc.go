// Package dns answers the names of tasks. A Server has a UDP and a TCP socket in each task's network namespace (on
// 127.0.0.11, on a port that the kernel picks: packet rules of that namespace send port 53 there, so that a container's own
// server on port 53 keeps working), tables of names by network, and a small forwarder for all other names.
//
// In the flow it is a part of the keeper, because names must be answered while there is no daemon: the agent gives rows and
// opens sockets through the keeper's client, and nothing flows back. One goroutine reads all UDP sockets through one epoll
// instance; others live only as long as a question that goes outside, or a TCP connection.
//
// Questions are read and answers written by hand. Measured on this job: miekg/dns adds 1.7 MB to the program and 1.1 MB to its
// resident memory on every node, golang.org/x/net/dns/dnsmessage adds nothing to speak of but cannot tell where a TTL lies in
// a message, which the cache and the truncation need. A server that only asks, answers A, AAAA and PTR, and passes the rest on
// needs little of DNS; dnsmessage is the oracle of its fuzz tests.
//
// The package must not know where rows come from, what a task runs, or the keeper's protocol.
package dns
