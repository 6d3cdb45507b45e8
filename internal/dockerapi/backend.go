package dockerapi

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/netip"
	"os"
	"syscall"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/state"
)

// Backend is what the API needs of the daemon. All methods are safe for concurrent use, return
// errors of a model kind where the status code matters, and give up when ctx ends.
type Backend interface {
	Cluster
	Membership
	Host
	Logs
	Images
	Registries
	Containers
	Nodes
	Volumes
}

// Cluster is the replicated state. Its methods are called only while Local says that this node
// is a manager.
type Cluster interface {
	// State is a snapshot that holds every write acknowledged before the call.
	State(ctx context.Context) (*state.Snapshot, error)
	// Propose puts a batch into the log and returns what became of it once it is applied here.
	Propose(ctx context.Context, b *model.Batch) (*model.Outcome, error)
	// Watch calls fn for every batch applied from now on, in order, until ctx ends; it then
	// returns nil. It works, idle, on a node that is not a manager. fn returns quickly; it
	// calls Local, and nothing else of the backend.
	Watch(ctx context.Context, fn func(Applied)) error
	// CheckPorts asks the ready nodes whether a program of theirs holds one of the ports, and
	// returns the refusals. It is an early warning: the agents hold the ports later, and a node
	// that cannot be asked refuses nothing.
	CheckPorts(ctx context.Context, ports []swarm.PortConfig) ([]PortRefusal, error)
}

// Applied is one applied batch with the state on either side of it.
type Applied struct {
	Before, After *state.Snapshot
	Outcome       *model.Outcome
}

// PortRefusal is a node's word that a port is taken there.
type PortRefusal struct {
	Node     model.NodeID
	Protocol string
	Port     uint32
	// Message says who has the port, as far as the node knows.
	Message string
}

// Membership is this node's place in a swarm.
type Membership interface {
	Local() Local
	// InitSwarm makes a new swarm with this node as its first manager and returns the node's
	// identifier. The request is validated; its spec has every default filled in.
	InitSwarm(ctx context.Context, req swarm.InitRequest) (nodeID string, err error)
	JoinSwarm(ctx context.Context, req swarm.JoinRequest) error
	// LeaveSwarm forgets the swarm and stops this node's tasks. Whether it may is checked.
	LeaveSwarm(ctx context.Context, force bool) error
	UnlockSwarm(ctx context.Context, key string) error
}

// Local is what this node is in its swarm.
type Local struct {
	State   swarm.LocalNodeState
	Manager bool
	Node    model.NodeID
	// NodeID is Node's identifier, Addr the address it advertises.
	NodeID, Addr string
	// Leader is the manager that leads now; 0 when it is not known.
	Leader model.NodeID
	Error  string
	// RemoteManagers are the managers this node knows, itself included.
	RemoteManagers []swarm.Peer
}

// Host describes the machine and the daemon.
type Host interface {
	SystemInfo(ctx context.Context) (SystemInfo, error)
}

// SystemInfo is what /info and /version show of the machine and the daemon.
type SystemInfo struct {
	// ID stays the same over restarts; Name is the host name.
	ID, Name                                     string
	KernelVersion, OperatingSystem               string
	OSVersion, OSType, Architecture              string
	NCPU                                         int
	MemTotal                                     int64 // bytes
	DataRoot, Driver                             string
	DriverStatus                                 [][2]string
	CgroupDriver, CgroupVersion                  string
	MemoryLimit, SwapLimit, CPUCfs, CPUSet       bool
	PidsLimit, IPv4Forwarding                    bool
	ContainerdVersion, RuncVersion               string
	SecurityOptions, Labels, Warnings            []string
	HTTPProxy, HTTPSProxy, NoProxy               string
	Debug                                        bool
	InsecureRegistries, RegistryMirrors          []string
	ContainersRunning, ContainersStopped, Images int
}

// Logs reads what tasks wrote, on whatever node they ran.
type Logs interface {
	// Logs gives lines until the options are met, ctx ends or an error comes, which is the last item.
	Logs(ctx context.Context, sel LogSelector, opt LogOptions) iter.Seq2[LogLine, error]
}

// LogSelector chooses a service, one task of it, or a container of this node: exactly one is set.
type LogSelector struct {
	Service   model.ServiceID
	Task      model.TaskID
	Container string
}

// LogOptions are what a client asked for.
type LogOptions struct {
	Stdout, Stderr, Follow bool
	Since, Until           time.Time // zero means no bound
	// Tail is how many lines of each task to begin with; negative means all.
	Tail int
	// Details asks for LogLine.Attrs.
	Details bool
}

// LogLine is one line of a task, or a piece of a line that was too long.
type LogLine struct {
	Task   model.TaskID
	Node   model.NodeID
	Stderr bool
	Time   time.Time
	// Text ends with a newline when the line is complete.
	Text  []byte
	Attrs map[string]string
}

