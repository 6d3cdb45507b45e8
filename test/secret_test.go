package test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
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

// huntCommand is
//
//	hunt none|found FILE in PATH…           look for what FILE holds in files, and in those below directories
//	hunt none|found FILE memory keeper|shim|daemon   … in the memory of the node's processes of that kind
//
// The value counts as found as it is, in hexadecimal, and in base64 wherever it lies in what was encoded. A search
// that could look at nothing has failed, whatever is wanted.
func huntCommand(_ context.Context, s *story, args []string) (string, error) {
	if len(args) < 4 || args[0] != "none" && args[0] != "found" {
		return "", errors.New("want none|found FILE in PATH… or none|found FILE memory KIND")
	}
	value, err := os.ReadFile(filepath.Join(s.work, args[1]))
	if err != nil {
		return "", err
	}
	value = bytes.TrimSpace(value)
	if len(value) < 16 {
		return "", errors.New("the value is too short to look for")
	}
	h := &hunt{needles: needles(value)}
	switch args[2] {
	case "in":
		for _, path := range args[3:] {
			if !filepath.IsAbs(path) {
				path = filepath.Join(s.work, path)
			}
			err = errors.Join(err, h.tree(path))
		}
	case "memory":
		err = h.memory(s.node.Pid(), args[3])
	default:
		err = fmt.Errorf("unknown: %s", args[2])
	}
	switch {
	case err != nil:
		return "", err
	case h.bytes == 0:
		return "", errors.New("there was nothing to look at")
	case args[0] == "none" && len(h.hits) > 0:
		return "", fmt.Errorf("found in %s", strings.Join(h.hits, ", "))
	case args[0] == "found" && len(h.hits) == 0:
		return "", fmt.Errorf("not found in %d bytes", h.bytes)
	}
	return fmt.Sprintf("looked at %d bytes in %d places, %d hits\n", h.bytes, h.places, len(h.hits)), nil
}

// needles are the forms in which a value may show.
func needles(value []byte) map[string][]byte {
	out := map[string][]byte{"as it is": value, "in hex": []byte(hex.EncodeToString(value)), "in HEX": []byte(strings.ToUpper(hex.EncodeToString(value)))}
	for skip := range 3 {
		// What comes before and after the value changes the characters at its edges, so these are left out.
		padded := append(make([]byte, skip), value...)
		padded = padded[:len(padded)-len(padded)%3]
		first := (skip*8 + 5) / 6
		for name, enc := range map[string]*base64.Encoding{"base64": base64.StdEncoding, "base64 for URLs": base64.URLEncoding} {
			out[fmt.Sprintf("in %s, at %d", name, skip)] = []byte(enc.EncodeToString(padded)[first:])
		}
	}
	return out
}

// hunt looks for needles.
type hunt struct {
	needles map[string][]byte
	hits    []string
	bytes   int64
	places  int
}

const huntChunk = 1 << 20

