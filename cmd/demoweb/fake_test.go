package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeRedis answers as Redis does, as far as the demo asks.
type fakeRedis struct {
	t        *testing.T
	password string

	mu      sync.Mutex
	ln      net.Listener
	conns   []net.Conn
	numbers map[string]int64
	loading int // so many answers say that it is loading
}

func newFakeRedis(t *testing.T, password string) *fakeRedis {
	t.Helper()
	f := &fakeRedis{t: t, password: password, numbers: map[string]int64{}}
	f.start("127.0.0.1:0")
	t.Cleanup(f.stop)
	return f
}

func (f *fakeRedis) start(addr string) {
	f.t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.ln = ln
	f.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			go f.serve(c)
		}
	}()
}

// stop closes it with all its connections, as its end does.
func (f *fakeRedis) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ln.Close()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

func (f *fakeRedis) addr() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ln.Addr().String()
}

func (f *fakeRedis) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	signedIn := f.password == ""
	for {
		words, err := readCommand(in)
		if err != nil {
			return
		}
		answer := "-NOAUTH Authentication required.\r\n"
		switch {
		case words[0] == "AUTH" && words[1] == f.password:
			signedIn, answer = true, "+OK\r\n"
		case words[0] == "AUTH":
			answer = "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
		case signedIn:
			answer = f.answer(words)
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

func (f *fakeRedis) answer(words []string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loading > 0 {
		f.loading--
		return "-LOADING Redis is loading the dataset in memory\r\n"
	}
	switch words[0] {
	case "PING":
		return "+PONG\r\n"
	case "INCR":
		f.numbers[words[1]]++
		return fmt.Sprintf(":%d\r\n", f.numbers[words[1]])
	case "HINCRBY":
		f.numbers[words[1]+" "+words[2]]++
		return fmt.Sprintf(":%d\r\n", f.numbers[words[1]+" "+words[2]])
	case "HGETALL":
		var items []string
		for key, n := range f.numbers {
			if name, ok := strings.CutPrefix(key, words[1]+" "); ok {
				items = append(items, fmt.Sprintf("$%d\r\n%s\r\n$%d\r\n%d\r\n", len(name), name, len(strconv.FormatInt(n, 10)), n))
			}
		}
		slices.Sort(items)
		return fmt.Sprintf("*%d\r\n%s", 2*len(items), strings.Join(items, ""))
	}
	return "-ERR unknown command\r\n"
}

func readCommand(in *bufio.Reader) ([]string, error) {
	v, err := readAnswer(in, 0)
	if err != nil {
		return nil, err
	}
	items, _ := v.([]any)
	words := make([]string, len(items))
	for i := range items {
		words[i], _ = items[i].(string)
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("not a command: %v", v)
	}
	return words, nil
}
