package compose_test

import (
	"strings"
	"testing"

	"github.com/skep-swarm/skep/internal/compose"
	"testing/fstest"
)

// TestTemplate: every form of a variable.
func TestTemplate(t *testing.T) {
	env := map[string]string{"SET": "set", "EMPTY": "", "lower_1": "low", "_": "under"}
	for in, want := range map[string]string{
		"plain": "plain", "$SET": "set", "${SET}": "set", "$SET-x": "set-x", "${SET}x": "setx", "$lower_1": "low", "${_}": "under",
		"$UNSET|": "|", "${UNSET}|": "|", "$$SET": "$SET", "$$$SET": "$set", "$$": "$", "${SET:-d}": "set", "${UNSET:-d}": "d",
		"${EMPTY:-d}": "d", "${EMPTY-d}|": "|", "${UNSET-d}": "d", "${SET:+r}": "r", "${EMPTY:+r}|": "|", "${EMPTY+r}": "r",
		"${UNSET+r}|": "|", "${SET:?m}": "set", "${EMPTY?m}|": "|", "${UNSET:-${SET}}": "set", "${UNSET:-${U2:-${U3:-deep}}}": "deep",
		"${UNSET:-a}b${U2:-c}d": "abcd", "${UNSET:-}|": "|", "${UNSET:-$SET$EMPTY.}": "set.", "${UNSET:-a:b?c}": "a:b?c",
		"${UNSET:-{}}": "{}", "{{.Node}}": "{{.Node}}", "${UNSET:-a-b}": "a-b", "${UNSET:-$$x}": "$x",
	} {
		if want == "{}" {
			want = "{}" // the first brace closes the variable, the second is text
		}
		out, err := render(t, in, env)
		if err != nil || out != want {
			t.Errorf("%s: %q, %v; want %q", in, out, err, want)
		}
	}
	for in, want := range map[string]string{
		"$": `"$" is no variable`, "${": `"${" is no variable`, "${}": "is no variable", "$1": "is no variable", "${SET": "is no variable",
		"${SET!x}": "is no variable", "${SET:}": "is no variable", "a $ b": "is no variable", "${UNSET:?}": "variable UNSET is not set, but required: set it",
		"${UNSET?say so}": "variable UNSET is not set, but required: say so", "${EMPTY:?no $SET}": "variable EMPTY is not set, but required: no set",
		"${UNSET:-$}": "is no variable", "${A B}": "is no variable",
	} {
		if out, err := render(t, in, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want an error about %q", in, out, err, want)
		}
	}
}

func render(t *testing.T, text string, env map[string]string) (string, error) {
	t.Helper()
	fsys := fstest.MapFS{"s.yml": {Data: []byte("x-a: '" + text + "'\nservices: {a: {image: x}}\n")}}
	out, _, err := compose.Render(t.Context(), fsys, compose.Options{Dir: "/", Files: []string{"s.yml"}, Env: env})
	if err != nil {
		return "", err
	}
	s, _ := yamlValue(t, out)["x-a"].(string)
	return s, nil
}

// TestDotenv: every form of a line in .env.
func TestDotenv(t *testing.T) {
	const text = "\xef\xbb\xbf# comment\nA=1\nB = two words # note\nC='single $A \\' end'\nD=\"double ${A} \\n\\$A \\\"q\\\"\"\nexport E=e\nF: yaml\nG=\n" +
		"H=\"over\nlines\"\nSHELL_ONLY\nJ=a#b\nK=${A:-x}${NONE-y}\nL=\"$L2\"\n\n  M=  indented  \nWINS=file\nN=${WINS}\r\n"
	want := map[string]string{
		"A": "1", "B": "two words", "C": "single $A ' end", "D": "double 1 \n$A \"q\"", "E": "e", "F": "yaml", "G": "", "H": "over\nlines",
		"SHELL_ONLY": "shell", "J": "a#b", "K": "1y", "L": "", "M": "indented", "WINS": "env", "N": "env",
	}
	file := "services: {a: {image: x}}\nx-all:\n"
	for k := range want {
		file += "  " + k + ": \"${" + k + "-unset}\"\n"
	}
	fsys := fstest.MapFS{"p/.env": {Data: []byte(text)}, "p/s.yml": {Data: []byte(file)}}
	out, warnings, err := compose.Render(t.Context(), fsys, compose.Options{Dir: "/p", Files: []string{"s.yml"}, Env: map[string]string{"WINS": "env", "SHELL_ONLY": "shell"}})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := yamlValue(t, out)["x-all"].(map[string]any)
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if len(warnings) != 1 || warnings[0].File != ".env" || warnings[0].Line != 14 {
		t.Errorf("warnings %v, want one about L2 in line 14 of .env", warnings)
	}
}
