package main

import (
	"bufio"
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestReadAnswer(t *testing.T) {
	for _, c := range []struct {
		in   string
		want any
	}{
		{"+OK\r\n", "OK"},
		{":-7\r\n", int64(-7)},
		{"$5\r\na\r\nbc\r\n", "a\r\nbc"},
		{"$0\r\n\r\n", ""},
		{"$-1\r\n", nil},
		{"*-1\r\n", nil},
		{"*2\r\n$1\r\nx\r\n*1\r\n:1\r\n", []any{"x", []any{int64(1)}}},
		{"-ERR no\r\n", errRedis("ERR no")},
	} {
		got, err := readAnswer(bufio.NewReader(strings.NewReader(c.in)), 0)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %#v, %v; want %#v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"", "+", "+OK\n", "OK\r\n", ":x\r\n", "$9999999999\r\n", "$-2\r\n", "*99999999\r\n", "$3\r\nab\r\n", "$1\r\nabc\r\n",
		"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", "+" + strings.Repeat("x", 5000) + "\r\n"} {
		if got, err := readAnswer(bufio.NewReader(strings.NewReader(in)), 0); err == nil {
			t.Errorf("%.20q: %#v, want an error", in, got)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, s := range []string{"+OK\r\n", "*2\r\n$1\r\nx\r\n*1\r\n:1\r\n", "$-1\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, s string) {
		_, _ = readAnswer(bufio.NewReader(strings.NewReader(s)), 0) // must end, without a panic
	})
}

func TestRedisComesBack(t *testing.T) {
	f := newFakeRedis(t, "pass word")
	c := &redisClient{addr: f.addr(), password: "pass word"}
	defer c.close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ask := func(want int64) {
		t.Helper()
		got, err := c.do(ctx, []string{"INCR", "x"}, []string{"PING"})
		if err != nil || got[0] != want || got[1] != "PONG" {
			t.Fatalf("%v, %v; want %d", got, err, want)
		}
	}
	ask(1)
	ask(2)
	f.mu.Lock()
	conns := len(f.conns)
	f.mu.Unlock()
	if conns != 1 {
		t.Errorf("two questions one after the other took %d connections", conns)
	}
	addr := f.addr()
	f.stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		// Not before the client has met the silence once.
		short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
		defer cancel()
		if _, err := c.do(short, []string{"PING"}); err == nil {
			t.Error("a Redis that ended answers")
		}
		f.start(addr)
	}()
	<-back
	ask(3)
	f.mu.Lock()
	f.loading = 2
	f.mu.Unlock()
	if _, err := c.do(ctx, []string{"PING"}); err != nil {
		t.Errorf("while it loads: %v", err)
	}
}

func TestRedisRefuses(t *testing.T) {
	f := newFakeRedis(t, "right")
	for password, want := range map[string]string{"wrong": "WRONGPASS", "": "NOAUTH"} {
		c := &redisClient{addr: f.addr(), password: password}
		begin := time.Now()
		_, err := c.do(t.Context(), []string{"PING"})
		var refused errRedis
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("password %q: %v", password, err)
		}
		if time.Since(begin) > redisTimeout {
			t.Errorf("password %q was tried again", password)
		}
		c.close()
	}
}
