package dockerapi

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-swarm/skep/internal/model"
)

// logTime is the time stamp before a line: RFC 3339 with all nine digits, so that lines align.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

func (s *Server) serviceLogs(r *request) error {
	opt, err := readLogOptions(r)
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	svc, err := snap.FindService(r.vars["id"])
	if err != nil {
		return err
	}
	st := &logStream{namer: snap.Cluster().Namer(), swarm: true, tty: containerOf(svc.Spec()).TTY, options: opt}
	return s.streamLogs(r, st, LogSelector{Service: svc.ID})
}

func (s *Server) taskLogs(r *request) error {
	opt, err := readLogOptions(r)
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	t, err := snap.FindTask(r.vars["id"])
	if err != nil {
		return err
	}
	st := &logStream{namer: snap.Cluster().Namer(), swarm: true, options: opt}
	if tmpl := snap.Template(t.Template); tmpl != nil && tmpl.Task.Typed.ContainerSpec != nil {
		st.tty = tmpl.Task.Typed.ContainerSpec.TTY
	}
	return s.streamLogs(r, st, LogSelector{Task: t.ID})
}

func (s *Server) containerLogs(r *request, c *Container) error {
	opt, err := readLogOptions(r)
	if err != nil {
		return err
	}
	st := &logStream{options: opt, tty: c.Task != nil && c.Task.ContainerSpec != nil && c.Task.ContainerSpec.TTY}
	return s.streamLogs(r, st, LogSelector{Container: c.ID})
}

// logOptions are what the backend is asked for, and how its lines are shown.
type logOptions struct {
	LogOptions
	timestamps bool
}

func readLogOptions(r *request) (logOptions, error) {
	opt := logOptions{timestamps: r.bool("timestamps"), LogOptions: LogOptions{
		Stdout: r.bool("stdout"), Stderr: r.bool("stderr"), Follow: r.bool("follow"), Details: r.bool("details"), Tail: -1,
	}}
	if !opt.Stdout && !opt.Stderr {
		return opt, model.Invalidf("Bad parameters: you must choose at least one stream")
	}
	switch tail := r.query("tail"); tail {
	case "", "all":
	default:
		n, err := strconv.Atoi(tail)
		if err != nil {
			return opt, model.Invalidf(`tail value must be a positive integer or "all": %s`, tail)
		}
		opt.Tail = n // a negative number means all, as in Docker
	}
	var err error
	if opt.Since, err = readTime(r.query("since")); err != nil {
		return opt, model.Invalidf("invalid value for 'since': %s", r.query("since"))
	}
	if opt.Until, err = readTime(r.query("until")); err != nil {
		return opt, model.Invalidf("invalid value for 'until': %s", r.query("until"))
	}
	return opt, nil
}

// readTime reads seconds since the epoch with up to nine digits behind the point; "" and 0 mean
// no bound.
func readTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	whole, frac, _ := strings.Cut(text, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var nano int64
	if frac != "" {
		frac = (frac + "000000000")[:9]
		if nano, err = strconv.ParseInt(frac, 10, 64); err != nil {
			return time.Time{}, err
		}
	}
	if sec == 0 && nano == 0 {
		return time.Time{}, nil
	}
	return time.Unix(sec, nano), nil
}

// logStream turns lines into what a client reads.
type logStream struct {
	namer   model.Namer
	swarm   bool // lines carry the node, service and task they are from
	tty     bool
	options logOptions
	buf     []byte
}

func (s *Server) streamLogs(r *request, st *logStream, sel LogSelector) error {
	r.w.Header().Set("Content-Type", streamType(r, st.tty))
	var w *streamWriter
	defer func() {
		if w != nil {
			_ = w.Close() // its error was the client's going, which ended the loop
		}
	}()
	if st.options.Follow {
		w = newStreamWriter(r.w)
	}
	for line, err := range s.backend.Logs(r.ctx(), sel, st.options.LogOptions) {
		if err != nil {
			if w == nil {
				r.w.Header().Del("Content-Type")
				return err
			}
			return st.fail(w, err)
		}
		if w == nil {
			w = newStreamWriter(r.w)
		}
		if _, err := w.Write(st.encode(&line)); err != nil {
			return nil // the client is gone
		}
	}
	if w == nil {
		w = newStreamWriter(r.w)
	}
	return nil
}

// fail tells a client in the stream itself, because the status is out.
func (st *logStream) fail(w *streamWriter, err error) error {
	if st.tty {
		return err
	}
	_, werr := w.Write(appendFrame(nil, frameStderr, []byte("error from daemon in stream: "+err.Error()+"\n")))
	return werr
}

func (st *logStream) encode(line *LogLine) []byte {
	var prefix []byte
	if st.options.timestamps {
		prefix = line.Time.UTC().AppendFormat(prefix, logTime)
		prefix = append(prefix, ' ')
	}
	if attrs := st.attrs(line); attrs != "" {
		prefix = append(prefix, attrs...)
		prefix = append(prefix, ' ')
	}
	if st.tty {
		st.buf = append(append(st.buf[:0], prefix...), line.Text...)
		return st.buf
	}
	stream := frameStdout
	if line.Stderr {
		stream = frameStderr
	}
	st.buf = appendFrame(st.buf[:0], stream, prefix, line.Text)
	return st.buf
}

// attrs is the line's origin and labels as clients parse them: sorted, escaped, with commas.
func (st *logStream) attrs(line *LogLine) string {
	if !st.options.Details {
		return ""
	}
	all := mergedLabels(line.Attrs, nil)
	if st.swarm {
		all["com.docker.swarm.node.id"] = st.namer.NodeID(line.Node)
		all["com.docker.swarm.service.id"] = st.namer.ServiceID(line.Task.Service)
		all["com.docker.swarm.task.id"] = st.namer.TaskID(line.Task)
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, url.QueryEscape(k)+"="+url.QueryEscape(all[k]))
	}
	return strings.Join(out, ",")
}
