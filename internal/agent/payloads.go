package agent

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"sync"
	gotemplate "text/template"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/vault"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// payload is a secret or config as the node was given it.
type payload struct {
	name       string
	value      model.Value
	templating string
}

// safe holds the secrets and configs that this node's tasks need, as long as they need them, in memory only: a daemon
// that starts again is given them again. Safe for concurrent use.
type safe struct {
	mu      sync.Mutex
	byID    map[string]*payload
	ids     map[model.Key]string
	changed chan struct{} // closed and replaced when something was added
}

func newSafe() *safe {
	return &safe{byID: map[string]*payload{}, ids: map[model.Key]string{}, changed: make(chan struct{})}
}

func payloadKey(m *pb.PayloadKey) model.Key {
	return model.Key{Kind: model.Kind(m.GetKind()), A: m.GetNum()}
}

// add keeps payloads; their bytes are the safe's from then on.
func (s *safe) add(list []*pb.Payload) {
	if len(list) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range list {
		if old := s.byID[m.Id]; old != nil {
			clear(old.value)
		}
		s.byID[m.Id] = &payload{m.Name, m.Value, m.Templating}
		s.ids[payloadKey(m.Key)] = m.Id
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// drop wipes what no task here needs any more.
func (s *safe) drop(keys []*pb.PayloadKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.wipe(payloadKey(k))
	}
}

// replace makes a complete set all that there is.
func (s *safe) replace(list []*pb.Payload) {
	s.mu.Lock()
	for k := range s.ids {
		s.wipe(k)
	}
	s.mu.Unlock()
	s.add(list)
}

func (s *safe) wipe(k model.Key) {
	if p := s.byID[s.ids[k]]; p != nil {
		clear(p.value)
		delete(s.byID, s.ids[k])
	}
	delete(s.ids, k)
}

// take copies the payloads that a container refers to, by their IDs; what is missing is named, and changed tells
// when to look again.
func (s *safe) take(refs []model.PayloadRef) (got map[string]payload, missing []string, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got = make(map[string]payload, len(refs))
	for _, r := range refs {
		p := s.byID[r.ID]
		if p == nil {
			missing = append(missing, r.Kind.String()+" "+r.Name)
			continue
		}
		if _, have := got[r.ID]; !have {
			got[r.ID] = payload{p.name, append(model.Value(nil), p.value...), p.templating}
		}
	}
	return got, missing, s.changed
}

func wipeAll(got map[string]payload) {
	for _, p := range got {
		clear(p.value)
	}
}

// deliver makes the files of the task's secrets and configs and has them mounted. Files that an earlier process made are used
// again; a task whose values are not here yet waits for a manager to bring them.
func (c *controller) deliver(ctx context.Context, spec *runtime.Spec, m *pb.Task, tpl *template) error {
	refs := model.PayloadRefs(tpl.spec.ContainerSpec)
	if len(refs) == 0 {
		return nil
	}
	paths, ok, err := c.a.cfg.Files.Find(spec.ID, len(refs))
	if err != nil {
		return err
	}
	if !ok {
		got, err := c.await(ctx, refs)
		if err != nil {
			return err
		}
		defer wipeAll(got)
		files, err := c.a.scope(m, tpl).files(refs, got, spec.Env)
		if err != nil {
			return err
		}
		paths, err = c.a.cfg.Files.Put(spec.ID, files)
		for _, f := range files {
			clear(f.Data)
		}
		if err != nil {
			return err
		}
	}
	for i, r := range refs {
		spec.Mounts = append(spec.Mounts, runtime.Mount{Source: paths[i], Target: r.Target(), ReadOnly: true})
	}
	return nil
}

// await waits until all that is referred to is here.
func (c *controller) await(ctx context.Context, refs []model.PayloadRef) (map[string]payload, error) {
	told := false
	for {
		got, missing, changed := c.a.safe.take(refs)
		if len(missing) == 0 {
			return got, nil
		}
		wipeAll(got)
		if !told {
			told = true
			c.t.say("preparing: waiting for a manager to send " + strings.Join(missing, ", "))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, temporary{fmt.Errorf("waiting for a manager to send %s: %w", strings.Join(missing, ", "), context.Cause(ctx))}
		}
	}
}

// say changes what the task's status says, not its state. Managers do not hear of it: what a task waits for here is a
// manager.
func (t *task) say(message string) {
	t.mu.Lock()
	t.st.Message = message
	m, st := t.msg, t.st
	t.mu.Unlock()
	t.a.cfg.Log.Info("a task waits", "task", m.Id, "state", st.State.String(), "why", message)
	t.a.saveStatus(t.id, st)
}

// files are what the container is to find, in the order of the references, templates expanded. Errors reject the
// task.
func (s *scope) files(refs []model.PayloadRef, got map[string]payload, env []string) ([]vault.File, error) {
	files := make([]vault.File, 0, len(refs))
	for _, r := range refs {
		uid, gid, mode, err := r.Owner()
		if err != nil {
			return nil, runtime.Invalid("%v", err)
		}
		p := got[r.ID]
		data := []byte(p.value)
		switch p.templating {
		case "":
			data = append([]byte(nil), data...)
		case "golang":
			if data, err = (&payloadScope{scope: s, refs: refs, got: got, env: env}).expand(r.Kind, p); err != nil {
				return nil, err
			}
		default:
			return nil, runtime.Invalid("%s '%s': this node does not know the template driver %q", r.Kind, r.Name, p.templating)
		}
		files = append(files, vault.File{UID: uid, GID: gid, Mode: fs.FileMode(mode), Data: data})
	}
	return files, nil
}

// payloadScope is what placeholders in a secret or config can name besides the scope of a spec: the container's environment
// and its other secrets and configs, as they are, by the file names of their references.
type payloadScope struct {
	*scope
	refs []model.PayloadRef
	got  map[string]payload
	env  []string
	// sensitive: what a secret says may be in whatever the template makes, its errors too.
	sensitive bool
}

// templateLine finds the line in an error of text/template.
var templateLine = regexp.MustCompile(`^template: [^:]*:(\d+)`)

func (s *payloadScope) expand(kind model.Kind, p payload) ([]byte, error) {
	s.sensitive = kind == model.KindSecret
	limit := model.SecretLimit
	if kind == model.KindConfig {
		limit = model.ConfigLimit
	}
	text, err := expand(string(p.value), s.scope, limit, gotemplate.FuncMap{"secret": s.secret, "config": s.config, "env": s.getenv})
	switch {
	case err == nil:
		return []byte(text), nil
	case !s.sensitive:
		return nil, runtime.Invalid("expanding the template of %s '%s' failed: %v", kind, p.name, err)
	}
	where := ""
	if m := templateLine.FindStringSubmatch(err.Error()); m != nil {
		where = " at line " + m[1]
	}
	return nil, runtime.Invalid("expanding the template of %s '%s' failed%s: more cannot be shown, for it may be secret", kind, p.name, where)
}

func (s *payloadScope) secret(file string) (string, error) {
	s.sensitive = true
	return s.find(model.KindSecret, file)
}

func (s *payloadScope) config(file string) (string, error) { return s.find(model.KindConfig, file) }

func (s *payloadScope) find(kind model.Kind, file string) (string, error) {
	for _, r := range s.refs {
		if r.Kind == kind && r.File == file {
			return string(s.got[r.ID].value), nil
		}
	}
	return "", fmt.Errorf("%s target %s not found", kind, file)
}

func (s *payloadScope) getenv(name string) string {
	for _, e := range s.env {
		if k, v, ok := strings.Cut(e, "="); ok && k == name {
			return v
		}
	}
	return ""
}
