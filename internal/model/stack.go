package model

// Bounds of stacks.
const (
	// MaxStackRevisions is how many revisions of a stack are kept; the oldest go.
	MaxStackRevisions = 10
	// MaxStackBytes bounds a revision: its definition and its source.
	MaxStackBytes = 512 << 10
)

// Stack is a set of services that were deployed together. Its services, networks, secrets and configs carry its
// name as a label and live on their own; the stack keeps what was asked for, so that it can be shown, compared and
// gone back to.
type Stack struct {
	Name      string `cbor:"1,keyasint"`
	CreatedAt Time   `cbor:"2,keyasint"`
	UpdatedAt Time   `cbor:"3,keyasint"`
	Version   uint64 `cbor:"4,keyasint"`
	// Revisions, oldest first; the last one is in force. Never empty.
	Revisions []*StackRevision `cbor:"5,keyasint"`
}

// Current is the revision in force.
func (s *Stack) Current() *StackRevision { return s.Revisions[len(s.Revisions)-1] }

// Revision finds a revision by its number, or returns nil.
func (s *Stack) Revision(num uint64) *StackRevision {
	for _, r := range s.Revisions {
		if r.Num == num {
			return r
		}
	}
	return nil
}

// StackRevision is what was deployed at one time. Immutable.
type StackRevision struct {
	Num    uint64 `cbor:"1,keyasint"`
	At     Time   `cbor:"2,keyasint"`
	Actor  string `cbor:"3,keyasint,omitempty"`
	Reason string `cbor:"4,keyasint,omitempty"`
	// Definition is the stack as package compose made it, as JSON without the values of secrets and configs.
	// Image names carry the digests that they meant then, where a registry or the swarm knew them.
	Definition []byte `cbor:"5,keyasint"`
}

// StackKey is the key of a stack.
func StackKey(name string) Key { return Key{Kind: KindStack, Name: name} }

// StackRevisionPut adds a revision to a stack, which it makes if it is not there; its number and time are Apply's.
type StackRevisionPut struct {
	Stack    string        `cbor:"1,keyasint"`
	Revision StackRevision `cbor:"2,keyasint"`
}
