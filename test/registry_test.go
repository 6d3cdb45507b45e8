package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/skep-swarm/skep/internal/images/imagetest"
)

// testRegistry is a registry that a story runs on its node. What it holds outlives its being down.
type testRegistry struct {
	*imagetest.Registry
	server *http.Server
	done   chan error
}

// registryCommand is the script command
//
//	registry up ADDR                      serve on the node at this address, 127.0.0.1:5000 say
//	registry down                         cut all connections and stop serving
//	registry require basic|token USER PASSWORD
//	registry break MATCH [times=N] [status=N] [drop=BYTES] [cut=BYTES] [rate=BYTES-A-SECOND] [flip=1]
//	registry mend                         no more faults
//	registry requests TEXT                list the requests so far that contain a text
func registryCommand(_ context.Context, s *story, args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("want up, down, require, break, mend or requests")
	}
	if s.registry == nil {
		s.registry = &testRegistry{Registry: imagetest.NewRegistry()}
	}
	r := s.registry
	switch verb := args[0]; {
	case verb == "up" && len(args) == 2:
		ln, err := s.node.Listen("tcp", args[1])
		if err != nil {
			return "", err
		}
		return "", r.up(ln)
	case verb == "down" && len(args) == 1:
		return "", r.down()
	case verb == "require" && len(args) == 4:
		r.Require(args[2], args[3], args[1] == "token")
		return "", nil
	case verb == "break" && len(args) > 1:
		f, err := parseFault(args[1:])
		if err != nil {
			return "", err
		}
		r.Break(f)
		return "", nil
	case verb == "mend" && len(args) == 1:
		r.Break()
		return "", nil
	case verb == "requests" && len(args) == 2:
		return strings.Join(append(r.Requests(args[1]), ""), "\n"), nil
	}
	return "", fmt.Errorf("registry %s: not understood", strings.Join(args, " "))
}

func (r *testRegistry) up(ln net.Listener) error {
	if r.server != nil {
		ln.Close()
		return errors.New("the registry is up already")
	}
	r.server, r.done = &http.Server{Handler: r.Registry, ReadHeaderTimeout: 10 * time.Second}, make(chan error, 1)
	go func() { r.done <- r.server.Serve(ln) }()
	return nil
}

func (r *testRegistry) down() error {
	if r.server == nil {
		return errors.New("the registry is not up")
	}
	err := r.server.Close()
	if served := <-r.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	r.server = nil
	return err
}

func parseFault(args []string) (imagetest.Fault, error) {
	f := imagetest.Fault{Match: args[0], Times: -1}
	for _, a := range args[1:] {
		key, value, _ := strings.Cut(a, "=")
		n, err := strconv.Atoi(value)
		if err != nil {
			return f, fmt.Errorf("%s: %w", a, err)
		}
		switch key {
		case "times":
			f.Times = n
		case "status":
			f.Status = n
		case "drop":
			f.Drop = n
		case "cut":
			f.Cut = n
		case "rate":
			f.Rate = n
		case "flip":
			f.Flip = n != 0
		default:
			return f, fmt.Errorf("unknown fault %s", key)
		}
	}
	return f, nil
}
