package volumes

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// CheckOptions reports why a volume cannot have these options, as errdefs.ErrInvalidArgument with Docker's text. It does not
// look whether the device is there: that is known when a container mounts the volume.
func CheckOptions(options map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(options)) {
		switch name {
		case "type", "o", "device":
		case "size":
			return invalid("quota size requested but no quota support: for a memory volume write it as --opt type=tmpfs --opt device=tmpfs --opt o=size=…")
		default:
			return invalid("invalid option: %q", name)
		}
	}
	if len(options) == 0 {
		return nil
	}
	for _, needed := range []string{"device", "type"} {
		if options[needed] == "" {
			return invalid("missing required option: %q", needed)
		}
	}
	if strings.ContainsRune(options["o"], 0) {
		return invalid("the mount options (o) must not contain a zero byte")
	}
	return checkDevice(options["type"], options["device"])
}

func checkDevice(typ, device string) error {
	if strings.ContainsRune(typ+device, 0) {
		return invalid("the type and the device must not contain a zero byte")
	}
	if typ != "cifs" {
		return nil
	}
	u, err := url.Parse(device)
	if err != nil {
		return invalid("error parsing mount device url: %v", err)
	}
	if u.Port() != "" {
		return invalid("port not allowed in CIFS device URL, include 'port' in 'o='")
	}
	return nil
}

// hasDevice reports whether a volume is something else than its directory.
func hasDevice(options map[string]string) bool { return options["device"] != "" }

// invalidError and conflictError are texts for the user, which say by their kind what they are.
type invalidError struct{ text string }

func (e invalidError) Error() string { return e.text }
func (e invalidError) Unwrap() error { return errdefs.ErrInvalidArgument }

func invalid(format string, args ...any) error { return invalidError{fmt.Sprintf(format, args...)} }

type conflictError struct{ text string }

func (e conflictError) Error() string { return e.text }
func (e conflictError) Unwrap() error { return errdefs.ErrConflict }
