package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// udp FROM ADDRESS TEXT sends a datagram from a host, or from the first task of a service, where the address may be a name,
// and prints the answer.
func udp(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) != 3 {
		return "", errors.New("want client, node or a service, an address and a text")
	}
	c, err := s.dialUDP(ctx, args[0], args[1])
	if err != nil {
		return "", err
	}
	defer c.Close()
	return say(c, args[2])
}

// flowCommand is the script command
//
//	flow open NAME FROM ADDRESS   make a UDP socket that sends to one address, as udp does
//	flow ask NAME TEXT            send a datagram from it, and print the answer
func flowCommand(ctx context.Context, s *story, args []string) (string, error) {
	switch {
	case len(args) == 4 && args[0] == "open" && s.conns[args[1]] == nil:
		c, err := s.dialUDP(ctx, args[2], args[3])
		if err != nil {
			return "", err
		}
		s.conns[args[1]] = c
		return "", nil
	case len(args) == 3 && args[0] == "ask" && s.conns[args[1]] != nil:
		return say(s.conns[args[1]], args[2])
	}
	return "", errors.New("want open NAME FROM ADDRESS, or ask NAME TEXT")
}

func (s *story) dialUDP(ctx context.Context, from, address string) (net.Conn, error) {
	switch from {
	case "client":
		return s.client.Dial(ctx, "udp", address)
	case "node":
		return s.node.Dial(ctx, "udp", address)
	}
	places, err := s.placesOf(ctx, from)
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		defer p.Close()
	}
	if len(places) == 0 {
		return nil, fmt.Errorf("service %s has no running task", from)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if host, err = lookUp(ctx, loadClient{place: places[0]}, host); err != nil {
			return nil, err
		}
	}
	return places[0].Dial(ctx, "udp", netip.Addr{}, net.JoinHostPort(host, port))
}

func say(c net.Conn, text string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	return string(buf[:n]) + "\n", err
}
