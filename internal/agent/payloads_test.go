package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/vault"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

func secretMessage(num uint64, name, value, driver string) *pb.Payload {
	return &pb.Payload{Key: &pb.PayloadKey{Kind: uint32(model.KindSecret), Num: num}, Id: "id-of-" + name, Name: name, Value: []byte(value), Templating: driver}
}

func secretSpec(names ...string) swarm.TaskSpec {
	s := simpleSpec()
	s.ContainerSpec.Env = []string{"COLOUR=green-{{.Task.Slot}}"}
	for i, n := range names {
		s.ContainerSpec.Secrets = append(s.ContainerSpec.Secrets, &swarm.SecretReference{SecretID: "id-of-" + n, SecretName: n,
			File: &swarm.SecretReferenceFileTarget{Name: n, UID: fmt.Sprint(i), GID: "7", Mode: 0o400}})
	}
	return s
}

// send gives the node payloads, or takes them away.
func (m *scripted) send(add []*pb.Payload, drop ...uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := &pb.Assignments{At: m.at(), Payloads: add}
	for _, n := range drop {
		a.PayloadsRemoved = append(a.PayloadsRemoved, &pb.PayloadKey{Kind: uint32(model.KindSecret), Num: n})
	}
	m.tell(a)
}

func TestATaskWaitsForItsSecrets(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, secretSpec("a", "b"))
	id := m.assign(1, 1, model.StateRunning)
	a, stop := h.start(t)
	m.awaitState(id, model.StatePreparing)
	waits := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return a.Tasks()[0].Message == want })
	}
	waits("preparing: waiting for a manager to send secret a, secret b")
	m.send([]*pb.Payload{secretMessage(1, "a", "value of a", "")})
	m.send([]*pb.Payload{secretMessage(2, "b", "{{.Service.Name}} {{env \"COLOUR\"}} {{secret \"a\"}}", "golang")})
	m.awaitState(id, model.StateRunning)
	cid := ContainerID(externalID(1))
	files := h.files.of(cid)
	if len(files) != 2 || string(files[0].Data) != "value of a" || string(files[1].Data) != "web green-1 value of a" ||
		files[1].UID != 1 || files[1].GID != 7 || files[1].Mode != 0o400 {
		t.Errorf("files: %+v", files)
	}
	// Nothing of it is on the disk, and what was sent is forgotten when no task needs it.
	for _, dir := range []string{"agent", "containers"} {
		err := filepath.WalkDir(filepath.Join(h.dir, dir), func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if strings.Contains(string(data), "value of a") {
				t.Errorf("%s holds the value", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	a.safe.mu.Lock()
	value := a.safe.byID["id-of-a"].value
	a.safe.mu.Unlock()
	m.send(nil, 1)
	eventually(t, "forgotten", func() bool {
		_, missing, _ := a.safe.take(model.PayloadRefs(secretSpec("a", "b").ContainerSpec))
		return slices.Equal(missing, []string{"secret a"})
	})
	if strings.Trim(string(value), "\x00") != "" {
		t.Error("the value was not wiped")
	}

	// The next daemon has no values, and no manager: the task that runs keeps its files, and so does one that was only
	// prepared.
	m.template(2, secretSpec("a"))
	m.send([]*pb.Payload{secretMessage(1, "a", "value of a", "")})
	ready := m.assign(2, 2, model.StateReady)
	m.awaitState(ready, model.StateReady)
	stop()
	h.start(t)
	m.assign(2, 2, model.StateRunning)
	m.awaitState(ready, model.StateRunning)
	if len(h.files.of(cid)) != 2 || containerState(h.node, cid) != runtime.Running {
		t.Error("the files did not outlive the daemon")
	}
	m.assign(1, 1, model.StateShutdown)
	m.awaitState(id, model.StateShutdown)
	eventually(t, "files of an ended task removed", func() bool { return h.files.of(cid) == nil })
}

func TestAStoppedTaskWaitsForNothing(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, secretSpec("a"))
	id := m.assign(1, 1, model.StateRunning)
	h.start(t)
	m.awaitState(id, model.StatePreparing)
	m.assign(1, 1, model.StateShutdown)
	m.awaitState(id, model.StateShutdown)
}

func TestFilesOfNobodyArePruned(t *testing.T) {
	h := newHost(t)
	if _, err := h.files.Put("0123", []vault.File{{}}); err != nil {
		t.Fatal(err)
	}
	m := newScripted(t, h)
	m.template(1, secretSpec("a"))
	h.start(t)
	eventually(t, "pruned", func() bool { return h.files.of("0123") == nil })
}

func TestPayloadTemplates(t *testing.T) {
	var s scope
	s.Service.Name, s.Service.Labels = "web", map[string]string{"tier": "front"}
	s.Task.Slot = "3"
	var cs swarm.ContainerSpec
	ref := func(name, file string) {
		cs.Secrets = append(cs.Secrets, &swarm.SecretReference{SecretID: name, SecretName: name, File: &swarm.SecretReferenceFileTarget{Name: file}})
	}
	ref("pw", "pw")
	ref("raw", "/etc/raw")
	cs.Configs = []*swarm.ConfigReference{{ConfigID: "conf", ConfigName: "conf", File: &swarm.ConfigReferenceFileTarget{Name: "conf"}}}
	base := map[string]payload{"pw": {"pw", model.Value("hunter2"), ""}, "raw": {"raw", model.Value("{{.Nope}}"), ""}, "conf": {"conf", nil, "golang"}}
	double := "{{$x := \"0123456789abcdef\"}}" + strings.Repeat("{{$x = printf \"%s%s\" $x $x}}", 40)
	const loud = "expanding the template of config 'conf' failed: "
	const quiet = "expanding the template of config 'conf' failed at line %d: more cannot be shown, for it may be secret"
	for _, c := range []struct{ text, want, err string }{
		{"plain {not} a template", "plain {not} a template", ""},
		{`{{.Service.Name}}.{{.Task.Slot}} {{index .Service.Labels "tier"}} {{.Service.Labels.tier}}`, "web.3 front front", ""},
		{`{{secret "pw"}} {{secret "/etc/raw"}} {{config "conf" | len}} {{env "A"}}{{env "NONE"}}`, "hunter2 {{.Nope}} 75 b=c", ""},
		{`{{join "-" "a" "b" .Task.Slot}}{{join}} {{html "<"}} {{printf "%03d" 7}}`, "a-b-3 &lt; 007", ""},
		{`{{if eq .Task.Slot "3"}}three{{else}}other{{end}}`, "three", ""},
		{"\n{{.Nope}}", "", loud + "template: expansion:2:2"},
		{"{{range .Service.Labels}}{{end}}", "", loud + "a placeholder cannot loop with range"},
		{`{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`, "", loud + "a placeholder cannot call another template"},
		{`{{secret "none"}}`, "", fmt.Sprintf(quiet, 1)},
		{"{{secret \"pw\"}}\n\n{{config (secret \"pw\")}}", "", fmt.Sprintf(quiet, 3)},
		{`{{config "none"}}`, "", "config target none not found"},
		{`{{.Service.Labels.none}}`, "", `map has no entry for key "none"`},
		{double + "{{len $x}}", "", "its functions make more than 67108864 bytes"},
		{`{{printf "%999999d%*d" 1 999999 1}}`, "", "it becomes longer than 1024000 bytes"},
		{strings.Repeat(`{{$x := printf "%1000000d" 1}}`, 100), "", "its functions make more than 67108864 bytes"},
		{strings.Repeat("{{(", 1) + strings.Repeat("(", 200_000), "", "max expression depth exceeded"},
	} {
		base["conf"] = payload{"conf", model.Value(c.text), "golang"}
		files, err := s.files(model.PayloadRefs(&cs), base, []string{"A=b=c"})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || runtime.KindOf(err) != runtime.KindInvalid {
				t.Errorf("%.60q: %v, want %s", c.text, err, c.err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter") {
				t.Errorf("%.60q tells: %v", c.text, err)
			}
			continue
		}
		if err != nil || string(files[2].Data) != strings.Replace(c.want, " 75 ", fmt.Sprintf(" %d ", len(c.text)), 1) || string(files[1].Data) != "{{.Nope}}" || files[2].Mode != 0o444 {
			t.Errorf("%.60q: %+v %v, want %q", c.text, files, err, c.want)
		}
	}
	// A secret's own text is secret.
	base["conf"] = payload{"conf", nil, ""}
	base["pw"] = payload{"pw", model.Value("{{hunter2}}"), "golang"}
	if _, err := s.files(model.PayloadRefs(&cs), base, nil); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "secret 'pw' failed at line 1") {
		t.Errorf("a secret that is no template: %v", err)
	}
	base["pw"] = payload{"pw", nil, "jinja"}
	if _, err := s.files(model.PayloadRefs(&cs), base, nil); err == nil || !strings.Contains(err.Error(), `does not know the template driver "jinja"`) {
		t.Errorf("another driver: %v", err)
	}
}

func TestATaskIsRejectedWhenItsFilesCannotBeMade(t *testing.T) {
	h := newHost(t)
	h.files.fail = errors.New("vault: no space left on device")
	m := newScripted(t, h)
	m.template(1, secretSpec("a"))
	id := m.assign(1, 1, model.StateRunning)
	h.start(t)
	eventually(t, "connected", m.connected)
	m.send([]*pb.Payload{secretMessage(1, "a", "x", "")})
	if r := m.awaitState(id, model.StateRejected); r.Err != "vault: no space left on device" {
		t.Errorf("rejected: %+v", r)
	}
}