// Images is this node's image store.
type Images interface {
	ListImages(ctx context.Context) ([]Image, error)
	// LoadImages reads an archive made by docker save and calls progress with each thing that
	// happened, in Docker's words. It returns what was loaded.
	LoadImages(ctx context.Context, archive io.Reader, progress func(line string)) ([]Image, error)
	// TagImage gives an image (by ID) one more name, fully qualified with its tag.
	TagImage(ctx context.Context, id, name string) error
	// UntagImage takes a name away; DeleteImage forgets an image and all its names.
	UntagImage(ctx context.Context, name string) error
	DeleteImage(ctx context.Context, id string) error
}

// Image is one image of this node.
type Image struct {
	// ID is the image's identifier (sha256:…), Digest what its names point at: a manifest or
	// an index. Names are fully qualified with their tag (docker.io/library/nginx:latest).
	ID, Digest, MediaType string
	Names                 []string
	Created               time.Time
	// Size is of the content and its unpacked layers, in bytes.
	Size                      int64
	OS, Architecture, Variant string
	Author, Comment           string
	Labels                    map[string]string
	Layers                    []string // diff IDs, lowest first
	// Config is the "config" object of the image's configuration, as it is in the image.
	Config  json.RawMessage
	History []ImageLayer // newest first
}

// ImageLayer is one step of an image's history.
type ImageLayer struct {
	Created            time.Time
	CreatedBy, Comment string
	Size               int64
}

// Containers are those of this node.
type Containers interface {
	ListContainers(ctx context.Context) ([]Container, error)
	// Exec starts a further process in a container; the process outlives ctx. Errors are those of runtime.Controller.
	Exec(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.Process, error)
	// InspectContainer is what was made of a container's spec and image.
	InspectContainer(ctx context.Context, id string) (runtime.Details, error)
	// ContainerSize is how many bytes a container has written, and how many it and its image hold together.
	ContainerSize(ctx context.Context, id string) (written, whole int64, err error)
	// WatchContainers calls fn for what happens to containers from now on, in order, until ctx ends; it then returns nil. fn
	// returns quickly.
	WatchContainers(ctx context.Context, fn func(ContainerEvent)) error
	// Control is a container of this node by its full ID; whether it exists its methods tell.
	Control(id string) (Control, error)
	// Withdraw returns when a container of this node that is to be stopped has been taken out of what clients are led to, as far as
	// that can be and takes a bounded time, or when ctx ends. back undoes it, for a container that goes on.
	Withdraw(ctx context.Context, id string) (back func())
	// PS runs this node's ps with arguments that have been checked, and returns what it writes.
	PS(ctx context.Context, args []string) (string, error)
}

// Control is what the API does with one container; see runtime.Controller, whose methods and errors these are.
type Control interface {
	Status(ctx context.Context) (runtime.Status, error)
	Wait(ctx context.Context) (runtime.Exit, error)
	Signal(ctx context.Context, sig syscall.Signal) error
	Usage(ctx context.Context) (runtime.Usage, error)
	Processes(ctx context.Context) ([]int, error)
	Root(ctx context.Context) (dir *os.File, release func(), err error)
	Layers(ctx context.Context) (runtime.Layers, error)
}

// ContainerEvent is one thing that happened to a container of this node.
type ContainerEvent struct {
	// Container is what it is, or was last.
	Container Container
	Action    events.Action
	// Attrs come on top of those that every event of a container has.
	Attrs map[string]string
	At    time.Time
}

// Container is one container of this node.
type Container struct {
	ID, Name, Image, ImageID string
	Labels                   map[string]string
	State                    container.ContainerState
	PID, ExitCode            int
	OOMKilled                bool
	Error                    string
	Created                  time.Time
	Started, Finished        time.Time // zero when it has not
	// Command is what it runs, entry point first; nil when unknown.
	Command           []string
	Hostname, LogPath string
	// Task is the spec it was made from; nil when unknown.
	Task *swarm.TaskSpec
	// Healthcheck is the check in force, Health what it says; nil when there is none.
	Healthcheck *container.HealthConfig
	Health      *container.Health
	Mounts      []container.MountPoint
	Ports       []swarm.PortConfig // published by this host
	// ServicePorts are those of its service, LogDriver what writes its log; nil for the default.
	ServicePorts []swarm.PortConfig
	LogDriver    *swarm.Driver
	// ImageConfig is its image's; nil when unknown.
	ImageConfig *dockerspec.DockerOCIImageConfig
	// Networks are those that it is in: the gateway network as NetworksOf calls it, and overlay networks; or the host's network or
	// none by their names alone.
	Networks []ContainerNetwork
}

// ContainerNetwork is a container's place in a network.
type ContainerNetwork struct {
	Name, ID, EndpointID string
	Addr4, Addr6         netip.Prefix
	Gateway, Gateway6    netip.Addr
	// Aliases are what the service asked for, DNSNames what the container is called by.
	Aliases, DNSNames []string
}

// Volumes are this node's local volumes. A nil slice and an Unimplemented error are fine.
type Volumes interface {
	ListVolumes(ctx context.Context) ([]volume.Volume, error)
	CreateVolume(ctx context.Context, req volume.CreateRequest) (volume.Volume, error)
	RemoveVolume(ctx context.Context, name string, force bool) error
	// VolumeSize is how much a volume holds, in bytes; -1 when that is not this host's to count.
	VolumeSize(ctx context.Context, name string) (int64, error)
}
