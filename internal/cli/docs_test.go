package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestCommandsInDocs: what the pages tell people to type exists, with the flags that they name.
func TestCommandsInDocs(t *testing.T) {
	var pages []string
	for _, glob := range []string{"../../*.md", "../../docs/*.md", "../../examples/*.md", "../../examples/*/*.md"} {
		found, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	seen := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			for _, words := range commandsIn(line) {
				seen++
				if err := typed(words); err != nil {
					t.Errorf("%s:%d: skep %s: %v", page, i+1, strings.Join(words, " "), err)
				}
			}
		}
	}
	for _, wrong := range [][]string{{"stak", "ls"}, {"stack", "roll", "x"}, {"stack", "rollback", "--two", "3"}} {
		if typed(wrong) == nil {
			t.Errorf("skep %s is not refused", strings.Join(wrong, " "))
		}
	}
	if seen < 40 {
		t.Errorf("%d commands found in %d pages: are they written in another way now?", seen, len(pages))
	}
}

var (
	quoted   = regexp.MustCompile("`(skep [^`]+)`")
	unquoted = regexp.MustCompile(`(?:^| |/|\()(skep [^#;&]+)`)
	verb     = regexp.MustCompile(`^[-a-z]`) // not a path, nor a word that stands for one
	apart    = regexp.MustCompile(`\s{2,}|&&|\|\||;|#`)
)

// commandsIn are the calls of skep in a line of Markdown: in back quotes, or in a block of code.
func commandsIn(line string) (list [][]string) {
	var calls []string
	if block, ok := strings.CutPrefix(line, "    "); ok {
		for _, part := range apart.Split(block, -1) {
			if m := unquoted.FindStringSubmatch(part); m != nil {
				calls = append(calls, m[1])
			}
			if strings.Contains(part, ": ") {
				break // what a program says, or a diagram
			}
		}
	} else {
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			calls = append(calls, m[1])
		}
	}
	for _, c := range calls {
		words := strings.Fields(strings.NewReplacer("[", "", "]", "", ",", "").Replace(c))[1:]
		if len(words) > 0 && verb.MatchString(words[0]) && words[0] != "daemon" && !strings.Contains(c, "|") {
			list = append(list, words)
		}
	}
	return list
}

// typed finds a command and reads its flags, as cobra does before it runs one.
func typed(words []string) error {
	root := (&cli{Config: Config{Getenv: func(string) string { return "" }}}).root()
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	rest = slices.DeleteFunc(rest, func(w string) bool { return w == "…" })
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if left := cmd.Flags().Args(); cmd.HasSubCommands() && len(left) > 0 {
		return cobra.NoArgs(cmd, left)
	}
	return nil
}