// stream looks at one place, piece by piece; pieces overlap, so that nothing is cut through.
func (h *hunt) stream(where string, read func(p []byte) (int, error)) error {
	h.places++
	buf, kept := make([]byte, huntChunk+256), 0
	seen := map[string]bool{}
	for {
		n, err := read(buf[kept : kept+huntChunk])
		h.bytes += int64(n)
		have := buf[:kept+n]
		for form, needle := range h.needles {
			if !seen[form] && bytes.Contains(have, needle) {
				seen[form] = true
				h.hits = append(h.hits, where+" "+form)
			}
		}
		kept = copy(buf, have[max(0, len(have)-255):])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
}

// tree looks at a file, or at all files of a directory on its own file system: what is mounted below is somebody else's.
func (h *hunt) tree(root string) error {
	var top syscall.Stat_t
	if err := syscall.Stat(root, &top); err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
		if e.IsDir() {
			var st syscall.Stat_t
			if err := syscall.Stat(path, &st); err == nil && st.Dev != top.Dev {
				return fs.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return h.stream(path, f.Read)
	})
}

// memory looks at all processes of a kind in the PID namespace of the node.
func (h *hunt) memory(node int, kind string) error {
	name, ok := map[string]*regexp.Regexp{"keeper": regexp.MustCompile(`^skep-keeper`), "shim": regexp.MustCompile(`^skep-shim`), "daemon": regexp.MustCompile(`^skep$`)}[kind]
	if !ok {
		return fmt.Errorf("unknown kind of process: %s", kind)
	}
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", node))
	if err != nil {
		return err
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range all {
		other, err := os.Readlink(filepath.Join(dir, "ns/pid"))
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || other != space || !name.Match(bytes.TrimSpace(comm)) {
			continue
		}
		if err := h.process(dir); err != nil {
			return err
		}
	}
	if h.places == 0 {
		return fmt.Errorf("the node has no %s", kind)
	}
	return nil
}

// process looks at whatever a process has mapped, heap, stacks and files.
func (h *hunt) process(dir string) error {
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err != nil {
		return err
	}
	mem, err := os.Open(filepath.Join(dir, "mem"))
	if err != nil {
		return err
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		var from, to uint64
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("%s/maps: %w", dir, err)
		}
		if !strings.HasPrefix(f[1], "r") || len(f) > 5 && (f[5] == "[vvar]" || f[5] == "[vsyscall]" || strings.HasPrefix(f[5], "[vvar")) {
			continue
		}
		at := from
		err := h.stream(dir+" "+strings.Join(f[min(5, len(f)):], " "), func(p []byte) (int, error) {
			if at >= to {
				return 0, io.EOF
			}
			n, err := mem.ReadAt(p[:min(uint64(len(p)), to-at)], int64(at))
			at += uint64(n)
			if n == 0 || err != nil {
				return n, io.EOF // unmapped meanwhile, or the hole behind the end of a file
			}
			return n, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// TestHuntFinds shows that the search finds what is there, in each form and across pieces.
func TestHuntFinds(t *testing.T) {
	value := []byte("cGVhcmw-0123456789-xyzzy")
	wrap := func(s string) string { return "before " + s + " after" }
	forms := map[string]string{
		"plain": wrap(string(value)), "hex": wrap(hex.EncodeToString(value)), "HEX": wrap(strings.ToUpper(hex.EncodeToString(value))),
		"across pieces": strings.Repeat(" ", huntChunk-10) + string(value),
	}
	for skip := range 7 {
		text := []byte(strings.Repeat("?", skip) + string(value) + "\xff\xfe tail")
		forms[fmt.Sprint("base64 ", skip)] = base64.StdEncoding.EncodeToString(text)
		forms[fmt.Sprint("base64 for URLs ", skip)] = wrap(base64.RawURLEncoding.EncodeToString(text))
	}
	for name, text := range forms {
		h := &hunt{needles: needles(value)}
		if err := h.stream("x", strings.NewReader(text).Read); err != nil || len(h.hits) == 0 {
			t.Errorf("%s: not found, error %v", name, err)
		}
	}
	h := &hunt{needles: needles(value)}
	if err := h.stream("x", strings.NewReader(wrap("cGVhcmw-0123456789-xyzz")).Read); err != nil || len(h.hits) != 0 {
		t.Errorf("found what is not there: %v %v", h.hits, err)
	}
	// This process has the value in its memory, and another value only in pieces.
	h = &hunt{needles: needles(value)}
	if err := h.process("/proc/self"); err != nil || len(h.hits) == 0 {
		t.Errorf("not found in the memory of this process: %v", err)
	}
}

// sweepCommand asks every place of the API that answers a GET, and the CLI's views, and prints all that they say.
func sweepCommand(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) != 0 {
		return "", errors.New("want nothing")
	}
	var out strings.Builder
	ask := func(path string) error {
		text, err := api(ctx, s, []string{"GET", path})
		fmt.Fprintf(&out, "GET %s: %s", path, text)
		return err
	}
	until := strconv.FormatInt(time.Now().Unix(), 10)
	for _, path := range []string{"/info", "/version", "/swarm", "/swarm/unlockkey", "/nodes", "/services?status=true", "/tasks", "/secrets", "/networks",
		"/volumes", "/images/json", "/containers/json?all=1&size=1", "/system/df", "/plugins", "/events?since=1&until=" + until} {
		if err := ask(path); err != nil {
			return out.String(), err
		}
	}
	for list, paths := range map[string][]string{
		"/services": {"/services/%s", "/services/%s?insertDefaults=true", "/services/%s/logs?stdout=1&stderr=1&details=1", "/skep/v1/services/%s/history", "/skep/v1/services/%s/why"},
		"/tasks":    {"/tasks/%s", "/tasks/%s/logs?stdout=1&stderr=1&details=1"}, "/secrets": {"/secrets/%s"}, "/nodes": {"/nodes/%s"}, "/networks": {"/networks/%s"},
		"/containers/json?all=1": {"/containers/%s/json?size=1", "/containers/%s/logs?stdout=1&stderr=1&details=1", "/containers/%s/stats?stream=0", "/containers/%s/top"},
	} {
		text, err := api(ctx, s, []string{"GET", list})
		if err != nil {
			return out.String(), err
		}
		_, body, _ := strings.Cut(text, "\n")
		var items []struct{ ID string }
		if err := json.Unmarshal([]byte(body), &items); err != nil || len(items) == 0 {
			return out.String(), fmt.Errorf("%s lists nothing: %w", list, err)
		}
		for _, it := range items {
			for _, p := range paths {
				if err := ask(fmt.Sprintf(p, it.ID)); err != nil {
					return out.String(), err
				}
			}
		}
	}
	return out.String(), nil
}
