package dockerapi

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// grpcPrefix begins the texts that Docker's managers send over gRPC; clients print it, and some
// match on the code's name.
const grpcPrefix = "rpc error: code = "

// kinds is the one table from kinds of errors to HTTP codes and gRPC names.
var kinds = [...]struct {
	status int
	grpc   string
}{
	model.Unknown:            {http.StatusInternalServerError, "Unknown"},
	model.Invalid:            {http.StatusBadRequest, "InvalidArgument"},
	model.NotFound:           {http.StatusNotFound, "NotFound"},
	model.Conflict:           {http.StatusConflict, "AlreadyExists"},
	model.Stale:              {http.StatusInternalServerError, "Unknown"}, // Docker's: clients retry on its text
	model.FailedPrecondition: {http.StatusBadRequest, "FailedPrecondition"},
	model.Forbidden:          {http.StatusForbidden, "PermissionDenied"},
	model.Unavailable:        {http.StatusServiceUnavailable, "Unavailable"},
	model.Unimplemented:      {http.StatusNotImplemented, "Unimplemented"},
	model.Unauthorized:       {http.StatusUnauthorized, "Unauthenticated"},
	model.Exhausted:          {http.StatusInsufficientStorage, "ResourceExhausted"},
}

// statusOf is the HTTP code of an error.
func statusOf(err error) int {
	var tooLarge *http.MaxBytesError
	switch kind := model.KindOf(err); {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case kind != model.Unknown && int(kind) < len(kinds):
		return kinds[kind].status
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// rpcErrorf makes an error as Docker's managers word it.
func rpcErrorf(kind model.ErrKind, format string, args ...any) error {
	return model.Errorf(kind, grpcPrefix+kinds[kind].grpc+" desc = "+format, args...)
}

// rpcError words an error of the state as Docker's managers would have.
func rpcError(err error) error {
	kind := model.KindOf(err)
	if err == nil || kind == model.Unknown || strings.HasPrefix(err.Error(), grpcPrefix) {
		return err
	}
	return rpcErrorf(kind, "%s", err.Error())
}

var errOutOfSequence = rpcErrorf(model.Stale, "update out of sequence")

// The texts for a node that is not a manager; tools match them.
const (
	notManagerInactive = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	notManagerWorker   = `This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.`
	notManagerLocked   = `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`
	alreadyInSwarm     = `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`
	notInSwarm         = `This node is not part of a swarm`
)

// notManager is why a node cannot answer for its swarm; nil when it can.
func notManager(l Local, kind model.ErrKind) error {
	switch {
	case l.State == swarm.LocalNodeStateLocked:
		return model.Errorf(kind, notManagerLocked)
	case l.State == swarm.LocalNodeStateActive && l.Manager:
		return nil
	case l.State == swarm.LocalNodeStateActive, l.State == swarm.LocalNodeStatePending:
		return model.Errorf(kind, notManagerWorker)
	}
	return model.Errorf(kind, notManagerInactive)
}
