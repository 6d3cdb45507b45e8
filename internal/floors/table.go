// Package floors holds the laws of the source tree: which package may import
// which, what a pure package must not touch, and a few limits that keep files
// readable. Its test runs them over the tree; the checks themselves are plain
// functions over an fs.FS, so that they can be shown to fail.
//
// It reads source text only and must never import what it judges.
package floors

// A floor is one storey of the house: its packages may import lower floors only.
type floor struct {
	level    int
	pure     bool
	packages []string // below internal/; a package brings its sub-packages along
}

// testFloor is for packages that only tests and test programs may import.
const testFloor = 99

// table is the whole house. A new package gets a line here, on the lowest floor
// on which it can do its duty.
func table() []floor {
	return []floor{
		{level: 0, pure: true, packages: []string{"model", "pki"}},
		{level: 1, pure: true, packages: []string{"state"}},
		{level: 2, pure: true, packages: []string{"orchestrate", "allocate", "schedule", "netplan", "compose"}},
		// Not pure: above what is pure, and beside it, so that nothing pure can import it.
		{level: 2, packages: []string{"durable"}},
		{level: 3, packages: []string{"raftlog", "replica", "wire", "runtime", "shim", "netapply", "images", "volumes", "vault", "rootfs", "keeper", "embedded"}},
		{level: 4, packages: []string{"manager", "dispatch", "agent"}},
		{level: 5, packages: []string{"dockerapi", "skepapi"}},
		{level: 6, packages: []string{"cli"}},
		{level: 7, packages: []string{"daemon"}},
		{level: testFloor, packages: []string{"floors", "lab", "sim", "testimage"}},
	}
}

// fences are modules that only one package (and its sub-packages) may import,
// so that the rest of the house does not depend on their shape.
func fences() []fence {
	return []fence{
		{module: "github.com/hashicorp/raft", only: []string{"raftlog"},
			why: "the Raft library stays behind raftlog, so that nothing else leans on its types or its threads"},
		{module: "github.com/hashicorp/raft-wal", only: []string{"raftlog"},
			why: "the log's storage is raftlog's own affair"},
		{module: "github.com/google/nftables", only: []string{"netapply"},
			why: "one package writes nft rules, so that one package can repair and remove them"},
		{module: "github.com/containerd/containerd", only: []string{"runtime", "shim", "images"},
			why: "only the runtime and the image store know containerd"},
		{module: "github.com/spf13/cobra", only: []string{"cli", "daemon"},
			why: "commands live in cli, and the daemon's own flags in daemon"},
	}
}

type fence struct {
	module string
	only   []string
	why    string
}

// generatedHome is where generated code may live.
const generatedHome = "internal/wire/pb"

// Limits on the length of a hand-written file, in lines. The aim is 400; these are
// where the build stops.
const (
	maxLines     = 500
	maxTestLines = 800
)
