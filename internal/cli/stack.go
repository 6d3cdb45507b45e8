package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skep-swarm/skep/internal/compose"
	"github.com/spf13/cobra"
)

func (c *cli) stack() *cobra.Command {
	cmd := &cobra.Command{Use: "stack", Aliases: []string{"stacks"}, Short: "Work with stacks: services that are deployed together from a Compose file"}
	cmd.AddCommand(c.stackDeploy(), c.stackLs(), c.stackPs(), c.stackServices(), c.stackRm(), c.stackConfig(), c.stackLint(), c.stackDiff(), c.stackHistory(), c.stackRollback())
	return cmd
}

// composeFlags say which Compose files to load, and how; all commands that load some have them.
type composeFlags struct {
	files, envFiles, profiles []string
}

func (f *composeFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVarP(&f.files, "compose-file", "c", nil, `Compose file, or "-" for standard input; several are merged (default compose.yaml or docker-compose.yml here)`)
	cmd.Flags().StringSliceVar(&f.envFiles, "env-file", nil, "`file` with variables, instead of .env beside the first Compose file")
	cmd.Flags().StringSliceVar(&f.profiles, "profile", nil, `turn a profile on ("*" for all; default $COMPOSE_PROFILES)`)
	_ = cmd.MarkFlagFilename("compose-file", "yml", "yaml", "json")
	_ = cmd.MarkFlagFilename("env-file", "env")
	_ = cmd.RegisterFlagCompletionFunc("profile", cobra.NoFileCompletions)
}

// maxStdin is one byte more than compose takes, so that it can say that it is too much.
const maxStdin = compose.MaxFileBytes + 1

// options are what compose.Load wants to know.
func (c *cli) composeOptions(cmd *cobra.Command, f *composeFlags) (compose.Options, error) {
	dir, err := os.Getwd()
	if err != nil {
		return compose.Options{}, fmt.Errorf("find the working directory: %w", err)
	}
	opt := compose.Options{Dir: filepath.ToSlash(dir), Env: c.environment(), Profiles: f.profiles}
	if len(opt.Profiles) == 0 && opt.Env["COMPOSE_PROFILES"] != "" {
		opt.Profiles = strings.Split(opt.Env["COMPOSE_PROFILES"], ",")
	}
	for _, name := range f.envFiles {
		opt.EnvFiles = append(opt.EnvFiles, filepath.ToSlash(name))
	}
	for _, name := range f.files {
		opt.Files = append(opt.Files, filepath.ToSlash(name))
	}
	if len(opt.Files) == 0 {
		name, err := defaultComposeFile(dir)
		if err != nil {
			return opt, err
		}
		opt.Files = []string{name}
	}
	if slices.Contains(opt.Files, "-") {
		if opt.Stdin, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxStdin)); err != nil {
			return opt, fmt.Errorf("read standard input: %w", err)
		}
	}
	return opt, nil
}

func defaultComposeFile(dir string) (string, error) {
	names := []string{"compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return name, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("look for a Compose file: %w", err)
		}
	}
	return "", usageError{fmt.Errorf("there is no %s here: name the file with --compose-file", strings.Join(names, ", "))}
}

// environment is the process's, as a map.
func (c *cli) environment() map[string]string {
	out := map[string]string{}
	if c.Environ == nil {
		return out
	}
	for _, s := range c.Environ() {
		if k, v, ok := strings.Cut(s, "="); ok && k != "" {
			out[k] = v
		}
	}
	return out
}

