package dockerapi

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// flushDelay is how long written data may wait for more before it is sent.
const flushDelay = 10 * time.Millisecond

// streamWriter writes to a client that reads along: data goes out within flushDelay, and many
// small writes share one packet. Close must be called before the handler returns.
type streamWriter struct {
	mu     sync.Mutex
	w      http.ResponseWriter
	rc     *http.ResponseController
	timer  *time.Timer
	closed bool
	err    error
}

// newStreamWriter sends the header at once: clients wait for it before they go on.
func newStreamWriter(w http.ResponseWriter) *streamWriter {
	s := &streamWriter{w: w, rc: http.NewResponseController(w)}
	w.WriteHeader(http.StatusOK)
	s.err = s.rc.Flush()
	return s
}

func (s *streamWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.w.Write(b)
	if err != nil {
		s.err = err
		return n, err
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(flushDelay, s.flush)
	}
	return n, nil
}

func (s *streamWriter) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = nil
	if !s.closed && s.err == nil {
		s.err = s.rc.Flush()
	}
}

// Close stops the flushing; what is left goes out with the end of the response.
func (s *streamWriter) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	return s.err
}

// The streams of a multiplexed frame.
const (
	frameStdout byte = 1
	frameStderr byte = 2
)

// appendFrame appends a frame of Docker's multiplexed stream: the stream's number, three zero
// bytes, the length in big-endian, the data.
func appendFrame(dst []byte, stream byte, data ...[]byte) []byte {
	n := 0
	for _, d := range data {
		n += len(d)
	}
	dst = append(dst, stream, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	for _, d := range data {
		dst = append(dst, d...)
	}
	return dst
}

// jsonStream writes one JSON object a line, and begins the response with the first.
type jsonStream struct {
	r       *request
	rc      *http.ResponseController
	started bool
	err     error
}

func newJSONStream(r *request) *jsonStream {
	return &jsonStream{r: r, rc: http.NewResponseController(r.w)}
}

func (s *jsonStream) start() {
	if s.started {
		return
	}
	s.started = true
	s.r.w.Header().Set("Content-Type", "application/json")
	s.r.w.WriteHeader(http.StatusOK)
	s.err = s.rc.Flush()
}

func (s *jsonStream) write(v any) {
	s.start()
	if s.err != nil {
		return
	}
	line, err := json.Marshal(v)
	if err != nil {
		s.err = err
		return
	}
	if _, err := s.r.w.Write(append(line, '\r', '\n')); err != nil {
		s.err = err
		return
	}
	s.err = s.rc.Flush()
}

// end finishes a stream: an error before its beginning has a status of its own, one after it is the last object.
func (s *jsonStream) end(err error) error {
	if err != nil && !s.started {
		return err
	}
	s.start()
	if err != nil {
		s.write(errorLine(err))
	}
	return s.err
}
