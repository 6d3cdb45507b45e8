package runtime

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

func TestCommandFailed(t *testing.T) {
	const head = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
	for _, test := range []struct {
		text string
		code int // 0: not about the command
	}{
		{head + `exec: "foo": executable file not found in $PATH: unknown`, 127},
		{head + `exec: "/foo": stat /foo: no such file or directory: unknown`, 127},
		{head + `exec: "/etc/passwd": permission denied: unknown`, 126},
		{head + `exec: "/etc": is a directory: unknown`, 126},
		{head + `exec /x: exec format error: unknown`, 126},
		{"runc create failed: unable to apply cgroup configuration: no such file or directory", 0},
		{"rootfs: permission denied", 0},
	} {
		err := CommandFailed(test.text, nil)
		if test.code == 0 {
			if err != nil {
				t.Errorf("%q gave %v", test.text, err)
			}
			continue
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != test.code || e.Kind != KindCommand || strings.HasSuffix(e.Text, "unknown") {
			t.Errorf("%q gave %+v, want code %d", test.text, err, test.code)
		}
		if KindOf(fmt.Errorf("start: %w", err)) != KindCommand {
			t.Errorf("the kind of %v is lost when wrapped", err)
		}
	}
}

func TestValidate(t *testing.T) {
	spec := func(r *swarm.ResourceRequirements) *Spec {
		return &Spec{ID: strings.Repeat("a", 64), Task: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "x"}, Resources: r}}
	}
	limit := func(l swarm.Limit) *swarm.ResourceRequirements { return &swarm.ResourceRequirements{Limits: &l} }
	for _, good := range []*swarm.ResourceRequirements{
		nil, {}, limit(swarm.Limit{MemoryBytes: MinMemory}), limit(swarm.Limit{Pids: -1}), limit(swarm.Limit{NanoCPUs: 1e6}),
		{MemorySwappiness: new(int64(-1))},
	} {
		if err := spec(good).Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []*swarm.ResourceRequirements{
		limit(swarm.Limit{MemoryBytes: MinMemory - 1}), limit(swarm.Limit{MemoryBytes: -1}), limit(swarm.Limit{NanoCPUs: 1e6 - 1}),
		limit(swarm.Limit{Pids: -2}), {SwapBytes: new(int64(1 << 30))}, {MemorySwappiness: new(int64(101))},
	} {
		if err := spec(bad).Validate(); KindOf(err) != KindInvalid {
			t.Errorf("%+v: %v, want invalid", bad, err)
		}
	}
}
