package model

import (
	"errors"
	"fmt"
)

// ErrKind sorts errors; one table in the API maps kinds to HTTP and gRPC codes.
type ErrKind uint8

const (
	Unknown  ErrKind = iota
	Invalid          // the request can never work: 400
	NotFound         // 404
	Conflict         // a name or object exists: 409
	Stale            // computed from what has changed since
	FailedPrecondition
	Forbidden     // 403
	Unavailable   // try later or elsewhere: 503
	Unimplemented // 501
	Unauthorized  // 401
	Exhausted     // disk or quota: 507/503
)

// Error is an error of one of the kinds. Message is one line for the user.
type Error struct {
	Kind    ErrKind
	Message string
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an error of a kind.
func Errorf(kind ErrKind, format string, args ...any) error {
	return &Error{kind, fmt.Sprintf(format, args...)}
}

// Invalidf, NotFoundf, Conflictf and Stalef make errors of those kinds.
func Invalidf(format string, args ...any) error  { return Errorf(Invalid, format, args...) }
func NotFoundf(format string, args ...any) error { return Errorf(NotFound, format, args...) }
func Conflictf(format string, args ...any) error { return Errorf(Conflict, format, args...) }
func Stalef(format string, args ...any) error    { return Errorf(Stale, format, args...) }

// KindOf is the kind of err, or of the first error of a kind that it wraps.
func KindOf(err error) ErrKind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Unknown
}
