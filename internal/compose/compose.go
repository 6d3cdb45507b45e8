// Package compose reads Compose files, of today's Compose Specification and of the old version 3
// alike, and makes of them what a stack is on the server: service specs, networks, secrets,
// configs. It is the client's half of `skep stack deploy`; what it makes for a file is what `docker
// stack deploy` sends for it, and docs/compose.md lists the places where they differ.
//
// A file goes through these steps: yaml (parse.go), interpolation (template.go), the schema
// (schema.go), one long form for every short one (canon*.go), include and extends (include.go,
// extends.go), merge with the files before it (merge.go), checks (check.go), conversion
// (convert*.go). Nothing is dropped in silence: what has no place in a service spec is a warning with
// file and line (ignored.go).
//
// The package must not know the disk, the environment, the clock or the server: files come through an
// fs.FS, variables as a map.
package compose

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// Bounds of what Load reads. More is an error that names the bound.
const (
	MaxFileBytes    = 4 << 20 // one Compose or env file
	MaxDataBytes    = 1000 << 10
	MaxFiles        = 200      // all that one Load opens
	MaxIncludeDepth = 16       // include in include
	MaxNodes        = 200_000  // YAML values after aliases are followed, all files together
	MaxDepth        = 64       // nesting of YAML values
	MaxTextBytes    = 32 << 20 // all texts of the values
	MaxServices     = 5000
)

// Options say what to load.
type Options struct {
	// Name of the stack. When it is empty, the top-level `name:` of the files counts.
	Name string
	// DefaultName counts when neither Name nor the files say one.
	DefaultName string
	// Dir is the absolute path of the directory that relative Files start from. Relative paths
	// inside of the files start from the first file's directory, with standard input from Dir.
	Dir string
	// Files are slash-separated paths, merged in this order; "-" is Stdin.
	Files []string
	// Stdin is the text of the file "-".
	Stdin []byte
	// Env are the variables that ${…} and value-less environment entries are filled from. They win
	// over those in env files.
	Env map[string]string
	// EnvFiles are read for more variables. When there are none, `.env` beside the first file is
	// read if it exists.
	EnvFiles []string
	// Profiles that are on: services with profiles are part of the stack only when one of theirs is.
	// "*" turns all on.
	Profiles []string
	// SkipInterpolation leaves ${…} as they are. It is for Render only.
	SkipInterpolation bool
}

// Stack is what one set of Compose files describes. It is the body of the request that deploys a
// stack, and but for the secrets' data what the server keeps as the stack's revision.
//
// References are names where docker's CLI fills in identifiers, for the server knows those: a
// network's Target, SecretReference.SecretName and ConfigReference.ConfigName (SecretID and ConfigID
// are empty), and CredentialSpec.Config. All of them are scoped: NAME_x for what the stack owns, the plain
// name for what is external.
type Stack struct {
	Name     string
	Networks []Network           `json:",omitempty"` // by name; those that a service uses
	Secrets  []Secret            `json:",omitempty"` // by name
	Configs  []Config            `json:",omitempty"` // by name
	Volumes  []Volume            `json:",omitempty"` // by name; the named volumes that a service mounts
	Services []swarm.ServiceSpec `json:",omitempty"` // by name
	// Source is the merged and interpolated file as YAML, as `stack config` prints it. It has no
	// value of a secret in it.
	Source []byte `json:",omitempty"`
	// Warnings are for whoever deploys; the order is that of files and lines.
	Warnings []Warning `json:",omitempty"`
	// places are where the parts of the stack are in the files.
	places map[string]Pos
}

// Network is a network that the stack needs.
type Network struct {
	Name     string // scoped
	External bool   `json:",omitempty"` // must exist already; Create is nil
	// Create is the request that makes it; an empty driver means overlay and is filled in.
	Create *network.CreateRequest `json:",omitempty"`
}

