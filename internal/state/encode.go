package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
	"github.com/skep-swarm/skep/internal/model"
)

// formatVersion is the layout of a snapshot's stream. A reader refuses a newer one.
const formatVersion = 1

// maxTxns bounds a decoded batch against damaged or hostile input.
const maxTxns = 1 << 16

// header opens the stream of a snapshot.
type header struct {
	Format       uint32             `cbor:"1,keyasint"`
	Index        uint64             `cbor:"2,keyasint"`
	Time         model.Time         `cbor:"3,keyasint"`
	LastNode     model.NodeID       `cbor:"4,keyasint"`
	LastService  model.ServiceID    `cbor:"5,keyasint"`
	LastTemplate model.TemplateID   `cbor:"6,keyasint"`
	LastNetwork  model.NetworkID    `cbor:"7,keyasint"`
	Counts       map[model.Kind]int `cbor:"8,keyasint"`
	Proposals    int                `cbor:"9,keyasint"`
	Rests        int                `cbor:"10,keyasint,omitempty"`
	NetUses      int                `cbor:"11,keyasint,omitempty"`
	NetRests     int                `cbor:"12,keyasint,omitempty"`
	LastSecret   uint64             `cbor:"20,keyasint,omitempty"`
	LastConfig   uint64             `cbor:"21,keyasint,omitempty"`
}

type storedResult struct {
	Kind    model.ErrKind `cbor:"1,keyasint,omitempty"`
	Message string        `cbor:"2,keyasint,omitempty"`
}

type storedProposal struct {
	ID      [16]byte       `cbor:"1,keyasint"`
	Index   uint64         `cbor:"2,keyasint"`
	Results []storedResult `cbor:"3,keyasint"`
}

func storeResults(errs []error) []storedResult {
	out := make([]storedResult, len(errs))
	for i, err := range errs {
		if err != nil {
			out[i] = storedResult{model.KindOf(err), err.Error()}
		}
	}
	return out
}

func restoreResults(stored []storedResult) []error {
	out := make([]error, len(stored))
	for i, r := range stored {
		if r.Message != "" {
			out[i] = &model.Error{Kind: r.Kind, Message: r.Message}
		}
	}
	return out
}

// codec are the CBOR modes: deterministic, bounded.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newCodec() (codec, error) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return codec{}, fmt.Errorf("cbor encoder: %w", err)
	}
	dec, err := cbor.DecOptions{MaxNestedLevels: 32, MaxArrayElements: 1 << 24, MaxMapPairs: 1 << 20}.DecMode()
	if err != nil {
		return codec{}, fmt.Errorf("cbor decoder: %w", err)
	}
	return codec{enc, dec}, nil
}

// EncodeBatch is a batch as the log stores it.
func EncodeBatch(b *model.Batch) ([]byte, error) {
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	data, err := c.enc.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode batch: %w", err)
	}
	return data, nil
}

// DecodeBatch reads a batch; it never panics on damaged input.
func DecodeBatch(data []byte) (*model.Batch, error) {
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	b := new(model.Batch)
	if err := c.dec.Unmarshal(data, b); err != nil {
		return nil, fmt.Errorf("decode batch: %w", err)
	}
	if len(b.Txns) > maxTxns {
		return nil, fmt.Errorf("decode batch: %d transactions, at most %d are allowed", len(b.Txns), maxTxns)
	}
	return b, nil
}

// Encode writes the snapshot in key order: two snapshots of the same state are the same bytes.
func (s *Snapshot) Encode(w io.Writer) error {
	c, err := newCodec()
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(w, 1<<16)
	enc := c.enc.NewEncoder(buf)
	h := header{
		Format: formatVersion, Index: s.index, Time: s.time,
		LastNode: s.lastNode, LastService: s.lastService, LastTemplate: s.lastTemplate, LastNetwork: s.lastNetwork,
		Proposals: s.doneAt.Len(), Rests: s.restAt.Len(), NetUses: s.netUses.Len(), NetRests: s.netRests.Len(),
		LastSecret: s.payloads.lastSecret, LastConfig: s.payloads.lastConfig,
		Counts: map[model.Kind]int{
			model.KindNode: s.nodes.Len(), model.KindService: s.services.Len(), model.KindTemplate: s.temps.Len(),
			model.KindTask: s.tasks.Len(), model.KindNetwork: s.networks.Len(), model.KindImage: s.images.Len(),
			model.KindStack: s.stacks.Len(),
		},
	}
	if s.cluster != nil {
		h.Counts[model.KindCluster] = 1
	}
	for _, kind := range payloadKinds {
		for range s.Payloads(kind) {
			h.Counts[kind]++
		}
	}
	err = errors.Join(enc.Encode(&h), s.encodeObjects(enc), buf.Flush())
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return nil
}

