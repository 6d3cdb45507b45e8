package compose

import (
	"fmt"
	"slices"
	"strings"
)

// ignoredKeys are service keys that a swarm has no place for, and what happens instead.
func ignoredKeys() map[string]string {
	return map[string]string{
		"build":               "is ignored: a stack runs images that are built already; build and push it, or load it on the nodes",
		"container_name":      "is ignored: a service has many containers, named SERVICE.SLOT.ID; other services find it by its service name",
		"expose":              "has no effect: services on one network reach each other's ports anyway",
		"links":               "is ignored: services on one network find each other by name; for another name use an alias under networks",
		"external_links":      "is ignored: attach both to one external network",
		"devices":             "is ignored: the tasks get no devices",
		"device_cgroup_rules": "is ignored: the tasks get no devices",
		"gpus":                "is ignored: reserve them with deploy.resources.reservations.generic_resources",
		"privileged":          "is ignored: tasks run unprivileged; add what they need with cap_add",
		"pid":                 "is ignored: each task has its own processes",
		"ipc":                 "is ignored: each task has its own shared memory",
		"uts":                 "is ignored: each task has its own host name",
		"cgroup":              "is ignored: each task has its own cgroup namespace",
		"cgroupns_mode":       "is ignored: each task has its own cgroup namespace",
		"cgroup_parent":       "is ignored: the daemon places the cgroups of tasks",
		"domainname":          "is ignored: give the full name as hostname",
		"mac_address":         "is ignored: addresses are given by the swarm",
		"userns_mode":         "is ignored: tasks run in the daemon's user namespace",
		"runtime":             "is ignored: tasks run with the daemon's runtime",
		"storage_opt":         "is ignored: the file system of a task has no size of its own",
		"volumes_from":        "is ignored: name the volume at the top and mount it in both services",
		"volume_driver":       "is ignored: name the driver at the top-level volume",
		"cpu_shares":          "is ignored: limit with deploy.resources.limits.cpus",
		"cpu_quota":           "is ignored: limit with deploy.resources.limits.cpus",
		"cpu_period":          "is ignored: limit with deploy.resources.limits.cpus",
		"cpu_rt_period":       "is ignored: limit with deploy.resources.limits.cpus",
		"cpu_rt_runtime":      "is ignored: limit with deploy.resources.limits.cpus",
		"cpu_count":           "is ignored: limit with deploy.resources.limits.cpus",
		"cpu_percent":         "is ignored: limit with deploy.resources.limits.cpus",
		"cpuset":              "is ignored: limit with deploy.resources.limits.cpus",
		"blkio_config":        "is ignored: tasks share the disk evenly",
		"oom_kill_disable":    "is ignored: a task over its memory limit is killed",
		"annotations":         "is ignored: use labels",
		"attach":              "is ignored: read logs with service logs",
		"pull_refresh_after":  "is ignored: see pull_policy",
		"pull_policy":         "is ignored: the image's digest is pinned at deploy; see --resolve-image",
		"develop":             "is ignored: it is for work on one machine",
		"models":              "is ignored: a swarm has no models; use a service",
		"provider":            "is ignored: a swarm has no providers; use a service with an image",
		"pre_start":           "is ignored: put the step into a service of mode replicated-job and wait for it with depends_on",
		"post_start":          "is ignored: let the image's own entrypoint do it",
		"pre_stop":            "is ignored: let the program do it at SIGTERM; it has stop_grace_period for it",
		"use_api_socket":      "is ignored: mount the daemon's socket as a volume",
		"umask":               "is ignored: set it in the image's entrypoint",
	}
}

// ignored warns of what a service says in vain.
func (l *loader) ignored(m *model, name string, svc dict) {
	warn := func(text string, keys ...string) {
		l.warn(m.at("services", name, keys...), name, strings.Join(keys, "."), "%s", text)
	}
	table := ignoredKeys()
	for _, k := range sorted(svc) {
		if text, ok := table[k]; ok {
			warn(text, k)
		}
	}
	l.ignoredPorts(m, name, svc)
	for _, n := range sorted(sub(svc, "networks")) {
		nw := sub(sub(svc, "networks"), n)
		for _, k := range []string{"ipv4_address", "ipv6_address", "link_local_ips", "mac_address"} {
			if _, ok := nw[k]; ok {
				warn("is ignored: addresses of tasks are given by the swarm", "networks", n, k)
			}
		}
		for _, k := range []string{"priority", "gw_priority", "interface_name", "use_service_name_alias"} {
			if _, ok := nw[k]; ok {
				warn("is ignored: a swarm has no such setting", "networks", n, k)
			}
		}
	}
	for _, dep := range sorted(sub(svc, "depends_on")) {
		if flag(sub(sub(svc, "depends_on"), dep), "restart") {
			warn("is ignored: an update of one service does not restart another", "depends_on", dep, "restart")
		}
	}
	if devices := list(sub(sub(sub(svc, "deploy"), "resources"), "reservations"), "devices"); len(devices) > 0 {
		warn("is ignored: reserve them with generic_resources", "deploy", "resources", "reservations", "devices")
	}
	l.ignoredMounts(m, name, svc)
	if mode := str(svc, "network_mode"); !slices.Contains([]string{"", "host", "none"}, mode) {
		warn(fmt.Sprintf("is ignored: %q is no network of a swarm; use networks, or host or none", mode), "network_mode")
	}
	for i, v := range list(svc, "security_opt") {
		if _, ok := securityOption(text(v)); !ok {
			warn(fmt.Sprintf("is ignored: a service cannot have %q", text(v)), "security_opt", fmt.Sprint(i))
		}
	}
	if svc["restart"] != nil && sub(sub(svc, "deploy"), "restart_policy") != nil {
		warn("is ignored: deploy.restart_policy counts", "restart")
	}
}

func (l *loader) ignoredPorts(m *model, name string, svc dict) {
	for i, v := range list(svc, "ports") {
		p, _ := v.(dict)
		pos := m.at("services", name, "ports", fmt.Sprint(i))
		if ip := str(p, "host_ip"); ip != "" {
			l.warn(pos, name, "ports", "publishes %s on every address of the nodes, not on %s alone: a published port has no address; firewall it in the chain skep-user", portKey(p), ip)
		}
		if a := str(p, "app_protocol"); a != "" {
			l.warn(pos, name, "ports", "app_protocol %s is ignored", a)
		}
	}
}

func (l *loader) ignoredMounts(m *model, name string, svc dict) {
	for i, v := range list(svc, "volumes") {
		mnt, _ := v.(dict)
		say := func(keys ...string) {
			l.warn(m.at("services", name, append([]string{"volumes", fmt.Sprint(i)}, keys...)...), name, "volumes."+strings.Join(keys, "."), "is ignored: a mount of a service has no such option")
		}
		if sub(mnt, "bind")["selinux"] != nil {
			say("bind", "selinux")
		}
		if sub(mnt, "volume")["labels"] != nil {
			say("volume", "labels")
		}
	}
}
