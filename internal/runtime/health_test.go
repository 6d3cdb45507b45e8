package runtime

import (
	"reflect"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

func TestHealthcheck(t *testing.T) {
	image := &container.HealthConfig{Test: []string{"CMD-SHELL", "ping"}, Interval: time.Second, Retries: 7}
	for _, test := range []struct {
		name        string
		spec, image *container.HealthConfig
		want        *container.HealthConfig
	}{
		{"neither", nil, nil, nil},
		{"of the image, with defaults", nil, image, &container.HealthConfig{Test: image.Test, Interval: time.Second, Timeout: 30 * time.Second,
			StartInterval: 5 * time.Second, Retries: 7}},
		{"switched off", &container.HealthConfig{Test: []string{"NONE"}}, image, nil},
		{"only settings", &container.HealthConfig{Timeout: 2 * time.Second}, image, &container.HealthConfig{Test: image.Test, Interval: time.Second,
			Timeout: 2 * time.Second, StartInterval: 5 * time.Second, Retries: 7}},
		{"settings without a test", &container.HealthConfig{Timeout: 2 * time.Second}, nil, nil},
		{"of the spec", &container.HealthConfig{Test: []string{"CMD", "x"}, StartPeriod: time.Minute}, nil, &container.HealthConfig{Test: []string{"CMD", "x"},
			Interval: 30 * time.Second, Timeout: 30 * time.Second, StartPeriod: time.Minute, StartInterval: 5 * time.Second, Retries: 3}},
	} {
		if got := Healthcheck(test.spec, test.image); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}
