package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (c *cli) image() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Aliases: []string{"images"}, Short: "Bring images in"}
	cmd.AddCommand(c.imageLoad())
	return cmd
}

func (c *cli) imageLoad() *cobra.Command {
	var input string
	var quiet bool
	cmd := &cobra.Command{
		Use: "load", Short: "Load images from an archive ('docker save' or OCI layout, gzip or not)", Args: args(cobra.NoArgs),
		Example: `  skep image load -i nginx.tar
  docker save nginx | skep image load`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in := cmd.InOrStdin()
			if input != "" && input != "-" {
				f, err := os.Open(input)
				if err != nil {
					return fmt.Errorf("image load: %w", err)
				}
				defer f.Close()
				in = f
			} else if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return usageError{errors.New("image load: nothing to read: give -i FILE, or pipe an archive in")}
			}
			cl, err := c.connect()
			if err != nil {
				return err
			}
			res, err := cl.ImageLoad(cmd.Context(), in, client.ImageLoadWithQuiet(quiet))
			if err != nil {
				return c.explain(err)
			}
			defer res.Close()
			out := cmd.OutOrStdout()
			if quiet {
				out = io.Discard // errors come back all the same
			}
			return printStream(out, res)
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "`file` to read (default standard input)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return cmd
}

// printStream prints a stream of JSON messages and returns the error that one of them holds.
func printStream(w io.Writer, in io.Reader) error {
	dec := json.NewDecoder(in)
	for {
		var m jsonstream.Message
		err := dec.Decode(&m)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the daemon's answer: %w", err)
		case m.Error != nil:
			return errors.New(m.Error.Message)
		case m.Stream != "":
			fmt.Fprintln(w, strings.TrimSuffix(m.Stream, "\n"))
		case m.Status != "":
			fmt.Fprintln(w, m.Status)
		}
	}
}
