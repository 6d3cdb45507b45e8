package keeper

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// Bounds of a log whose options set none: 1 GiB on disk for each task.
const (
	DefaultMaxSize  = 256 << 20 // bytes a file
	DefaultMaxFiles = 4
)

const (
	// maxMaxFiles bounds the option max-file.
	maxMaxFiles = 1000
	// maxAttrs bounds what options add to every line, in bytes.
	maxAttrs = 16 << 10
)

// A LogSpec says how a container's output is to be logged.
type LogSpec struct {
	// ContainerID names the log; Dir is the directory it lies in, made
	// when missing.
	ContainerID string
	Dir         string
	// Driver is "json-file", "none" or empty for json-file. Options are
	// Docker's for it; without any the log is bounded by DefaultMaxSize
	// and DefaultMaxFiles.
	Driver  string
	Options map[string]string
	// TTY tells that there is one stream only.
	TTY bool
	// What the options labels, labels-regex, env, env-regex and tag can
	// refer to.
	Labels        map[string]string
	Env           []string // K=V
	ContainerName string
	ImageName     string
	ImageID       string
}

// ErrInvalid is in the chain of errors about options that the user set.
var ErrInvalid = errors.New("invalid log configuration")

// ValidateLog tells whether a log driver and its options can be used, in
// Docker's words where it has them.
func ValidateLog(driver string, options map[string]string) error {
	spec := LogSpec{ContainerID: "0", Dir: "/", Driver: driver, Options: options}
	_, err := spec.resolve()
	return err
}

type invalid struct{ text string }

func (e *invalid) Error() string { return e.text }
func (e *invalid) Unwrap() error { return ErrInvalid }

func refuse(format string, args ...any) error { return &invalid{fmt.Sprintf(format, args...)} }

// resolve returns what the keeper needs to know, or nil when there is nothing
// to log.
func (s *LogSpec) resolve() (*logConfig, error) {
	switch s.Driver {
	case "none":
		return nil, nil
	case "", "json-file":
	default:
		return nil, refuse("logger: no log driver named '%s' is registered", s.Driver)
	}
	if s.ContainerID == "" || s.ContainerID != filepath.Base(s.ContainerID) || strings.HasPrefix(s.ContainerID, ".") {
		return nil, refuse("container ID %q cannot name a log", s.ContainerID)
	}
	if !filepath.IsAbs(s.Dir) {
		return nil, refuse("log directory %q is not absolute", s.Dir)
	}
	cfg := &logConfig{ID: s.ContainerID, Dir: s.Dir, TTY: s.TTY}
	if err := s.checkOptions(); err != nil {
		return nil, err
	}
	if err := s.bounds(cfg); err != nil {
		return nil, err
	}
	attrs, err := s.attrs()
	if err != nil {
		return nil, err
	}
	cfg.Attrs = attrs
	return cfg, nil
}

// checkOptions refuses unknown options, and those that are about something
// this driver does another way.
func (s *LogSpec) checkOptions() error {
	for name, value := range s.Options {
		switch name {
		case "max-size", "max-file", "labels", "labels-regex", "env", "env-regex", "tag":
		case "compress":
			on, err := strconv.ParseBool(value)
			if err != nil {
				return refuse("invalid value for compress: %q", value)
			}
			if on {
				return refuse("compress=true is not supported: use max-size and max-file to bound the log")
			}
		case "mode":
			// Output is always taken off the container's hands at once.
			if value != "blocking" && value != "non-blocking" {
				return refuse("logger: logging mode not supported: %s", value)
			}
		case "max-buffer-size":
			if s.Options["mode"] != "non-blocking" {
				return refuse("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
			}
			if _, err := units.RAMInBytes(value); err != nil {
				return refuse("error parsing option max-buffer-size: %v", err)
			}
		default:
			return refuse("unknown log opt '%s' for json-file log driver", name)
		}
	}
	return nil
}

// bounds sets the size and number of files.
func (s *LogSpec) bounds(cfg *logConfig) error {
	size, sized := s.Options["max-size"]
	files, filed := s.Options["max-file"]
	cfg.MaxSize, cfg.MaxFiles = DefaultMaxSize, DefaultMaxFiles
	if sized {
		cfg.MaxFiles = 1 // Docker's default
		switch n, err := units.FromHumanSize(size); {
		case size == "-1":
			cfg.MaxSize = 0
		case err != nil:
			return refuse("invalid max-size %q: %v", size, err)
		case n <= 0:
			return refuse("max-size must be a positive number, not %q", size)
		default:
			cfg.MaxSize = n
		}
	}
	if filed {
		n, err := strconv.Atoi(files)
		if err != nil {
			return refuse("invalid max-file %q: not a number", files)
		}
		if n < 1 {
			return refuse("max-file cannot be less than 1")
		}
		if n > maxMaxFiles {
			return refuse("max-file cannot be more than %d", maxMaxFiles)
		}
		cfg.MaxFiles = n
		if !sized {
			cfg.MaxSize = DefaultMaxSize * DefaultMaxFiles / int64(n)
		}
	}
	return nil
}

// attrs collects what the options want in every line.
func (s *LogSpec) attrs() (map[string]string, error) {
	env := make(map[string]string, len(s.Env))
	for _, kv := range s.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	attrs := make(map[string]string)
	for _, src := range []struct {
		option string
		values map[string]string
	}{{"labels", s.Labels}, {"env", env}} {
		for _, name := range strings.Split(s.Options[src.option], ",") {
			if v, ok := src.values[name]; ok && name != "" {
				attrs[name] = v
			}
		}
		expr := s.Options[src.option+"-regex"]
		if expr == "" {
			continue
		}
		re, err := regexp.Compile(expr)
		if err != nil {
			return nil, refuse("invalid %s-regex: %v", src.option, err)
		}
		for k, v := range src.values {
			if re.MatchString(k) {
				attrs[k] = v
			}
		}
	}
	if tag := s.Options["tag"]; tag != "" {
		text, err := s.tag(tag)
		if err != nil {
			return nil, err
		}
		attrs["tag"] = text
	}
	size := 0
	for k, v := range attrs {
		size += len(k) + len(v)
	}
	if size > maxAttrs {
		return nil, refuse("labels, env and tag of the log add %d bytes to every line, the limit is %d", size, maxAttrs)
	}
	return attrs, nil
}

// tag fills in Docker's tag template. Only plain fields are known.
func (s *LogSpec) tag(text string) (string, error) {
	short := func(id string) string {
		id = strings.TrimPrefix(id, "sha256:")
		return id[:min(12, len(id))]
	}
	field := regexp.MustCompile(`\{\{\s*\.(\w+)\s*\}\}`)
	fields := map[string]string{
		"ID": short(s.ContainerID), "FullID": s.ContainerID,
		"Name": strings.TrimPrefix(s.ContainerName, "/"), "FullName": s.ContainerName,
		"ImageName": s.ImageName, "ImageID": short(s.ImageID), "ImageFullID": s.ImageID,
		"DaemonName": "skep",
	}
	var unknown string
	out := field.ReplaceAllStringFunc(text, func(m string) string {
		name := field.FindStringSubmatch(m)[1]
		v, ok := fields[name]
		if !ok {
			unknown = name
		}
		return v
	})
	if unknown != "" || strings.Contains(out, "{{") {
		return "", refuse("invalid log tag %q: only {{.ID}}, {{.FullID}}, {{.Name}}, {{.FullName}}, {{.ImageName}}, {{.ImageID}}, {{.ImageFullID}} and {{.DaemonName}} can be used", text)
	}
	return out, nil
}
