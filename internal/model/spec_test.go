package model

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

func parse(t *testing.T, raw string) ServiceSpec {
	t.Helper()
	s, err := ParseSpec[swarm.ServiceSpec]([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSpecKeepsUnknownFields(t *testing.T) {
	s := parse(t, `{"Name":"web", "FromTheFuture":{"b":1,"a":12345678901234567890}, "Labels":{}}`)
	want := `{"FromTheFuture":{"a":12345678901234567890,"b":1},"Labels":{},"Name":"web"}`
	if string(s.Raw) != want {
		t.Errorf("raw = %s\nwant  %s", s.Raw, want)
	}
}

func TestTemplateHash(t *testing.T) {
	base := `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"nginx"}%s},"Mode":{"Replicated":{"Replicas":%s}}%s}`
	hash := func(task, replicas, rest, digest string) [32]byte {
		t.Helper()
		raw := strings.Replace(base, "%s", task, 1)
		raw = strings.Replace(raw, "%s", replicas, 1)
		raw = strings.Replace(raw, "%s", rest, 1)
		tpl, err := NewTemplate(1, parse(t, raw), digest)
		if err != nil {
			t.Fatal(err)
		}
		return tpl.Hash
	}
	first := hash("", "1", "", "")
	for name, c := range map[string]struct {
		task, replicas, rest, digest string
		same                         bool
	}{
		"scale":           {"", "5", "", "", true},
		"label":           {"", "1", `,"Labels":{"a":"b"}`, "", true},
		"ingress port":    {"", "1", `,"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080}]}`, "", true},
		"constraint":      {`,"Placement":{"Constraints":["node.role==manager"]}`, "1", "", "", true},
		"restart policy":  {`,"RestartPolicy":{"Condition":"none"}`, "1", "", "", true},
		"force":           {`,"ForceUpdate":1`, "1", "", "", false},
		"image's content": {"", "1", "", "sha256:1", false},
		"host port":       {"", "1", `,"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080,"PublishMode":"host"}]}`, "", false},
		"resources":       {`,"Resources":{"Limits":{"Pids":5}}`, "1", "", "", false},
	} {
		if got := hash(c.task, c.replicas, c.rest, c.digest) == first; got != c.same {
			t.Errorf("%s: same template = %v, want %v", name, got, c.same)
		}
	}
}
