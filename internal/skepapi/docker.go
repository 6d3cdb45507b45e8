package skepapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
)

// maxReply bounds what one of our own calls of Docker's API may answer, in bytes.
const maxReply = 16 << 20

// reply is what a handler answered to a call from within the process.
type reply struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (r *reply) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *reply) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

// Write implements http.ResponseWriter.
func (r *reply) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	if r.body.Len()+len(b) > maxReply {
		return 0, fmt.Errorf("an answer of more than %d bytes", maxReply)
	}
	return r.body.Write(b)
}

// docker calls this daemon's own Docker API, so that what a stack makes is checked, resolved and worded as what a client makes.
func (s *server) docker(ctx context.Context, method, path string, header http.Header, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return fmt.Errorf("encode a request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://skep"+path, &body)
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res := &reply{header: http.Header{}}
	s.engine.ServeHTTP(res, req)
	if res.status >= http.StatusBadRequest {
		var m struct{ Message string }
		if json.Unmarshal(res.body.Bytes(), &m) != nil || m.Message == "" {
			m.Message = http.StatusText(res.status)
		}
		return model.Errorf(kindOf(res.status), "%s", plain(m.Message))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(res.body.Bytes(), out); err != nil {
		return fmt.Errorf("read an answer: %w", err)
	}
	return nil
}

// rpcCode is what tells Docker's clients the gRPC code of an error.
var rpcCode = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// plain is an error in one line, without its gRPC code.
func plain(text string) string {
	return strings.ReplaceAll(rpcCode.ReplaceAllString(text, ""), "\n", " ")
}

// kindOf is the kind of error that a status of Docker's API stands for.
func kindOf(status int) model.ErrKind {
	switch status {
	case http.StatusBadRequest:
		return model.Invalid
	case http.StatusForbidden:
		return model.Forbidden
	case http.StatusNotFound:
		return model.NotFound
	case http.StatusConflict:
		return model.Conflict
	case http.StatusNotImplemented:
		return model.Unimplemented
	case http.StatusServiceUnavailable:
		return model.Unavailable
	}
	return model.Unknown
}
