package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/skep-swarm/skep/internal/durable"
	"github.com/skep-swarm/skep/internal/keeper/dns"
)

// minJournal is how long, in bytes, the changes to a network's names may become on disk before the whole is written again.
const minJournal = 256 << 10

// names is the tasks' DNS with its record on disk, from which the keeper that follows a crash answers before any daemon has said
// a word: a file a task, and for each network a journal of the tables that came.
type names struct {
	*dns.Server
	dir string

	saving sync.Mutex       // orders what is written
	size   map[uint64]int64 // of journals, when the last complete table was written
}

func newNames(dir string) *names {
	return &names{Server: dns.New(), dir: filepath.Join(dir, "names"), size: map[uint64]int64{}}
}

// namedTask is the record of an open task.
type namedTask struct {
	Task  dns.TaskNames `json:"task"`
	Ports dns.Ports     `json:"ports"`
}

func (n *names) taskFile(id string) string { return filepath.Join(n.dir, id+".task") }

func (n *names) netFile(id uint64) string {
	return filepath.Join(n.dir, strconv.FormatUint(id, 10)+".net")
}

// open answers a task's names and writes that down.
func (n *names) open(cfg dns.TaskNames, want dns.Ports) (dns.Ports, error) {
	n.saving.Lock()
	defer n.saving.Unlock()
	ports, err := n.Server.Open(cfg, want)
	if err != nil {
		return ports, err
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return ports, fmt.Errorf("recording a task's names: %w", err)
	}
	if err := writeJSON(n.taskFile(cfg.ID), namedTask{cfg, ports}); err != nil {
		return ports, fmt.Errorf("recording a task's names: %w", err)
	}
	return ports, nil
}

// close stops answering a task. What is not open is no error.
func (n *names) close(id string) error {
	if id != filepath.Base(id) {
		return fmt.Errorf("task %q has no names", id)
	}
	n.saving.Lock()
	defer n.saving.Unlock()
	err := os.Remove(n.taskFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(n.Server.Close(id), err)
}

// set takes a table and appends it to the network's journal.
func (n *names) set(t *dns.Table) error {
	n.saving.Lock()
	defer n.saving.Unlock()
	if err := n.Server.Set(t); err != nil {
		return err
	}
	if err := n.journal(t); err != nil {
		return fmt.Errorf("recording the names of network %d: %w", t.Network, err)
	}
	return nil
}

func (n *names) journal(t *dns.Table) error {
	path := n.netFile(t.Network)
	if t.Gone {
		delete(n.size, t.Network)
		return removed(path)
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	if t.Complete {
		// The parts are known when the last one came; what is on disk until then is the table before.
		if t.More {
			return nil
		}
		return n.rewrite(t.Network)
	}
	if err := appendFrame(path, t); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err == nil && st.Size() > 2*n.size[t.Network]+minJournal {
		return n.rewrite(t.Network)
	}
	return err
}

// rewrite writes all that is known of a network.
func (n *names) rewrite(id uint64) error {
	path := n.netFile(id)
	err := durable.Replace(path, 0o600, func(w io.Writer) error {
		return n.Server.Table(id, func(t *dns.Table) error { return writeFrame(w, t) })
	})
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	n.size[id] = st.Size()
	return nil
}

func appendFrame(path string, v any) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		if err = writeFrame(f, v); err != nil {
			// Half a frame, on a full disk, would hide all that is written behind it later.
			err = errors.Join(err, f.Truncate(st.Size()))
		}
	}
	return errors.Join(err, f.Close())
}

func removed(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// load opens again what an earlier keeper had open when it died, on the same ports: packet rules lead there.
func (n *names) load() error {
	entries, err := os.ReadDir(n.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the tables of names: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if text, ok := strings.CutSuffix(e.Name(), ".net"); ok {
			if id, err := strconv.ParseUint(text, 10, 64); err == nil {
				errs = append(errs, n.replay(id))
			}
		}
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".task") {
			continue
		}
		var was namedTask
		err := readJSON(filepath.Join(n.dir, e.Name()), &was)
		if err == nil {
			_, err = n.open(was.Task, was.Ports)
		}
		if err != nil {
			// Its namespace is gone, likely: so is the task.
			errs = append(errs, fmt.Errorf("answering the names of a task again: %w", err), removed(filepath.Join(n.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// replay reads a network's journal up to its end, or to where a crash tore it.
func (n *names) replay(id uint64) error {
	f, err := os.Open(n.netFile(id))
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		var t dns.Table
		err := readFrame(f, &t)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = n.Server.Set(&t)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("reading the names of network %d: %w", id, err), n.rewrite(id))
		}
	}
	if st, err := f.Stat(); err == nil {
		n.size[id] = st.Size()
	}
	return nil
}

// list is the tasks whose names are answered.
func (n *names) list() []Named {
	var out []Named
	for _, t := range n.Tasks() {
		out = append(out, Named{t.ID, t.Ports})
	}
	return out
}

// clear deletes the record: nobody's names are answered any more.
func (n *names) clear() error { return os.RemoveAll(n.dir) }

// items describes everything (while paused) for the next keeper.
func (n *names) items(send func(item, []*os.File) error) error {
	for _, id := range n.Networks() {
		err := n.Table(id, func(t *dns.Table) error { return send(item{Kind: itemTable, Table: t}, nil) })
		if err != nil {
			return err
		}
	}
	for _, task := range n.Tasks() {
		files, err := n.Sockets(task.ID)
		if err == nil && len(files) > 0 {
			err = send(item{Kind: itemNames, Names: &task.TaskNames}, files)
		}
		closeFiles(files)
		if err != nil {
			return err
		}
	}
	return nil
}

// OpenNames answers the names of a task in its namespace: on 127.0.0.11, on the ports returned, to which port 53 there is to be led.
// A task whose names are answered already keeps its ports, and what cfg says counts from now on. The tables of its networks should
// be set before: until they are, questions fail.
func (c *Client) OpenNames(ctx context.Context, cfg dns.TaskNames) (dns.Ports, error) {
	resp, err := c.call(ctx, request{Op: opNames, Names: &cfg})
	if err != nil {
		return dns.Ports{}, fmt.Errorf("answering the names of task %.12s: %w", cfg.ID, err)
	}
	if resp.Ports == nil {
		return dns.Ports{}, errors.New("the keeper's answer names no ports")
	}
	return *resp.Ports, nil
}

// CloseNames stops answering a task's names and lets go of its namespace. What is not open is no error.
func (c *Client) CloseNames(ctx context.Context, id string) error {
	if _, err := c.call(ctx, request{Op: opUnname, ID: id}); err != nil {
		return fmt.Errorf("closing the names of task %.12s: %w", id, err)
	}
	return nil
}

// SetNames gives the keeper a network's table of names, or changes to it, of any size; tables of one network must be given one
// after another. Changes to a network that the keeper does not know are refused: give it the complete table then.
func (c *Client) SetNames(ctx context.Context, t dns.Table) error {
	t.Draft = rand.Uint64()
	err := t.Split(func(part *dns.Table) error {
		_, err := c.call(ctx, request{Op: opTable, Table: part})
		return err
	})
	if err != nil {
		return fmt.Errorf("the names of network %d: %w", t.Network, err)
	}
	return nil
}
