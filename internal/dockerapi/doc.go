// Package dockerapi serves the Docker Engine API: routes, admission of what users send, and the
// conversion of the state into Docker's objects and events.
//
// It is the first station of a request: HTTP comes in, a validated batch goes to the log, a
// snapshot of the state is turned into JSON. Whatever it needs of the daemon is in Backend,
// which it declares itself. It must not know how the log, the manager, the agent or the
// runtime work, and it decides nothing about tasks.
//
// The measure is the stock docker CLI and clients as old as API 1.24: texts, status codes and
// shapes are Docker's. What is not built yet is listed in one table (unsupported.go) and
// answers 501 with one line.
package dockerapi
