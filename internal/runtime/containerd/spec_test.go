package containerd

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/skep-swarm/skep/internal/runtime"
)

func TestCapabilities(t *testing.T) {
	for _, test := range []struct {
		add, drop []string
		want      string
		wrong     bool
	}{
		{nil, nil, strings.Join(defaultCapabilities(), " "), false},
		{nil, []string{"all"}, "", false},
		{[]string{"net_admin"}, []string{"ALL"}, "CAP_NET_ADMIN", false},
		{[]string{"ALL"}, nil, strings.Join(heldCapabilities(), " "), false},
		{[]string{"ALL"}, []string{"ALL"}, strings.Join(heldCapabilities(), " "), false},
		{[]string{"CAP_MAGIC"}, nil, "", true},
	} {
		got, err := capabilities(test.add, test.drop)
		if (err != nil) != test.wrong || strings.Join(got, " ") != test.want {
			t.Errorf("add %v drop %v = %v, %v", test.add, test.drop, got, err)
		}
		if test.wrong && rt.KindOf(err) != rt.KindInvalid {
			t.Errorf("add %v: %v, want invalid", test.add, err)
		}
	}
	got, err := capabilities([]string{"ALL"}, []string{"SYS_ADMIN"})
	if err != nil || slices.Contains(got, "CAP_SYS_ADMIN") || len(got) != len(heldCapabilities())-1 {
		t.Errorf("all but one = %v, %v", got, err)
	}
}

func TestCommand(t *testing.T) {
	img := &image{config: ocispec.ImageConfig{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}}
	for _, test := range []struct {
		command, args []string
		want          string
	}{
		{nil, nil, "entry cmd"}, {nil, []string{"arg"}, "entry arg"}, {[]string{"own"}, nil, "own"}, {[]string{"own"}, []string{"arg"}, "own arg"},
	} {
		got, err := command(&swarm.ContainerSpec{Command: test.command, Args: test.args}, img)
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%v %v = %v, %v; want %s", test.command, test.args, got, err, test.want)
		}
	}
	if _, err := command(&swarm.ContainerSpec{}, &image{}); rt.KindOf(err) != rt.KindInvalid {
		t.Errorf("no command at all: %v", err)
	}
}

// Whatever users and groups a service and an image name, the answer is an error at most.
func TestLookupUser(t *testing.T) {
	passwd, group := []byte("root:x:0:0::/root:/bin/sh\nbee:x:7:8::/:\n:::::\n\x00\n"), []byte("bees:x:8:bee\nhive:x:9:\n:::\n::\n")
	for _, test := range []struct {
		user   string
		groups []string
		want   string
		wrong  bool
	}{
		{"", nil, "0 0 [0]", false},
		{"bee", []string{"hive", "12"}, "7 8 [8 9 12]", false},
		{"bee:hive", nil, "7 9 [9]", false},
		{"", []string{""}, "", true},
		{"", []string{"none"}, "", true},
		{"", []string{"-1"}, "", true},
		{"", []string{"99999999999999999999"}, "", true},
		{"nobody", nil, "", true},
		{"-1:-1", nil, "", true},
		{"a:b:c", nil, "", true},
	} {
		u, err := lookupUser(&swarm.ContainerSpec{User: test.user, Groups: test.groups}, &image{}, passwd, group)
		if test.wrong {
			if rt.KindOf(err) != rt.KindInvalid {
				t.Errorf("user %q groups %q: %v, want invalid", test.user, test.groups, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("user %q groups %q: %v", test.user, test.groups, err)
			continue
		}
		if got := execUser(u); fmt.Sprint(got.UID, got.GID, got.AdditionalGids) != test.want {
			t.Errorf("user %q groups %q = %+v, want %s", test.user, test.groups, got, test.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	img := &image{config: ocispec.ImageConfig{Env: []string{"A=1", "PATH=/x", "B=2"}}}
	spec := &rt.Spec{Task: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Env: []string{"B=3", "A", "C=", "HOSTNAME=own", "D"}}}}
	got := environment(spec, img, "bee")
	if want := []string{"PATH=/x", "HOSTNAME=own", "B=3", "C="}; !slices.Equal(got, want) {
		t.Errorf("environment = %q, want %q", got, want)
	}
}
