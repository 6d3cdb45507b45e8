package dockerapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/skep-swarm/skep/internal/model"
)

// maxBody bounds a JSON body, in bytes; archives are streamed and have no bound here.
const maxBody = 4 << 20

// short names for kinds that handlers use often
const (
	unavailable   = model.Unavailable
	unimplemented = model.Unimplemented
)

var errPageNotFound = model.NotFoundf("page not found")

// readBody reads a JSON body as it is. An empty one is nil, as Docker allows.
func readBody(r *request) (json.RawMessage, error) {
	if err := checkJSONType(r.Request); err != nil {
		return nil, err
	}
	if r.Body == nil || r.ContentLength == 0 {
		return nil, nil
	}
	data, err := io.ReadAll(http.MaxBytesReader(r.w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, fmt.Errorf("request body is larger than %d bytes: %w", maxBody, err)
		}
		return nil, model.Invalidf("read request body: %v", err)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, model.Invalidf("invalid JSON: got EOF while reading request body")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return nil, model.Invalidf("invalid JSON: %v", err)
	}
	if dec.More() {
		return nil, model.Invalidf("unexpected content after JSON")
	}
	return raw, nil
}

// readJSON reads a JSON body into v.
func readJSON(r *request, v any) error {
	raw, err := readBody(r)
	if err != nil || raw == nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return model.Invalidf("invalid JSON: %v", err)
	}
	return nil
}

func checkJSONType(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if ct == "" && (r.Body == nil || r.ContentLength == 0) {
		return nil
	}
	mediaType, _, err := mime.ParseMediaType(ct)
	if err != nil {
		return model.Invalidf("malformed Content-Type header (%s): %v", ct, err)
	}
	if mediaType != "application/json" {
		return model.Invalidf("unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return nil
}

// writeJSON answers with an object. The type has no parameter: clients compare it.
func writeJSON(r *request, status int, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	r.w.Header().Set("Content-Type", "application/json")
	r.w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := r.w.Write(buf.Bytes())
	return err
}

// writeEmpty answers with a status only.
func writeEmpty(r *request, status int) error {
	r.w.WriteHeader(status)
	return nil
}

func writeError(w http.ResponseWriter, status int, message string) {
	body, err := json.Marshal(struct {
		Message string `json:"message"`
	}{message})
	if err != nil {
		body = []byte(`{"message":"error text cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client is gone when this fails; there is nobody left to tell.
	_, _ = w.Write(append(body, '\n'))
}