// Secret is a secret that the stack needs.
type Secret struct {
	Name     string // scoped
	External bool   `json:",omitempty"` // must exist already; Spec is nil
	// Spec has the value in Data, but for secrets with a driver. See WithoutData.
	Spec *swarm.SecretSpec `json:",omitempty"`
}

// Config is a config that the stack needs.
type Config struct {
	Name     string            // scoped
	External bool              `json:",omitempty"`
	Spec     *swarm.ConfigSpec `json:",omitempty"`
}

// Volume is a named volume as it enters the services' mounts. A node makes it when the first task
// there mounts it.
type Volume struct {
	Name       string            // scoped
	External   bool              `json:",omitempty"`
	Driver     string            `json:",omitempty"`
	DriverOpts map[string]string `json:",omitempty"`
	Labels     map[string]string `json:",omitempty"`
}

// WithoutData is the stack without the values of its secrets, fit to be kept and shown.
func (s *Stack) WithoutData() *Stack {
	out := *s
	out.Secrets = slices.Clone(s.Secrets)
	for i, x := range out.Secrets {
		if x.Spec != nil {
			spec := *x.Spec
			spec.Data = nil
			out.Secrets[i].Spec = &spec
		}
	}
	return &out
}

// Load reads the files and makes a stack of them. fsys is rooted at "/". Errors in the files are
// Problems, which name file, line and what to do.
func Load(ctx context.Context, fsys fs.FS, opt Options) (*Stack, error) {
	l, m, err := load(ctx, fsys, opt)
	if err != nil {
		return nil, err
	}
	name := cmp.Or(opt.Name, m.name, opt.DefaultName)
	if err := checkName(name); err != nil {
		return nil, err
	}
	c := &converter{l: l, m: m, scope: scope(name)}
	l.check(m)
	stack := c.stack(name)
	if err := l.problems.err(); err != nil {
		return nil, err
	}
	if stack.Source, err = m.render(); err != nil {
		return nil, err
	}
	stack.Warnings = l.sortedWarnings()
	stack.places = c.places()
	return stack, nil
}

// Render reads and merges the files and prints the result as YAML: `stack config`. It needs no
// name and does not look at what the files refer to.
func Render(ctx context.Context, fsys fs.FS, opt Options) ([]byte, []Warning, error) {
	l, m, err := load(ctx, fsys, opt)
	if err != nil {
		return nil, nil, err
	}
	out, err := m.render()
	return out, l.sortedWarnings(), err
}

func load(ctx context.Context, fsys fs.FS, opt Options) (*loader, *model, error) {
	l, err := newLoader(ctx, fsys, opt)
	if err != nil {
		return nil, nil, err
	}
	m, err := l.files()
	if err != nil {
		return nil, nil, err
	}
	l.selectProfiles(m, opt.Profiles)
	if err := l.problems.err(); err != nil {
		return nil, nil, err
	}
	return l, m, nil
}

// checkName is the rule that Docker's CLI has for stacks.
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("the stack has no name: give one, or write `name:` into the file")
	}
	if len(name) > 63 {
		return fmt.Errorf("invalid stack name %q: more than 63 characters", name)
	}
	for i, r := range name {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || i > 0 && (r == '-' || r == '_' || r == '.')
		if !ok {
			return fmt.Errorf("invalid stack name %q: use letters, digits, '-', '_' and '.', and begin with a letter or digit", name)
		}
	}
	return nil
}

// scope puts a stack's name before the names of what the stack owns.
type scope string

func (s scope) name(x string) string { return string(s) + "_" + x }

const (
	labelNamespace = "com.docker.stack.namespace"
	labelImage     = "com.docker.stack.image"
	// LabelDependsOn is on a service that waits for others before its tasks start. Its value is
	// SERVICE=CONDITION[,…] in order of names: SERVICE as in the file, without the stack's name before it,
	// CONDITION one of service_started, service_healthy, service_completed_successfully.
	LabelDependsOn = "skep.depends_on"
)

func (s scope) labels(own map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range own {
		out[k] = v
	}
	out[labelNamespace] = string(s)
	return out
}
