package model

import (
	"fmt"
	"path"
	"strconv"

	"github.com/moby/moby/api/types/swarm"
)

// Limits of a payload's value, in bytes; Docker's: a value is shorter than its limit.
const (
	SecretLimit = 500 << 10
	ConfigLimit = 1000 << 10
)

// Value is the content of a secret or a config. However it is printed, logged or turned into JSON, it does
// not show itself: a value can reach a log only by somebody who converts it on purpose.
type Value []byte

const hidden = "(hidden)"

// Format implements fmt.Formatter for every verb.
func (Value) Format(w fmt.State, _ rune) { fmt.Fprint(w, hidden) }

// MarshalText implements encoding.TextMarshaler, which JSON and the logger use.
func (Value) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// PayloadSpec is Docker's SecretSpec or ConfigSpec (which is one without a driver), without the data.
type PayloadSpec = Spec[swarm.SecretSpec]

// Payload is a secret or a config: bytes that tasks find in a file. Kind says which: a config's value may be
// shown, a secret's never. Only its labels ever change.
type Payload struct {
	Kind      Kind        `cbor:"1,keyasint"`
	Num       uint64      `cbor:"2,keyasint"`
	CreatedAt Time        `cbor:"3,keyasint"`
	UpdatedAt Time        `cbor:"4,keyasint"`
	Version   uint64      `cbor:"5,keyasint"`
	Spec      PayloadSpec `cbor:"6,keyasint"`
	Value     Value       `cbor:"7,keyasint"`
}

// Key is the payload's key; secrets and configs are numbered apart.
func (p *Payload) Key() Key { return Key{Kind: p.Kind, A: p.Num} }

// Name is the payload's name.
func (p *Payload) Name() string { return p.Spec.Typed.Name }

// PayloadSet replaces a payload's spec. Only its labels may differ.
type PayloadSet struct {
	Payload Key         `cbor:"1,keyasint"`
	Spec    PayloadSpec `cbor:"2,keyasint"`
}

// PayloadRef is a container's reference to a secret or a config, which it finds in a file.
type PayloadRef struct {
	Kind     Kind
	ID, Name string
	// File is the name of the file as the spec has it.
	File     string
	UID, GID string
	// Mode has permission bits only; 0 stands for the default.
	Mode uint32
}

// PayloadRefs are the references of a container's spec, secrets first, in the spec's order. Those that name no file are
// left out.
func PayloadRefs(c *swarm.ContainerSpec) []PayloadRef {
	if c == nil || len(c.Secrets)+len(c.Configs) == 0 {
		return nil
	}
	var out []PayloadRef
	for _, r := range c.Secrets {
		if r != nil && r.File != nil {
			out = append(out, PayloadRef{KindSecret, r.SecretID, r.SecretName, r.File.Name, r.File.UID, r.File.GID, uint32(r.File.Mode.Perm())})
		}
	}
	for _, r := range c.Configs {
		if r != nil && r.File != nil {
			out = append(out, PayloadRef{KindConfig, r.ConfigID, r.ConfigName, r.File.Name, r.File.UID, r.File.GID, uint32(r.File.Mode.Perm())})
		}
	}
	return out
}

// Target is where the container sees the file: below /run/secrets for a secret, below / for a config, unless its
// name is absolute.
func (r PayloadRef) Target() string {
	switch {
	case path.IsAbs(r.File):
		return path.Clean(r.File)
	case r.Kind == KindSecret:
		return path.Join("/run/secrets", r.File)
	}
	return path.Join("/", r.File)
}

// defaultFileMode is Docker's, for a reference that gives none.
const defaultFileMode = 0o444

// Owner are the file's user, group and permission bits. The error is Invalid.
func (r PayloadRef) Owner() (uid, gid int, mode uint32, err error) {
	if uid, err = owner("user", r.UID, r); err == nil {
		gid, err = owner("group", r.GID, r)
	}
	if mode = r.Mode; mode == 0 {
		mode = defaultFileMode
	}
	return uid, gid, mode, err
}

// owner reads a numeric identifier; the largest number means "nobody" to the kernel.
func owner(what, text string, r PayloadRef) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, Invalidf("%s '%s': invalid %s %q: it must be a number", r.Kind, r.Name, what, text)
	}
	return int(n), nil
}
