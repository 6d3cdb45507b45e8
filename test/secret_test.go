package test

import (
	"context"
	"errors"
	"strings"
)

// insideCommand is
//
//	inside SERVICE PROGRAM [ARG…]   run a program of the image in each running container of a service, as root
func insideCommand(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("want SERVICE PROGRAM")
	}
	list, err := pids(ctx, s, args[:1])
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for line := range strings.Lines(list) {
		_, pid, _ := strings.Cut(strings.TrimSpace(line), " ")
		text, err := s.inside(ctx, s.node, append([]string{"nsenter", "-t", pid, "-m", "-p", "-u", "-i", "-n", "--"}, args[1:]...))
		out.WriteString(text)
		if err != nil {
			return out.String(), err
		}
	}
	if out.Len() == 0 && list == "" {
		return "", errors.New("the service has no running container")
	}
	return out.String(), nil
}
