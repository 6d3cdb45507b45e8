package skepapi

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: docs/api.md has a row for each route, under the pattern that the code has.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	pattern := regexp.MustCompile(`HandleFunc\("([A-Z]+ /skep/v1/[^"]+)"`)
	routes := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range pattern.FindAllStringSubmatch(string(text), -1) {
			routes++
			if !strings.Contains(string(page), "| `"+m[1]+"`") && !strings.Contains(string(page), "| `"+m[1]+"[?") {
				t.Errorf("docs/api.md has no row for %s", m[1])
			}
		}
	}
	if routes < 10 {
		t.Errorf("%d routes found: are they registered in another way now?", routes)
	}
}
