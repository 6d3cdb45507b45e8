package compose

import (
	"fmt"
	"strconv"
	"strings"
)

// cast makes a value of the text at a place.
type cast struct {
	place []string
	to    func(string) (any, error)
}

// casts are the places where a text stands for a number or a boolean: a variable is always a text,
// and quotes are easily put. "*" is any key or index.
func casts() []cast {
	const s = "services/*/"
	var out []cast
	add := func(path string, f func(string) (any, error)) { out = append(out, cast{strings.Split(path, "/"), f}) }
	for _, p := range []string{
		s + "configs/*/mode", s + "secrets/*/mode", s + "healthcheck/retries", s + "deploy/replicas", s + "scale",
		s + "deploy/update_config/parallelism", s + "deploy/rollback_config/parallelism", s + "deploy/restart_policy/max_attempts",
		s + "deploy/placement/max_replicas_per_node", s + "deploy/resources/limits/pids",
		s + "ports/*/target", s + "ulimits/*", s + "ulimits/*/hard", s + "ulimits/*/soft", s + "oom_score_adj",
		s + "pids_limit", s + "mem_swappiness", s + "volumes/*/tmpfs/mode",
		s + "deploy/resources/reservations/generic_resources/*/discrete_resource_spec/value",
	} {
		add(p, castInt)
	}
	for _, p := range []string{s + "deploy/update_config/max_failure_ratio", s + "deploy/rollback_config/max_failure_ratio"} {
		add(p, castFloat)
	}
	for _, p := range []string{
		s + "healthcheck/disable", s + "privileged", s + "read_only", s + "stdin_open", s + "tty", s + "init",
		s + "volumes/*/read_only", s + "volumes/*/volume/nocopy", s + "volumes/*/bind/create_host_path",
		s + "depends_on/*/required", s + "depends_on/*/restart", s + "env_file/*/required", s + "oom_kill_disable",
		"networks/*/external", "networks/*/internal", "networks/*/attachable", "networks/*/enable_ipv4", "networks/*/enable_ipv6",
		"volumes/*/external", "secrets/*/external", "configs/*/external",
	} {
		add(p, castBool)
	}
	return out
}

func castInt(s string) (any, error) {
	n, err := strconv.ParseInt(s, 0, 64) // 0444 is octal, as in YAML
	if err != nil {
		return nil, fmt.Errorf("%q is no whole number", s)
	}
	return int(n), nil
}

func castFloat(s string) (any, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return nil, fmt.Errorf("%q is no number", s)
	}
	return f, nil
}

func castBool(s string) (any, error) {
	switch strings.ToLower(s) {
	case "y", "yes", "true", "on":
		return true, nil
	case "n", "no", "false", "off":
		return false, nil
	}
	return nil, fmt.Errorf("%q is neither true nor false", s)
}

// at says whether a path is the cast's place.
func (c cast) at(path []string) bool {
	if len(c.place) != len(path) {
		return false
	}
	for i, p := range c.place {
		if p != "*" && p != path[i] {
			return false
		}
	}
	return true
}
