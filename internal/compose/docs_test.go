package compose_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
)

// TestDocs: docs/compose.md says of every key of the specification what becomes of it.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/compose.md")
	if err != nil {
		t.Fatal(err)
	}
	type object struct{ Properties map[string]any }
	var root struct {
		object
		Defs map[string]object `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(schema.Schema), &root); err != nil {
		t.Fatal(err)
	}
	defs := []object{root.object}
	for _, d := range []string{"service", "container_spec", "workload_spec", "network", "volume", "secret", "config", "deployment"} {
		if len(root.Defs[d].Properties) == 0 {
			t.Fatalf("the schema has no %s any more", d)
		}
		defs = append(defs, root.Defs[d])
	}
	for _, d := range defs {
		for k := range d.Properties {
			if !strings.Contains(string(doc), "`"+k+"`") && !strings.Contains(string(doc), "`"+k+":") {
				t.Errorf("docs/compose.md says nothing of %s", k)
			}
		}
	}
}
