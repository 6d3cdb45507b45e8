package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
)

// registryError is what went wrong with a registry, in words for users, Docker's where clients match them.
type registryError struct {
	text string
	kind error // of errdefs
	// again says that the same request may succeed in a moment.
	again bool
	// down says that nobody answers there at all.
	down bool
	// full says that the disk of this node is.
	full bool
}

func (e *registryError) Error() string { return e.text }
func (e *registryError) Unwrap() error { return e.kind }

// verb is what was done to an image when it failed.
type verb string

const (
	pulling verb = "pull"
	pushing verb = "push"
)

// explain words an error of the resolver. Errors that are worded already, and the end of a context, pass as they are.
func explain(ctx context.Context, what verb, ref reference.Named, err error) error {
	var worded *registryError
	if err == nil || errors.As(err, &worded) || ctx.Err() != nil {
		return err
	}
	name := reference.FamiliarName(ref)
	status, code := statusOf(err)
	switch {
	case isFull(err):
		return &registryError{text: fmt.Sprintf("no space left on device: image %s does not fit on this node's disk; free some space and pull it again", familiarRef(ref)), kind: errdefs.ErrResourceExhausted, full: true}
	case strings.Contains(err.Error(), "no match for platform in manifest"):
		return &registryError{text: fmt.Sprintf("no matching manifest for %s in the manifest list entries of %s", platforms.DefaultString(), familiarRef(ref)), kind: errdefs.ErrNotFound}
	case errors.Is(err, docker.ErrInvalidAuthorization) || status == http.StatusUnauthorized || status == http.StatusForbidden || code == "DENIED":
		return &registryError{text: fmt.Sprintf("%s access denied for %s, repository does not exist or may require 'docker login': %s", what, name, denial(err, status)), kind: errdefs.ErrNotFound}
	case status == http.StatusTooManyRequests:
		return &registryError{text: "toomanyrequests: the registry limits requests: " + detail(err), kind: errdefs.ErrUnavailable, again: true}
	case status >= 500:
		return &registryError{text: fmt.Sprintf("received unexpected HTTP status: %d %s%s", status, http.StatusText(status), afterColon(detail(err))), kind: errdefs.ErrUnavailable, again: true}
	case errdefs.IsNotFound(err) || status == http.StatusNotFound:
		if code == "NAME_UNKNOWN" || what == pushing {
			return &registryError{text: fmt.Sprintf("repository %s not found: name unknown", name), kind: errdefs.ErrNotFound}
		}
		return &registryError{text: fmt.Sprintf("manifest for %s not found: manifest unknown: manifest unknown", familiarRef(ref)), kind: errdefs.ErrNotFound}
	}
	return unreachable(ref, err)
}

// unreachable words what happened on the way to a registry.
func unreachable(ref reference.Named, err error) error {
	host := reference.Domain(ref)
	text := err.Error()
	var at *url.Error
	if errors.As(err, &at) {
		// Where a registry redirects to, the query may be a signature.
		where, _, _ := strings.Cut(at.URL, "?")
		text = fmt.Sprintf("%s %q: %v", at.Op, where, at.Err)
	}
	switch {
	case strings.Contains(text, "server gave HTTP response to HTTPS client"), strings.Contains(text, "certificate signed by unknown authority"),
		strings.Contains(text, "x509:"):
		text += fmt.Sprintf(" (give the daemon the registry's certificate as /etc/docker/certs.d/%s/ca.crt, or trust it as it is: --insecure-registry %s)", host, host)
		return &registryError{text: text, kind: errdefs.ErrUnavailable}
	}
	var netErr net.Error
	var stalled stalledError
	refused := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)
	var dns *net.DNSError
	refused = refused || errors.As(err, &dns)
	lost := errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &stalled) || errors.As(err, &netErr)
	if refused || lost || at != nil {
		return &registryError{text: text, kind: errdefs.ErrUnavailable, again: true, down: refused}
	}
	return err
}

// statusOf is the HTTP status and the registry's code of an error, if it has them.
func statusOf(err error) (status int, code string) {
	var unexpected remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &unexpected) {
		status = unexpected.StatusCode
	}
	if list := registryErrors(err); len(list) > 0 {
		var c interface{ ErrorCode() docker.ErrorCode }
		if errors.As(list[0], &c) {
			code = c.ErrorCode().String()
		}
	}
	return status, code
}

func registryErrors(err error) docker.Errors {
	var list docker.Errors
	if errors.As(err, &list) {
		return list
	}
	return nil
}

// denial is why a registry did not let a client in.
func denial(err error, status int) string {
	switch {
	case strings.Contains(err.Error(), "no basic auth credentials"):
		return "no basic auth credentials"
	case status == http.StatusForbidden, status == 0:
		return "denied: requested access to the resource is denied"
	}
	return "unauthorized: authentication required (the registry refuses the user name or the password)"
}

// maxDetail bounds what a registry may add to an error's text, in bytes.
const maxDetail = 300

// detail is what a registry says of an error itself.
func detail(err error) string {
	list := registryErrors(err)
	if len(list) == 0 {
		return ""
	}
	text := list[0].Error()
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}

func afterColon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

func familiarRef(ref reference.Named) string { return reference.FamiliarString(ref) }

// mayPass reports whether trying again in a moment makes sense.
func mayPass(err error) bool {
	var e *registryError
	return errors.As(err, &e) && e.again
}

// isFull reports whether the disk of this node had no room. Of what containerd does in the background only the text is left.
func isFull(err error) bool {
	if e, ok := errors.AsType[*registryError](err); ok {
		return e.full
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || strings.Contains(err.Error(), syscall.ENOSPC.Error())
}

// isDown reports whether nobody answers at the registry's address.
func isDown(err error) bool {
	var e *registryError
	return errors.As(err, &e) && e.down
}
