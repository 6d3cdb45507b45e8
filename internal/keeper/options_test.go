package keeper

import (
	"errors"
	"fmt"
	"testing"
)

func TestOptions(t *testing.T) {
	type opts map[string]string
	for _, c := range []struct {
		driver string
		opts   opts
		want   string // the result, or the error
	}{
		{"", nil, "268435456 x 4 map[]"},
		{"none", opts{"x": "y"}, "nothing"},
		{"syslog", nil, "logger: no log driver named 'syslog' is registered"},
		{"json-file", opts{"max-size": "10m", "max-file": "3"}, "10000000 x 3 map[]"},
		{"json-file", opts{"max-size": "10k"}, "10000 x 1 map[]"},
		{"json-file", opts{"max-size": "-1"}, "0 x 1 map[]"},
		{"json-file", opts{"max-file": "8"}, "134217728 x 8 map[]"},
		{"json-file", opts{"max-file": "0"}, "max-file cannot be less than 1"},
		{"json-file", opts{"max-size": "0"}, `max-size must be a positive number, not "0"`},
		{"json-file", opts{"colour": "red"}, "unknown log opt 'colour' for json-file log driver"},
		{"json-file", opts{"mode": "non-blocking", "max-buffer-size": "4m", "compress": "false"}, "268435456 x 4 map[]"},
		{"json-file", opts{"max-buffer-size": "4m"}, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
		{"json-file", opts{"labels": "a,nope", "env-regex": "^X", "tag": "{{.Name}}/{{ .ID }}/{{.ImageID}}"},
			"268435456 x 4 map[XA:1 XB:2=3 a:b tag:web.1/0123456789ab/cafe]"},
		{"json-file", opts{"tag": "{{.Foo}}"}, `invalid log tag "{{.Foo}}": only {{.ID}}, {{.FullID}}, {{.Name}}, {{.FullName}}, {{.ImageName}}, {{.ImageID}}, {{.ImageFullID}} and {{.DaemonName}} can be used`},
	} {
		spec := LogSpec{ContainerID: "0123456789abcdef", Dir: "/d", Driver: c.driver, Options: c.opts,
			Labels: map[string]string{"a": "b", "c": "d"}, Env: []string{"XA=1", "XB=2=3", "Y=4"},
			ContainerName: "/web.1", ImageID: "sha256:cafe"}
		cfg, err := spec.resolve()
		var got string
		switch {
		case err != nil:
			got = err.Error()
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
		case cfg == nil:
			got = "nothing"
		default:
			got = fmt.Sprint(cfg.MaxSize, " x ", cfg.MaxFiles, " ", cfg.Attrs)
		}
		if got != c.want {
			t.Errorf("%s %v:\n got %s\nwant %s", c.driver, c.opts, got, c.want)
		}
	}
}
