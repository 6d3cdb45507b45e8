package dockerapi

import (
	"strconv"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
)

// apiVersion is the API version that a client speaks: 1.N.
type apiVersion struct{ major, minor int }

func (v apiVersion) less(o apiVersion) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

// before reports whether the client speaks a version older than 1.minor.
func (v apiVersion) before(minor int) bool { return v.less(apiVersion{1, minor}) }

// parseVersion reads "1.44"; more parts than two are ignored, as Docker does.
func parseVersion(s string) (apiVersion, bool) {
	parts := strings.Split(s, ".")
	var v apiVersion
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return apiVersion{}, false
		}
		switch i {
		case 0:
			v.major = n
		case 1:
			v.minor = n
		}
	}
	return v, true
}

// splitVersion takes the version off a path. A path without one means the newest version.
func splitVersion(path string) (apiVersion, string, error) {
	newest, _ := parseVersion(MaxAPIVersion)
	oldest, _ := parseVersion(MinAPIVersion)
	rest, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return newest, path, nil
	}
	text, tail, _ := strings.Cut(rest, "/")
	if text == "" || strings.Trim(text, "0123456789.") != "" {
		return newest, path, nil // /volumes and the like
	}
	v, ok := parseVersion(text)
	switch {
	case !ok:
		return apiVersion{}, "", errPageNotFound
	case v.less(oldest):
		return apiVersion{}, "", model.Invalidf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", text, MinAPIVersion)
	case newest.less(v):
		return apiVersion{}, "", model.Invalidf("client version %s is too new. Maximum supported API version is %s", text, MaxAPIVersion)
	}
	return v, "/" + tail, nil
}
