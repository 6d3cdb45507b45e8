package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLastLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.log")
	long := strings.Repeat("x", 2*maxLastLine)
	for text, want := range map[string]string{
		"": "", "one": "one", "one\ntwo\n": "two", "one\ntwo\n\n": "two",
		strings.Repeat("line\n", maxLastLine) + "the end\n": "the end", long: long[:maxLastLine],
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path); got != want {
			t.Errorf("a log of %d bytes: %.40q, want %.40q", len(text), got, want)
		}
	}
	if got := lastLine(path + ".none"); !strings.Contains(got, "no such file") {
		t.Errorf("no log: %q", got)
	}
}