func (s *Snapshot) encodeObjects(enc *cbor.Encoder) (err error) {
	put := func(v any) bool {
		err = enc.Encode(v)
		return err == nil
	}
	if s.cluster != nil && !put(s.cluster) {
		return err
	}
	for v := range s.Nodes() {
		if !put(v) {
			return err
		}
	}
	for v := range s.Templates() {
		if !put(v) {
			return err
		}
	}
	for v := range s.Services() {
		if !put(v) {
			return err
		}
	}
	for v := range s.AllTasks() {
		if !put(v) {
			return err
		}
	}
	for v := range s.AllNetworks() {
		if !put(v) {
			return err
		}
	}
	for v := range s.Images() {
		if !put(v) {
			return err
		}
	}
	s.doneAt.Scan(func(_ uint64, p *proposal) bool { return put(storedProposal{p.id, p.index, p.results}) })
	if err == nil {
		s.restAt.Scan(func(r rest) bool { return put(r) })
	}
	if err == nil {
		s.netUses.Scan(func(id model.NetworkID, u netUse) bool { return put(storedNetUse{id, u.next}) })
	}
	if err == nil {
		s.netRests.Scan(func(r netRest) bool { return put(r) })
	}
	if err == nil {
		s.payloads.all.Scan(func(p *model.Payload) bool { return put(p) })
	}
	if err == nil {
		s.stacks.Scan(func(_ string, v *model.Stack) bool { return put(v) })
	}
	return err
}

// Decode reads what Encode wrote and derives every index anew.
func Decode(r io.Reader) (*Snapshot, error) {
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	dec := c.dec.NewDecoder(bufio.NewReaderSize(r, 1<<16))
	var h header
	if err := dec.Decode(&h); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	if h.Format != formatVersion {
		return nil, fmt.Errorf("decode state: format %d is not one that this version of skep reads (%d): run the newer version", h.Format, formatVersion)
	}
	s := New()
	s.index, s.time = h.Index, h.Time
	s.lastNode, s.lastService, s.lastTemplate, s.lastNetwork = h.LastNode, h.LastService, h.LastTemplate, h.LastNetwork
	s.payloads.lastSecret, s.payloads.lastConfig = h.LastSecret, h.LastConfig
	if err := s.decodeObjects(dec, &h); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	return s, nil
}

func (s *Snapshot) decodeObjects(dec *cbor.Decoder, h *header) error {
	w := &writer{s: s, keepVersions: true}
	return errors.Join(
		each(dec, h.Counts[model.KindCluster], func(v *model.Cluster) error { s.cluster = v; return nil }),
		each(dec, h.Counts[model.KindNode], func(v *model.Node) error { s.nodes.Set(v.ID, v); return nil }),
		each(dec, h.Counts[model.KindTemplate], func(v *model.Template) error {
			s.setTemplate(v)
			return nil
		}),
		each(dec, h.Counts[model.KindService], func(v *model.Service) error {
			if len(v.Revisions) == 0 || v.Current().Spec.Typed == nil {
				return fmt.Errorf("service %d has no spec", v.ID)
			}
			s.services.Set(v.ID, v)
			s.names.Set(v.Name(), v.ID)
			w.claimPorts(v)
			w.attachService(nil, v)
			for _, vip := range v.VIPs {
				s.bookAddr(vip.Network, vip.Addr4)
			}
			return nil
		}),
		each(dec, h.Counts[model.KindTask], func(v *model.Task) error { s.restoreTask(v, w); return nil }),
		each(dec, h.Counts[model.KindNetwork], func(v *model.Network) error {
			s.networks.Set(v.ID, v)
			if !v.Deleted {
				s.netNames.Set(v.Name, v.ID)
			}
			return nil
		}),
		each(dec, h.Counts[model.KindImage], func(v *model.Image) error { s.images.Set(v.Name, v); return nil }),
		each(dec, h.Proposals, func(v *storedProposal) error {
			p := &proposal{id: v.ID, index: v.Index, results: v.Results}
			s.done.Set(p)
			s.doneAt.Set(p.index, p)
			return nil
		}),
		each(dec, h.Rests, func(r *rest) error { s.setRest(*r); return nil }),
		each(dec, h.NetUses, func(n *storedNetUse) error {
			u, _ := s.netUses.Get(n.Network)
			u.next = n.Next
			s.netUses.Set(n.Network, u)
			return nil
		}),
		each(dec, h.NetRests, func(r *netRest) error { s.setNetRest(*r); return nil }),
		each(dec, h.Counts[model.KindSecret]+h.Counts[model.KindConfig], func(v *model.Payload) error {
			if v.Spec.Typed == nil || !isPayload(v.Kind) {
				return fmt.Errorf("%s %d has no spec", v.Kind, v.Num)
			}
			s.payloads.set(v)
			return nil
		}),
		each(dec, h.Counts[model.KindStack], func(v *model.Stack) error {
			if len(v.Revisions) == 0 {
				return fmt.Errorf("stack %s has no revision", v.Name)
			}
			s.stacks.Set(v.Name, v)
			return nil
		}),
	)
}

// restoreTask books what a stored task holds, without asking whether it may: it held it.
func (s *Snapshot) restoreTask(t *model.Task, w *writer) {
	s.tasks.Load(at(t))
	if t.Node == 0 {
		return
	}
	s.list(t)
	if !placed(t) {
		return
	}
	load, sh := s.Load(t.Node), w.share(t)
	load.add(&sh)
	s.loads.Set(t.Node, load)
	if t.Gateway4.IsValid() {
		s.addrs.add(addrKey(t.Gateway4))
	}
	for i := range t.Nets {
		s.bookAddr(t.Nets[i].Network, t.Nets[i].Addr4)
		s.netTasks.Set(netTask{t.Nets[i].Network, t.ID})
	}
}

func each[T any](dec *cbor.Decoder, n int, take func(*T) error) error {
	for range n {
		v := new(T)
		if err := dec.Decode(v); err != nil {
			return err
		}
		if err := take(v); err != nil {
			return err
		}
	}
	return nil
}
