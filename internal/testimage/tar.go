package testimage

import (
	"archive/tar"
	"bytes"
	"cmp"
	"fmt"
	"io"
)

// Tar is an archive of any entries, good or bad, for tests. A header without a type is a regular file with the content that
// stands where its user's name would; one without a mode has the given one.
func Tar(mode int64, headers ...tar.Header) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := h.Uname
		h.Uname, h.Mode = "", cmp.Or(h.Mode, mode)
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(body))
		}
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = io.WriteString(w, body)
		}
		if err != nil {
			return nil, fmt.Errorf("archive entry %s: %w", h.Name, err)
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
