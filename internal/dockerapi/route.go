package dockerapi

import (
	"net/http"
	"slices"
	"strings"
)

// handler answers one request; an error becomes Docker's error reply.
type handler func(*request) error

// route is one method and path pattern. A segment {x} takes one segment; {x...} takes one or
// more, because image names have slashes.
type route struct {
	method  string
	pattern []string
	handle  handler
	// stream is true for requests whose length the client decides.
	stream bool
}

// routeTable finds routes by their first segment.
type routeTable map[string][]*route

func (t routeTable) add(method, pattern string, h handler) *route {
	r := &route{method: method, pattern: strings.Split(strings.Trim(pattern, "/"), "/"), handle: h}
	t[r.pattern[0]] = append(t[r.pattern[0]], r)
	return r
}

func (t routeTable) get(pattern string, h handler)    { t.add(http.MethodGet, pattern, h) }
func (t routeTable) post(pattern string, h handler)   { t.add(http.MethodPost, pattern, h) }
func (t routeTable) delete(pattern string, h handler) { t.add(http.MethodDelete, pattern, h) }

// find is the route for a path: the first one added that matches.
func (t routeTable) find(method, path string) (*route, map[string]string) {
	segments := strings.Split(strings.Trim(path, "/"), "/")
	for _, r := range t[segments[0]] {
		if r.method != method {
			continue
		}
		if vars, ok := match(r.pattern, segments); ok {
			return r, vars
		}
	}
	return nil, nil
}

func match(pattern, segments []string) (map[string]string, bool) {
	if greedy := slices.IndexFunc(pattern, func(p string) bool { return strings.HasSuffix(p, "...}") }); greedy >= 0 {
		extra := len(segments) - len(pattern)
		if extra < 0 {
			return nil, false
		}
		joined := slices.Clone(segments[:greedy])
		joined = append(joined, strings.Join(segments[greedy:greedy+extra+1], "/"))
		segments = append(joined, segments[greedy+extra+1:]...)
	}
	if len(pattern) != len(segments) {
		return nil, false
	}
	vars := map[string]string{}
	for i, p := range pattern {
		switch name, isVar := strings.CutPrefix(p, "{"); {
		case isVar && segments[i] != "":
			vars[strings.TrimRight(name, ".}")] = segments[i]
		case isVar || p != segments[i]:
			return nil, false
		}
	}
	return vars, true
}

// table is every route, in the order in which they are tried.
func (s *Server) table() routeTable {
	t := routeTable{}
	t.get("/_ping", s.ping)
	t.add(http.MethodHead, "/_ping", s.ping)
	t.get("/version", s.getVersion)
	t.get("/info", s.getInfo)
	t.add(http.MethodGet, "/events", s.getEvents).stream = true
	t.get("/system/df", s.getDiskUsage)
	t.get("/plugins", s.emptyList)
	t.get("/plugins/{name...}/json", func(r *request) error { return notFoundf("plugin %q not found", r.vars["name"]) })
	t.post("/build/prune", s.pruneBuild)
	t.post("/containers/prune", s.pruneContainers)

	s.swarmRoutes(t)
	s.localRoutes(t)
	s.unsupportedRoutes(t)
	return t
}

func (s *Server) swarmRoutes(t routeTable) {
	t.get("/swarm", s.getSwarm)
	t.get("/swarm/unlockkey", s.getUnlockKey)
	t.post("/swarm/init", s.initSwarm)
	t.post("/swarm/join", s.joinSwarm)
	t.post("/swarm/leave", s.leaveSwarm)
	t.post("/swarm/update", s.updateSwarm)
	t.post("/swarm/unlock", s.unlockSwarm)

	t.get("/nodes", s.listNodes)
	t.get("/nodes/{id}", s.getNode)
	t.delete("/nodes/{id}", s.removeNode)
	t.post("/nodes/{id}/update", s.updateNode)

	t.get("/services", s.listServices)
	t.post("/services/create", s.createService)
	t.get("/services/{id}", s.getService)
	t.delete("/services/{id}", s.removeService)
	t.post("/services/{id}/update", s.updateService)
	t.add(http.MethodGet, "/services/{id}/logs", s.serviceLogs).stream = true

	t.get("/tasks", s.listTasks)
	t.get("/tasks/{id}", s.getTask)
	t.add(http.MethodGet, "/tasks/{id}/logs", s.taskLogs).stream = true

	s.payloadRoutes(t)
}

func (s *Server) localRoutes(t routeTable) {
	t.get("/containers/json", s.listContainers)
	t.get("/containers/{id}/json", s.onContainer(s.getContainer))
	t.add(http.MethodGet, "/containers/{id}/logs", s.onContainer(s.containerLogs)).stream = true
	t.add(http.MethodGet, "/containers/{id}/stats", s.onContainer(s.containerStats)).stream = true
	t.get("/containers/{id}/top", s.onContainer(s.containerTop))
	t.post("/containers/{id}/kill", onKill(s.onContainer(s.killContainer)))
	t.add(http.MethodPost, "/containers/{id}/stop", s.onContainer(s.stopContainer)).stream = true
	t.add(http.MethodPost, "/containers/{id}/wait", s.onContainer(s.waitContainer)).stream = true
	t.get("/containers/{id}/changes", s.onContainer(s.containerChanges))
	t.add(http.MethodHead, "/containers/{id}/archive", s.onFiles(s.statArchive))
	t.add(http.MethodGet, "/containers/{id}/archive", s.onFiles(s.getArchive)).stream = true
	t.add(http.MethodPut, "/containers/{id}/archive", s.onFiles(s.putArchive)).stream = true
	t.post("/containers/{id}/start", s.onContainer(s.startContainer))
	for action, line := range taskActions {
		t.post("/containers/{id}/"+action, s.onContainer(ofTask(line)))
	}
	t.post("/containers/{id}/exec", s.onContainer(s.createExec))
	t.add(http.MethodPost, "/exec/{id}/start", s.onExec(s.startExec)).stream = true
	t.post("/exec/{id}/resize", s.onExec(s.resizeExec))
	t.get("/exec/{id}/json", s.onExec(s.getExec))

	t.get("/images/json", s.listImages)
	t.add(http.MethodPost, "/images/load", s.loadImages).stream = true
	t.add(http.MethodPost, "/images/create", s.pullImage).stream = true
	t.add(http.MethodPost, "/images/{name...}/push", s.pushImage).stream = true
	t.add(http.MethodGet, "/images/get", s.saveImages).stream = true
	t.add(http.MethodGet, "/images/{name...}/get", s.saveImages).stream = true
	t.post("/images/prune", s.pruneImages)
	t.post("/auth", s.login)
	t.get("/images/{name...}/json", s.getImage)
	t.get("/images/{name...}/history", s.getImageHistory)
	t.post("/images/{name...}/tag", s.tagImage)
	t.delete("/images/{name...}", s.removeImage)
	t.get("/distribution/{name...}/json", s.getDistribution)

	t.get("/networks", s.listNetworks)
	t.get("/networks/{id}", s.getNetwork)
	t.delete("/networks/{id}", s.removeNetwork)
	t.post("/networks/create", s.createNetwork)
	t.post("/networks/prune", s.pruneNetworks)
	t.post("/networks/{id}/connect", s.connectNetwork)
	t.post("/networks/{id}/disconnect", s.connectNetwork)

	t.get("/volumes", s.listVolumes)
	t.get("/volumes/{name}", s.getVolume)
	t.post("/volumes/create", s.createVolume)
	t.post("/volumes/prune", s.pruneVolumes)
	t.delete("/volumes/{name}", s.removeVolume)
}
