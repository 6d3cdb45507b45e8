package model

import (
	"crypto/aes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
)

// Kind names a sort of object. Its values are stored: never renumber.
type Kind uint8

const (
	KindCluster  Kind = 1
	KindNode     Kind = 2
	KindService  Kind = 3
	KindTask     Kind = 4
	KindTemplate Kind = 5
	KindNetwork  Kind = 6
	KindImage    Kind = 7
	KindSecret   Kind = 8
	KindConfig   Kind = 9
	KindStack    Kind = 10
	KindVolume   Kind = 11
)

// String is the kind's name as users read it ("service").
func (k Kind) String() string {
	names := [...]string{"", "swarm", "node", "service", "task", "template", "network", "image", "secret", "config", "stack", "volume"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// NodeID, ServiceID, TemplateID and NetworkID number the objects inside one cluster. Numbers
// are given once, from 1 up, and never again.
type (
	NodeID     uint64
	ServiceID  uint64
	TemplateID uint64
	NetworkID  uint64
)

// TaskID is a task's key: a service's tasks lie together in every index.
type TaskID struct {
	Service ServiceID `cbor:"1,keyasint"`
	Num     uint64    `cbor:"2,keyasint"`
}

// Less orders tasks by service, then by age.
func (t TaskID) Less(o TaskID) bool {
	if t.Service != o.Service {
		return t.Service < o.Service
	}
	return t.Num < o.Num
}

// Key points at one object of any kind: A is its number (a task's service), B a task's number,
// Name an image's name.
type Key struct {
	Kind Kind   `cbor:"1,keyasint"`
	A    uint64 `cbor:"2,keyasint,omitempty"`
	B    uint64 `cbor:"3,keyasint,omitempty"`
	Name string `cbor:"4,keyasint,omitempty"`
}

// ClusterKey, NodeKey, ServiceKey, TaskKey, TemplateKey, NetworkKey and ImageKey make keys.
func ClusterKey() Key              { return Key{Kind: KindCluster, A: 1} }
func NodeKey(n NodeID) Key         { return Key{Kind: KindNode, A: uint64(n)} }
func ServiceKey(s ServiceID) Key   { return Key{Kind: KindService, A: uint64(s)} }
func TaskKey(t TaskID) Key         { return Key{Kind: KindTask, A: uint64(t.Service), B: t.Num} }
func TemplateKey(t TemplateID) Key { return Key{Kind: KindTemplate, A: uint64(t)} }
func NetworkKey(n NetworkID) Key   { return Key{Kind: KindNetwork, A: uint64(n)} }
func ImageKey(name string) Key     { return Key{Kind: KindImage, Name: name} }
func (k Key) Task() TaskID         { return TaskID{ServiceID(k.A), k.B} }
func (k Key) Node() NodeID         { return NodeID(k.A) }
func (k Key) Service() ServiceID   { return ServiceID(k.A) }

// IDLen is the length of an identifier as users see it.
const IDLen = 25

const idAlphabet = "0123456789abcdefghijklmnopqrstuvwxyz"

// Namer turns numbers into the 25-character identifiers that users see, and back. It is one
// AES block under the cluster's own key: no index is needed to read an identifier,
// identifiers of neighbours share no prefix, and planning the same task twice
// gives it the same name. Safe for concurrent use.
type Namer struct {
	key [16]byte
}

// NewNamer makes a Namer for a cluster's identifier key.
func NewNamer(key [16]byte) Namer { return Namer{key} }

// ID names the object at k. An image has no identifier of this form; its name is returned.
func (n Namer) ID(k Key) string {
	if k.Kind == KindImage {
		return k.Name
	}
	var block [16]byte
	block[0] = byte(k.Kind)
	// 7 bytes for the number, 8 for a task's: more than any cluster lives to see.
	binary.BigEndian.PutUint64(block[8:], k.B)
	var a [8]byte
	binary.BigEndian.PutUint64(a[:], k.A)
	copy(block[1:8], a[1:])
	c, err := aes.NewCipher(n.key[:])
	if err != nil {
		panic(err) // the key's length is fixed by its type
	}
	c.Encrypt(block[:], block[:])
	return base36(block)
}

// NodeID, ServiceID, TaskID and NetworkID name an object of that kind.
func (n Namer) NodeID(id NodeID) string       { return n.ID(NodeKey(id)) }
func (n Namer) ServiceID(id ServiceID) string { return n.ID(ServiceKey(id)) }
func (n Namer) TaskID(id TaskID) string       { return n.ID(TaskKey(id)) }
func (n Namer) NetworkID(id NetworkID) string { return n.ID(NetworkKey(id)) }
func (n Namer) ClusterID() string             { return n.ID(ClusterKey()) }

// ContainerID is the identifier of a task's container, derived from the task's so that making it again is idempotent.
func ContainerID(taskID string) string {
	sum := sha256.Sum256([]byte(taskID))
	return hex.EncodeToString(sum[:])
}

// Parse reads an identifier made by ID. It reports false for anything else, another
// cluster's identifiers included.
func (n Namer) Parse(id string) (Key, bool) {
	block, ok := unbase36(id)
	if !ok {
		return Key{}, false
	}
	c, err := aes.NewCipher(n.key[:])
	if err != nil {
		panic(err)
	}
	c.Decrypt(block[:], block[:])
	var a [8]byte
	copy(a[1:], block[1:8])
	k := Key{Kind: Kind(block[0]), A: binary.BigEndian.Uint64(a[:]), B: binary.BigEndian.Uint64(block[8:])}
	switch k.Kind {
	case KindTask:
		return k, k.A != 0 && k.B != 0
	case KindCluster, KindNode, KindService, KindTemplate, KindNetwork, KindSecret, KindConfig, KindStack, KindVolume:
		return k, k.A != 0 && k.B == 0
	}
	return Key{}, false
}

func base36(block [16]byte) string {
	hi, lo := binary.BigEndian.Uint64(block[:8]), binary.BigEndian.Uint64(block[8:])
	var out [IDLen]byte
	for i := IDLen - 1; i >= 0; i-- {
		// Long division of the 128-bit number by 36, 32 bits at a time.
		var r uint64
		for _, w := range [...]*uint64{&hi, &lo} {
			top := r<<32 | *w>>32
			q1 := top / 36
			r = top % 36
			bot := r<<32 | *w&0xffffffff
			q2 := bot / 36
			r = bot % 36
			*w = q1<<32 | q2
		}
		out[i] = idAlphabet[r]
	}
	return string(out[:])
}

func unbase36(s string) (block [16]byte, ok bool) {
	if len(s) != IDLen {
		return block, false
	}
	v := new(big.Int)
	for i := range len(s) {
		var d int64
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			d = int64(c - '0')
		case 'a' <= c && c <= 'z':
			d = int64(c-'a') + 10
		default:
			return block, false
		}
		v.Mul(v, big.NewInt(36))
		v.Add(v, big.NewInt(d))
	}
	if v.BitLen() > 128 {
		return block, false
	}
	v.FillBytes(block[:])
	return block, true
}
