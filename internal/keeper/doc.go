// Package keeper is the small process that outlives the daemon, and the
// daemon's client of it. It does what tasks lean on while there is no daemon,
// or a new one is taking over: it reads the tasks' output and writes their
// log files, it holds the published ports on the host, and it answers the
// tasks' DNS questions from tables that it is given.
//
// In the flow it stands beside the containers: the agent opens a log here
// before it starts a container and gives the FIFO paths to the runtime; it
// closes the log when the container has ended; likewise it gives tables of
// names, opens a task's DNS sockets before the container starts and closes them
// when it is gone. Nothing flows back but answers; logs are read from their
// files with package jsonlog.
//
// There is one keeper per daemon instance, found by the socket in its
// directory. A daemon adopts the one that runs. When its build differs, the
// daemon starts the new program, which asks the old one for its descriptors
// (FIFOs, port sockets, DNS sockets, the listening socket, the lock) over that
// socket: no byte of output is lost, no port is free for a moment, no question
// goes without its answer, and until the new
// process has said that it is ready the old one can carry on. When a keeper
// crashes, the next one opens the FIFOs again from the table on disk; the
// pipes keep their contents because the containers' shims hold them open, so
// all that is lost is a line that had half arrived. It opens the DNS sockets
// again on the same ports and knows the names from its record on disk.
//
// The package must not know about the cluster, tasks, networks or containerd,
// and imports little: its memory counts on every node all the time.
package keeper
