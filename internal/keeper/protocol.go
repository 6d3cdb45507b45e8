package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/keeper/ports"
)

// Protocol is the version of the protocol and of what is handed over on
// upgrade. A keeper of a later version understands all earlier ones.
const Protocol = 1

// maxFrame bounds one message, in bytes.
const maxFrame = 1 << 20

// Operations. A connection carries one request and its answer, except watch,
// which has its end when the keeper's comes, and handoff.
const (
	opHello    = "hello"
	opOpen     = "open"
	opClose    = "close"
	opRemove   = "remove"
	opHold     = "hold"
	opRelease  = "release"
	opProbe    = "probe"
	opList     = "list"
	opWatch    = "watch"
	opShutdown = "shutdown"
	opHandoff  = "handoff"
	opNames    = "names"  // answer a task's names
	opUnname   = "unname" // stop that
	opTable    = "table"  // of a network's names
)

type request struct {
	Version int          `json:"v"`
	Op      string       `json:"op"`
	Log     *logConfig   `json:"log,omitempty"`
	ID      string       `json:"id,omitempty"`
	Dir     string       `json:"dir,omitempty"`
	Ports   []ports.Port `json:"ports,omitempty"`

	Names *dns.TaskNames `json:"names,omitempty"`
	Table *dns.Table     `json:"table,omitempty"`
}

type response struct {
	Error string     `json:"error,omitempty"`
	Hello *hello     `json:"hello,omitempty"`
	Files *Files     `json:"files,omitempty"`
	Held  []portErr  `json:"held,omitempty"`
	List  *Listing   `json:"list,omitempty"`
	Ports *dns.Ports `json:"ports,omitempty"`
}

type hello struct {
	Version int    `json:"v"`
	Build   string `json:"build"`
	PID     int    `json:"pid"`
}

// A portErr is the outcome for one port; all empty when it went well.
type portErr struct {
	Error   string `json:"error,omitempty"`
	InUse   bool   `json:"inUse,omitempty"`
	Invalid bool   `json:"invalid,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Command string `json:"command,omitempty"`
}

// An item is one thing handed over to the next keeper; its descriptors
// follow. Later versions add kinds.
type item struct {
	Kind string `json:"kind"`
	FDs  int    `json:"fds"`

	Log  *logConfig `json:"log,omitempty"`  // kind log: a FIFO for each stream
	Rest [][]byte   `json:"rest,omitempty"` // what of a line had arrived, by stream
	// Dropped counts lines dropped that the log does not tell of yet.
	Dropped int64 `json:"dropped,omitempty"`

	Port  *ports.Port `json:"port,omitempty"` // kind port: its sockets
	Socks []string    `json:"socks,omitempty"`

	Table *dns.Table     `json:"table,omitempty"` // kind table
	Names *dns.TaskNames `json:"names,omitempty"` // kind names: a UDP and a TCP socket
}

// Kinds of items, in the order of their sending; ready and take are the two
// messages that seal it.
const (
	itemCore  = "core" // the lock and the listening socket
	itemLog   = "log"
	itemPort  = "port"
	itemTable = "table"
	itemNames = "names"
	itemEnd   = "end"
	itemReady = "ready" // new to old: I have everything
	itemTake  = "take"  // old to new: it is yours
)

func writeFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if len(body) > maxFrame {
		return fmt.Errorf("a message of %d bytes is over the limit of %d", len(body), maxFrame)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

// readFrame reads one message and not a byte more, for descriptors may
// follow.
func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return fmt.Errorf("a message of %d bytes is over the limit of %d", n, maxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decoding a message: %w", err)
	}
	return nil
}

// maxFDs bounds the descriptors of one item; the kernel's bound is 253.
const maxFDs = 16

// sendItem sends an item and its descriptors.
func sendItem(c *net.UnixConn, it item, files []*os.File) error {
	it.FDs = len(files)
	if err := writeFrame(c, it); err != nil {
		return err
	}
	if len(files) == 0 {
		return nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// Not f.Fd(): that would make the descriptor blocking.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	_, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(fds...), nil)
	return err
}

// receiveItem receives an item and its descriptors, which are non-blocking
// and close on exec.
func receiveItem(c *net.UnixConn) (it item, files []*os.File, err error) {
	if err := readFrame(c, &it); err != nil || it.FDs == 0 {
		return it, nil, err
	}
	if it.FDs > maxFDs {
		return it, nil, fmt.Errorf("an item with %d descriptors", it.FDs)
	}
	var one [1]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, flags, _, err := c.ReadMsgUnix(one[:], oob)
	if err != nil {
		return it, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return it, nil, fmt.Errorf("receiving descriptors: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			unix.SetNonblock(fd, true)
			files = append(files, os.NewFile(uintptr(fd), it.Kind))
		}
	}
	if n != 1 || flags&unix.MSG_CTRUNC != 0 || len(files) != it.FDs {
		closeFiles(files)
		return it, nil, errors.New("receiving descriptors: some did not arrive")
	}
	return it, files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
