// Command testserver is the program of the tiny test image: an HTTP server that
// tells who answered whom, and misbehaves on request. It is static and small.
//
//	GET /            host name, task, client address, request headers, as text
//	GET /sleep?ms=N  answers after N milliseconds
//	GET /exit?code=N answers, then ends with that code
//	GET /log?lines=N&size=B[&to=stderr]   writes N lines of B bytes (default 64)
//	GET /eat?mb=N    keeps N MB of memory, touched
//	GET /env, /pid   environment, process ID
//
// It can echo over TCP and UDP, too (-tcp-echo, -udp-echo), and be a bad citizen from its start on:
// -help lists the flags.
//
// With the arguments `get URL` it is a client instead: it prints the answer and ends.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

type options struct {
	listen, tcpEcho, udpEcho  string
	ignoreTerm                bool
	drain, startDelay         time.Duration
	exitCode, logLines, logMB int
	eatMB                     int
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "get" {
		os.Exit(get(os.Args[2]))
	}
	var o options
	flag.StringVar(&o.listen, "listen", ":8080", "address of the HTTP server")
	flag.StringVar(&o.tcpEcho, "tcp-echo", "", "address of a TCP server that sends back what it gets")
	flag.StringVar(&o.udpEcho, "udp-echo", "", "address of a UDP server that sends back what it gets, after its host name and the client's address")
	flag.BoolVar(&o.ignoreTerm, "ignore-term", false, "do not end at SIGTERM")
	flag.DurationVar(&o.drain, "drain", 0, "at SIGTERM, answer on for so long before ending")
	flag.DurationVar(&o.startDelay, "start-delay", 0, "wait before listening")
	flag.IntVar(&o.exitCode, "exit", -1, "end at once with this code")
	flag.IntVar(&o.logLines, "log-lines", 0, "write so many numbered lines first")
	flag.IntVar(&o.logMB, "log-mb", 0, "write so many MB of numbered 100-byte lines first")
	flag.IntVar(&o.eatMB, "eat-mb", 0, "take so much memory first")
	flag.Parse()
	code, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testserver:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(o options) (int, error) {
	s := &server{name: hostname(), exit: make(chan int, 1)}
	s.writeLines(os.Stdout, o.logLines+o.logMB*10_000, 100)
	if o.exitCode >= 0 {
		return o.exitCode, nil
	}
	s.eat(o.eatMB)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	time.Sleep(o.startDelay)

	ln, err := net.Listen("tcp", o.listen)
	if err != nil {
		return 0, err
	}
	if err := s.echo(o); err != nil {
		return 0, err
	}
	web := &http.Server{Handler: s.routes()}
	go func() {
		if err := web.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "testserver:", err)
			s.exit <- 1
		}
	}()
	fmt.Println("listening on", ln.Addr())
	for {
		select {
		case code := <-s.exit:
			return code, nil
		case sig := <-signals:
			fmt.Println("got", sig)
			if o.ignoreTerm {
				continue
			}
			time.Sleep(o.drain)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			return 0, web.Shutdown(ctx)
		}
	}
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

type server struct {
	name string
	exit chan int

	mu    sync.Mutex
	eaten [][]byte
	lines int
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.who)
	mux.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Duration(number(r, "ms", 0)) * time.Millisecond)
		s.who(w, r)
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		s.who(w, r)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		s.exit <- number(r, "code", 1)
	})
	mux.HandleFunc("/log", func(w http.ResponseWriter, r *http.Request) {
		out := io.Writer(os.Stdout)
		if r.FormValue("to") == "stderr" {
			out = os.Stderr
		}
		s.writeLines(out, number(r, "lines", 1), number(r, "size", 64))
		fmt.Fprintln(w, "logged")
	})
	mux.HandleFunc("/eat", func(w http.ResponseWriter, r *http.Request) {
		s.eat(number(r, "mb", 1))
		fmt.Fprintln(w, "eaten")
	})
	mux.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) {
		env := os.Environ()
		slices.Sort(env)
		fmt.Fprintln(w, strings.Join(env, "\n"))
	})
	mux.HandleFunc("/pid", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getpid()) })
	return mux
}

func (s *server) who(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "hostname: %s\ntask: %s\nclient: %s\n%s %s\nHost: %s\n", s.name, os.Getenv("TASK"), r.RemoteAddr, r.Method, r.URL, r.Host)
	names := make([]string, 0, len(r.Header))
	for name := range r.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(w, "%s: %s\n", name, strings.Join(r.Header[name], ", "))
	}
}

func number(r *http.Request, name string, otherwise int) int {
	n, err := strconv.Atoi(r.FormValue(name))
	if err != nil {
		return otherwise
	}
	return n
}

// writeLines writes numbered lines of size bytes, the newline included, so that a
// reader can tell whether one is missing, cut or doubled.
func (s *server) writeLines(w io.Writer, n, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := bufio.NewWriter(w)
	for range n {
		s.lines++
		line := fmt.Sprintf("line %09d ", s.lines)
		if pad := size - len(line) - 1; pad > 0 {
			line += strings.Repeat("x", pad)
		}
		fmt.Fprintln(out, line)
	}
	if err := out.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "testserver: writing the log:", err)
	}
}

func (s *server) eat(mb int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range mb {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1 // memory that is never touched is never given
		}
		s.eaten = append(s.eaten, b)
	}
}

func (s *server) echo(o options) error {
	if o.tcpEcho != "" {
		ln, err := net.Listen("tcp", o.tcpEcho)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					fmt.Fprintf(c, "%s %s\n", s.name, c.RemoteAddr())
					_, _ = io.Copy(c, c)
				}()
			}
		}()
	}
	if o.udpEcho != "" {
		pc, err := net.ListenPacket("udp", o.udpEcho)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(fmt.Appendf(nil, "%s %s %s", s.name, from, buf[:n]), from)
			}
		}()
	}
	return nil
}

func get(url string) int {
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil || resp.StatusCode >= 400 {
		fmt.Fprintln(os.Stderr, resp.Status, err)
		return 1
	}
	return 0
}
