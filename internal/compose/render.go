package compose

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// defaultVersion is what Docker's CLI writes when a file names no version.
const defaultVersion = "3.13"

// render prints a model as YAML, in the shape that `docker stack config` prints.
func (m *model) render() ([]byte, error) {
	out, _ := clone(m.value).(dict)
	version := text(out["version"])
	if version == "" || version == "3" {
		version = defaultVersion
	}
	out["version"] = version
	services := sub(out, "services")
	if services == nil {
		services = dict{}
		out["services"] = services
	}
	for _, v := range services {
		svc, _ := v.(dict)
		renderService(svc)
	}
	for _, s := range []string{"networks", "volumes", "secrets", "configs"} {
		for _, v := range sub(out, s) {
			prune(v, "")
		}
		if len(sub(out, s)) == 0 {
			delete(out, s)
		}
	}
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(out); err != nil {
		return nil, fmt.Errorf("print the merged file: %w", err)
	}
	return buf.Bytes(), nil
}

// JSON turns what Render made into JSON.
func JSON(source []byte) ([]byte, error) {
	var v any
	if err := yaml.Unmarshal(source, &v); err != nil {
		return nil, fmt.Errorf("read the merged file again: %w", err)
	}
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("print the merged file: %w", err)
	}
	return append(out, '\n'), nil
}

func renderService(svc dict) {
	if deps := sub(svc, "depends_on"); deps != nil && plain(deps) {
		svc["depends_on"] = anys(sorted(deps))
	}
	for _, v := range list(svc, "env_file") {
		if long, ok := v.(dict); ok && len(long) == 1 {
			long["required"] = true // keeps apart from the short form, which is read otherwise
		}
	}
	prune(svc, "")
}

// plain says whether depends_on says no more than its short form can.
func plain(deps dict) bool {
	for _, v := range deps {
		d, _ := v.(dict)
		required, has := d["required"].(bool)
		if str(d, "condition") != "service_started" || has && !required || d["restart"] != nil {
			return false
		}
	}
	return true
}

// prune removes what is empty, false or zero, as Docker's CLI does: but not where that says something.
func prune(v any, key string) {
	m, ok := v.(dict)
	if !ok {
		if l, ok := v.([]any); ok {
			for _, x := range l {
				prune(x, "")
			}
		}
		return
	}
	if keepsAll(key) {
		return
	}
	for k, x := range m {
		if strings.HasPrefix(k, "x-") {
			continue
		}
		prune(x, k)
		if empty(x) && !says(k, x) && key != "networks" {
			delete(m, k)
		}
	}
}

// keepsAll names the mappings whose entries are the user's own.
func keepsAll(key string) bool {
	return slices.Contains([]string{"environment", "labels", "sysctls", "driver_opts", "options", "args", "annotations", "x-cluster-spec"}, key)
}

// says names the keys whose zero value is not the same as their absence.
func says(key string, v any) bool {
	if _, ok := v.(dict); ok {
		return slices.Contains([]string{"logging", "healthcheck", "update_config", "rollback_config", "restart_policy", "limits", "reservations",
			"bind", "volume", "tmpfs", "image", "cluster"}, key)
	}
	return v != nil && slices.Contains([]string{"replicas", "max_attempts", "retries", "init", "parallelism", "interval", "timeout", "start_period", "start_interval",
		"stop_grace_period", "window", "mode", "required", "condition", "create_host_path"}, key)
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case dict:
		return len(v) == 0
	case []any:
		return len(v) == 0
	case string:
		return v == "" || v == "0s"
	case bool:
		return !v
	case int:
		return v == 0
	case float64:
		return v == 0
	}
	return false
}