func (c *cli) stackConfig() *cobra.Command {
	var f composeFlags
	var skip, quiet, asJSON bool
	cmd := &cobra.Command{
		Use: "config", Short: "Print the Compose files merged and filled in, as they would be deployed", Args: args(cobra.NoArgs),
		Long: `Prints the Compose files merged into one, with variables filled in and everything in its long form, as
'docker stack config' does. No daemon is needed. What a swarm ignores is said on standard error.`,
		Example: `  skep stack config -c stack.yml
  skep stack config -c stack.yml -c prod.yml --profile debug
  skep stack config -c stack.yml | docker stack deploy -c - shop`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt, err := c.composeOptions(cmd, &f)
			if err != nil {
				return err
			}
			opt.SkipInterpolation = skip
			out, warnings, err := compose.Render(cmd.Context(), os.DirFS("/"), opt)
			if err != nil {
				return c.composeError(err)
			}
			if !quiet {
				for _, w := range warnings {
					fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
				}
			}
			if asJSON {
				if out, err = compose.JSON(out); err != nil {
					return err
				}
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&skip, "skip-interpolation", false, "leave variables as they are")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no warnings")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// composeError prints what is wrong with Compose files, a line each, and ends the command.
func (c *cli) composeError(err error) error {
	problems, ok := compose.AsProblems(err)
	if !ok {
		return err
	}
	for _, p := range problems {
		fmt.Fprintf(c.Stderr, "skep: %s\n", p.Error())
	}
	return exitCode(1)
}

// finding is what --json and --format of `stack lint` see.
type finding struct {
	Severity, File string
	Line, Column   int
	Service, Key   string
	Text           string
}

func (f finding) String() string {
	pos := compose.Pos{File: f.File, Line: f.Line, Col: f.Column}
	w := compose.Warning{Pos: pos, Service: f.Service, Key: f.Key, Text: f.Severity + ": " + f.Text}
	if f.Key != "" || f.Service != "" {
		w.Text = f.Text
		return pos.String() + f.Severity + ": " + strings.TrimPrefix(w.String(), pos.String())
	}
	return w.String()
}

func (c *cli) stackLint() *cobra.Command {
	var f composeFlags
	var l listing
	var name string
	var strict bool
	cmd := &cobra.Command{
		Use: "lint", Short: "Check Compose files: errors, and keys that a swarm ignores, by file and line", Args: args(cobra.NoArgs),
		Long: `Checks Compose files as a deploy would, without a daemon, and says what is wrong (exit code 1) and what a
swarm ignores or reads in another way (exit code 0, or 1 with --strict).`,
		Example: `  skep stack lint -c stack.yml
  skep stack lint --strict --format '{{.File}}:{{.Line}} {{.Text}}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt, err := c.composeOptions(cmd, &f)
			if err != nil {
				return err
			}
			opt.Name = name
			return c.lint(cmd, &l, opt, strict)
		},
	}
	f.register(cmd)
	l.flags(cmd)
	_ = cmd.Flags().MarkHidden("no-trunc")
	cmd.Flags().Lookup("quiet").Usage = "nothing but the exit code"
	cmd.Flags().StringVar(&name, "name", "", "name of the stack (default `name:` of the file)")
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings are errors")
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	return cmd
}

func (c *cli) lint(cmd *cobra.Command, l *listing, opt compose.Options, strict bool) error {
	opt.DefaultName = "stack"
	stack, err := compose.Load(cmd.Context(), os.DirFS("/"), opt)
	problems, ok := compose.AsProblems(err)
	if err != nil && !ok {
		return err
	}
	var found []finding
	for _, p := range problems {
		found = append(found, finding{"error", p.File, p.Line, p.Col, "", "", p.Text})
	}
	var warnings []compose.Warning
	if stack != nil {
		warnings = stack.Warnings
	} else {
		// What was read may say why it is wrong, as a variable that is not set does.
		_, warnings, _ = compose.Render(cmd.Context(), os.DirFS("/"), opt)
	}
	for _, w := range warnings {
		found = append(found, finding{"warning", w.File, w.Line, w.Col, w.Service, w.Key, w.Text})
	}
	slices.SortStableFunc(found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if err := printFindings(cmd.OutOrStdout(), l, found, stack); err != nil {
		return err
	}
	if len(problems) > 0 || strict && len(found) > 0 {
		return exitCode(1)
	}
	return nil
}

func printFindings(w io.Writer, l *listing, found []finding, stack *compose.Stack) error {
	if l.quiet {
		return nil
	}
	if l.forScripts() {
		values := make([]any, len(found))
		for i, f := range found {
			values[i] = f
		}
		return l.printValues(w, values...)
	}
	for _, f := range found {
		fmt.Fprintln(w, f)
	}
	if stack != nil {
		fmt.Fprintf(w, "%s, %s, %s, %s: %s\n", count(len(stack.Services), "service"), count(len(stack.Networks), "network"),
			count(len(stack.Secrets), "secret"), count(len(stack.Configs), "config"), cmp.Or(plural(len(found), "warning"), "fine"))
	}
	return nil
}

func count(n int, thing string) string { return cmp.Or(plural(n, thing), "no "+thing+"s") }

// plural is "" for none.
func plural(n int, thing string) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
