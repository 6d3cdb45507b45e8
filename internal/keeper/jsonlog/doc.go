// Package jsonlog writes and reads task logs in the layout of Docker's
// json-file driver: one JSON object a line in ID-json.log, older lines in
// ID-json.log.1, ID-json.log.2 and so on.
//
// The keeper process uses the writing half (Splitter, Writer); the daemon
// uses the reading half (Reader). The two share nothing but the files, so a
// reader never slows a container down and a daemon may be gone while lines
// arrive.
//
// The package knows nothing about containers, FIFOs, sockets or the keeper's
// protocol.
package jsonlog

import "path/filepath"

// FileName returns the name of a container's current log file, as Docker
// has it.
func FileName(id string) string { return id + "-json.log" }

// Path returns the current log file of container id in its directory dir.
func Path(dir, id string) string { return filepath.Join(dir, FileName(id)) }
