package raftlog

import (
	"errors"
	"fmt"
)

var (
	// ErrUnknownOutcome means that a proposal was handed over and its fate is not
	// known: it may have been applied, or be applied yet.
	ErrUnknownOutcome = errors.New("the change was handed to the log but its outcome is unknown")
	// ErrTooLarge is a proposal above Config.MaxProposal.
	ErrTooLarge = errors.New("the change is too large")
	// ErrNotRunning means that Run has not started, or has ended.
	ErrNotRunning = errors.New("the log is not running")
	// ErrWrongKey means that the files on disk were written with another key.
	ErrWrongKey = errors.New("wrong key")
	// ErrCorrupt is a record or snapshot that was changed or damaged on disk.
	ErrCorrupt = errors.New("damaged on disk")
)

// NotLeaderError means that only another member can do this now. Nothing was done.
type NotLeaderError struct {
	Leader string // node ID; empty when there is no leader
}

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return "this manager is not the leader, and there is no leader now. " +
			"Make sure more than half of the managers are online."
	}
	return fmt.Sprintf("this manager is not the leader; %s is", e.Leader)
}

// NoSpaceError means that the data disk is too full to accept writes. Nothing was
// written; the same write works again when there is room.
type NoSpaceError struct {
	Dir        string
	Free, Mark uint64 // bytes
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("the data disk has only %d MB free, and changes need %d MB: free some space on the disk of %s",
		e.Free>>20, (e.Mark+1<<20-1)>>20, e.Dir)
}

// InUseError means that another process has the data directory open.
type InUseError struct {
	Dir string
	PID int // 0 when unknown
}

func (e *InUseError) Error() string {
	who := ""
	if e.PID > 0 {
		who = fmt.Sprintf(" (pid %d)", e.PID)
	}
	return fmt.Sprintf("data root %s is in use by another skep daemon%s", e.Dir, who)
}
