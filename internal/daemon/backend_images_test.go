package daemon

import (
	"slices"
	"testing"
)

// Clients print what a load says as it is: the lines keep their ends.
func TestLoadProgress(t *testing.T) {
	var said []string
	p := &loadProgress{tell: func(s string) { said = append(said, s) }}
	if _, err := p.Write([]byte(`{"stream":"Loaded image: web:1\n"}` + "\n" + `{"stream":"Loaded image ID: sha256:ab\n"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	if want := []string{"Loaded image: web:1\n", "Loaded image ID: sha256:ab\n"}; !slices.Equal(said, want) {
		t.Errorf("the client reads %q, want %q", said, want)
	}
	if want := []string{"docker.io/library/web:1", "sha256:ab"}; !slices.Equal(p.loaded, want) {
		t.Errorf("loaded %q, want %q", p.loaded, want)
	}
}
