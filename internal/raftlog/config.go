package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
)

// Stream connects members: Accept takes in what others dialed, Dial reaches a
// member by its node ID (which is its Raft address; where the node is, the stream knows).
type Stream interface {
	net.Listener
	Dial(node string, timeout time.Duration) (net.Conn, error)
}

// Config says how to open a log. Zero values of the tuning fields mean their defaults.
type Config struct {
	// Dir holds everything; it is made if it is missing. No other process may have it open.
	Dir string
	// DataRoot is named in messages to people; default Dir.
	DataRoot string
	// NodeID is this member's ID and Raft address.
	NodeID string
	// Key encrypts the log and the snapshots (AES-256-GCM).
	Key [32]byte
	// Bootstrap makes a log with this member alone when Dir holds none yet.
	Bootstrap bool
	// Stream reaches the other members; without one there can be no others. Run closes it.
	Stream Stream
	// Logger gets what the library has to say; default: nothing.
	Logger *slog.Logger

	// LowSpaceMark is the free space, in bytes, below which proposals are refused; default 256 MB.
	LowSpaceMark uint64
	// ReserveSize is a file that is given up so that a full disk still takes votes and terms; default 4 MB.
	ReserveSize int64
	// SegmentSize is the size of one log file, in bytes, allocated at once; default 32 MB.
	SegmentSize int
	// MaxProposal bounds one proposal, in bytes; default 4 MB, at most 32 MB.
	MaxProposal int
	// MaxInFlight bounds the proposals that wait for their outcome; more of them wait for a place; default 256.
	MaxInFlight int

	// HeartbeatTimeout is how long a follower hears nothing before it stands for election; default 1 s.
	HeartbeatTimeout time.Duration
	// SnapshotThreshold is how many entries are applied before a snapshot is taken; default 10,000.
	SnapshotThreshold uint64
	// SnapshotBytes is how much is appended before a snapshot is taken even if the
	// entries are few; default 256 MB.
	SnapshotBytes uint64
	// SnapshotInterval is how often that is looked at; default 30 s.
	SnapshotInterval time.Duration
	// TrailingLogs is how many entries are kept behind a snapshot for slow followers; default 500.
	TrailingLogs uint64
	// SnapshotsKept is how many snapshots are kept; default 2.
	SnapshotsKept int

	// For tests.
	transport raft.Transport
	vfs       types.VFS
	free      func(dir string) (uint64, error)
	noEncrypt bool
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || c.NodeID == "" {
		return c, errors.New("open log: a directory and a node ID are needed")
	}
	set(&c.DataRoot, c.Dir)
	set(&c.Logger, slog.New(slog.DiscardHandler))
	set(&c.LowSpaceMark, 256<<20)
	set(&c.ReserveSize, 4<<20)
	set(&c.SegmentSize, 32<<20)
	set(&c.MaxProposal, 4<<20)
	set(&c.MaxInFlight, 256)
	set(&c.HeartbeatTimeout, time.Second)
	set(&c.SnapshotThreshold, 10_000)
	set(&c.SnapshotBytes, 256<<20)
	set(&c.SnapshotInterval, 30*time.Second)
	set(&c.TrailingLogs, 500)
	set(&c.SnapshotsKept, 2)
	if c.vfs == nil {
		c.vfs = segmentFS{}
	}
	if c.free == nil {
		c.free = freeSpace
	}
	if c.MaxProposal > 32<<20 {
		return c, fmt.Errorf("open log: proposals of %d bytes are too large for the log", c.MaxProposal)
	}
	return c, nil
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) raftConfig(logger *hcLogger, notify chan<- bool) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.NodeID)
	rc.HeartbeatTimeout = c.HeartbeatTimeout
	rc.ElectionTimeout = c.HeartbeatTimeout
	rc.LeaderLeaseTimeout = c.HeartbeatTimeout / 2
	rc.SnapshotThreshold = c.SnapshotThreshold
	rc.SnapshotInterval = c.SnapshotInterval
	rc.TrailingLogs = c.TrailingLogs
	rc.ShutdownOnRemove = false
	rc.NoLegacyTelemetry = true
	rc.Logger = logger
	rc.NotifyCh = notify
	// Unbuffered: a proposal is either taken by raft's loop, which will answer it, or
	// it is not; one that sat in a buffer when raft stops would never be answered.
	rc.BatchApplyCh = false
	rc.MaxAppendEntries = 128
	return rc
}
