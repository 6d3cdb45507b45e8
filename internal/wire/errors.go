package wire

import (
	"context"
	"errors"
	"io"

	"github.com/skep-swarm/skep/internal/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// codesOf maps kinds of errors to gRPC codes and, read backwards, back.
var codesOf = [...]struct {
	kind model.ErrKind
	code codes.Code
}{
	{model.Invalid, codes.InvalidArgument},
	{model.NotFound, codes.NotFound},
	{model.Conflict, codes.AlreadyExists},
	{model.Stale, codes.Aborted},
	{model.FailedPrecondition, codes.FailedPrecondition},
	{model.Forbidden, codes.PermissionDenied},
	{model.Unavailable, codes.Unavailable},
	{model.Unimplemented, codes.Unimplemented},
	{model.Unauthorized, codes.Unauthenticated},
	{model.Exhausted, codes.ResourceExhausted},
}

// ToStatus turns an error into one that gRPC carries with its kind; a status stays as it is and nil stays nil.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	kind := model.KindOf(err)
	for _, c := range codesOf {
		if c.kind == kind {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// FromStatus turns an error of a gRPC call into one of package model's kinds. io.EOF and nil stay as they are.
func FromStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch st.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	for _, c := range codesOf {
		if c.code == st.Code() {
			return model.Errorf(c.kind, "%s", st.Message())
		}
	}
	return errors.New(st.Message())
}

// ErrorParts splits an error for the fields (error, error_kind) of a message; nil is ("", 0).
func ErrorParts(err error) (text string, kind uint32) {
	if err == nil {
		return "", 0
	}
	return err.Error(), uint32(model.KindOf(err))
}

// PartsError is the error that ErrorParts split.
func PartsError(text string, kind uint32) error {
	if text == "" {
		return nil
	}
	if kind == 0 || kind > uint32(model.Exhausted) {
		return errors.New(text)
	}
	return model.Errorf(model.ErrKind(kind), "%s", text)
}
