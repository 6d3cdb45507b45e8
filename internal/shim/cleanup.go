package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/containerd/v2/pkg/protobuf/proto"
)

// cleanup answers containerd's "delete": whatever is left of the container is killed and removed, and its exit status is
// written to stdout. It is called with the bundle as working directory, after every shim that went, the ordinary ones too.
func cleanup(args []string, stdout io.Writer) error {
	namespace, id := flagValue(args, "-namespace"), flagValue(args, "-id")
	if namespace == "" || id == "" {
		return errors.New("delete needs -namespace and -id")
	}
	resp, ok := alreadyClean(namespace, id)
	if !ok {
		ctx := namespaces.WithNamespace(context.Background(), namespace)
		status, err := manager.NewShimManager("io.containerd.runc.v2").Stop(ctx, id)
		if err != nil {
			return fmt.Errorf("clean up container %s: %w", id, err)
		}
		resp = &taskapi.DeleteResponse{
			Pid:        uint32(status.Pid),
			ExitStatus: uint32(status.ExitStatus),
			ExitedAt:   protobuf.ToTimestamp(status.ExitedAt),
		}
	}
	data, err := proto.Marshal(resp)
	if err != nil {
		return fmt.Errorf("encode the exit status: %w", err)
	}
	_, err = stdout.Write(data)
	return err
}

// alreadyClean reports the exit of a container that runc has forgotten already, which is how an ordinary end leaves
// it. Running runc again only to hear that costs more than all the rest of a removal.
func alreadyClean(namespace, id string) (*taskapi.DeleteResponse, bool) {
	bundle, err := os.Getwd()
	if err != nil {
		return nil, false
	}
	root := process.RuncRoot
	if opts, err := runc.ReadOptions(bundle); err != nil {
		return nil, false
	} else if opts != nil && opts.Root != "" {
		root = opts.Root
	}
	if _, err := os.Lstat(filepath.Join(root, namespace, id)); !errors.Is(err, os.ErrNotExist) {
		return nil, false
	}
	resp := &taskapi.DeleteResponse{ExitStatus: 128 + 9, ExitedAt: protobuf.ToTimestamp(time.Now())}
	if exit, err := runc.ReadExitStatus(bundle); err == nil {
		resp.Pid = uint32(exit.Pid)
		resp.ExitStatus = uint32(exit.Status)
		resp.ExitedAt = protobuf.ToTimestamp(exit.Timestamp)
	}
	return resp, true
}

// info answers containerd's question for the runtime's properties: nothing special.
func info(stdout io.Writer) error {
	data, err := proto.Marshal(&apitypes.RuntimeInfo{Name: "io.containerd.runc.v2"})
	if err != nil {
		return fmt.Errorf("encode the runtime's description: %w", err)
	}
	_, err = stdout.Write(data)
	return err
}

// flagValue returns the value after the named flag. The flags are those of containerd's runtime v2 protocol.
func flagValue(args []string, name string) string {
	for i, a := range args[:max(len(args)-1, 0)] {
		if a == name || a == "-"+name {
			return args[i+1]
		}
	}
	return ""
}
