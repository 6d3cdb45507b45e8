package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/fxamacker/cbor/v2"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// Keys of the store.
const (
	keyNode     = "node"
	keyApplied  = "applied"
	keyTables   = "tables"
	keySession  = "session"
	taskPrefix  = "task/"
	statePrefix = "status/"
	tplPrefix   = "template/"
	portPrefix  = "port/"
)

func taskID(m *pb.Task) model.TaskID { return wire.TaskID(m.GetRef()) }

func idText(id model.TaskID) string {
	return strconv.FormatUint(uint64(id.Service), 10) + "." + strconv.FormatUint(id.Num, 10)
}

func tplKey(id uint64) string { return tplPrefix + strconv.FormatUint(id, 10) }

func portKeyText(k *pb.PortKey) string {
	return portPrefix + k.GetProtocol() + "/" + strconv.FormatUint(uint64(k.GetPort()), 10)
}

// encode makes a value of the store out of what cannot fail to encode: our own types and messages that were decoded.
func encode(v any) []byte {
	var b []byte
	var err error
	if m, ok := v.(proto.Message); ok {
		b, err = proto.Marshal(m)
	} else {
		b, err = cbor.Marshal(v)
	}
	if err != nil {
		panic(err)
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

// load restores what the node knew. What cannot be read is an error: guessing would stop somebody's tasks.
func (a *Agent) load() error {
	node := a.store.get(keyNode)
	if node == nil {
		return nil
	}
	a.node = &pb.NodeInfo{}
	if err := proto.Unmarshal(node, a.node); err != nil {
		return fmt.Errorf("stored node: %w", err)
	}
	for key, v := range map[string]any{keyApplied: &a.applied, keyTables: &a.net.tablesAt, keySession: &a.session} {
		if b := a.store.get(key); b != nil {
			if err := cbor.Unmarshal(b, v); err != nil {
				return fmt.Errorf("stored %s: %w", key, err)
			}
		}
	}
	if err := a.net.setNode(a.node); err != nil {
		return err
	}
	err := errors.Join(a.store.each(tplPrefix, a.loadTemplate), a.loadTasks(), a.store.each(portPrefix, a.loadPort), a.store.each(netPrefix, a.overlays.load))
	a.known = true
	close(a.knowing)
	return err
}

func (a *Agent) loadTemplate(_ string, value []byte) error {
	m := &pb.Template{}
	if err := proto.Unmarshal(value, m); err != nil {
		return fmt.Errorf("stored template: %w", err)
	}
	t, err := parseTemplate(m)
	if err != nil {
		return err
	}
	a.templates[m.Id] = t
	return nil
}

func (a *Agent) loadPort(_ string, value []byte) error {
	m := &pb.PortRow{}
	if err := proto.Unmarshal(value, m); err != nil {
		return fmt.Errorf("stored port: %w", err)
	}
	if p, ok := ingressPort(m); ok {
		a.net.rows[p.PortKey] = p
	}
	return nil
}

func (a *Agent) loadTasks() error {
	states := map[string]status{}
	err := a.store.each(statePrefix, func(key string, value []byte) error {
		var st status
		if err := cbor.Unmarshal(value, &st); err != nil {
			return fmt.Errorf("stored %s: %w", key, err)
		}
		states[key[len(statePrefix):]] = st
		return nil
	})
	if err != nil {
		return err
	}
	err = a.store.each(taskPrefix, func(key string, value []byte) error {
		m := &pb.Task{}
		if err := proto.Unmarshal(value, m); err != nil {
			return fmt.Errorf("stored %s: %w", key, err)
		}
		st, ok := states[key[len(taskPrefix):]]
		if !ok {
			st = statusOf(m)
		}
		t := newTask(a, m, a.templates[m.Template], st)
		a.byID[t.id] = t
		return nil
	})
	for _, t := range a.byID {
		t.setLeft(false) // who stopped it is not there any more
		a.adopt(t)
	}
	return err
}

// adopt tells the network of a task that an earlier process may have given one.
func (a *Agent) adopt(t *task) {
	if t.st.State < model.StatePreparing || t.st.State.Terminal() {
		return
	}
	gw, err := gatewayTask(t.container, t.msg)
	if err == nil {
		gw.Nets, err = attachments(t.msg)
	}
	if err != nil {
		gw = netplan.Task{ID: t.container}
	}
	gw.DNS = a.storedDNS(t.id)
	a.net.adopt(t.id, gw, t.st)
}

// saved logs a failure to write down; the node goes on with what it has in memory.
func (a *Agent) saved(err error) {
	if err != nil {
		a.cfg.Log.Error("what the node knows could not be written down; a restart of the daemon may forget it", "err", err)
	}
}

func (a *Agent) saveStatus(id model.TaskID, st status) {
	a.saved(a.store.write(op{statePrefix + idText(id), encode(st)}))
}

// forget drops a task that has disappeared from the node, and begins the one that comes after it.
func (a *Agent) forget(t *task) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byID[t.id] != t {
		return
	}
	delete(a.byID, t.id)
	a.rep.drop(t.id)
	a.saved(a.store.write(op{Key: taskPrefix + idText(t.id)}, op{Key: statePrefix + idText(t.id)}, op{Key: dnsPrefix + idText(t.id)}))
	if t.next == nil {
		return
	}
	n := newTask(a, t.next, a.templates[t.next.Template], statusOf(t.next))
	a.byID[n.id] = n
	a.saved(a.store.write(op{taskPrefix + idText(n.id), encode(forDisk(t.next))}))
	a.launch(n)
}

func removeStore(dir string) error {
	err := os.Remove(filepath.Join(dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
