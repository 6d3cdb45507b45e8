// Package manager is the leader's part of a manager: the loop that keeps the swarm as its
// services say, and the way into the log.
//
// The loop is the only caller of the deciders. When something was touched, or a time that a
// decider asked for has come, it runs orchestrate → allocate → schedule for the services
// concerned on a working copy of the state, folds what they want into one transaction a
// service, and proposes that as a batch; one batch is in flight at a time. It follows
// leadership and holds the nodes' leases. It must not know how tasks run, who
// calls the API, or what the log is made of.
package manager
