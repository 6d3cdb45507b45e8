package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// execOptions are the flags of skep exec.
type execOptions struct {
	stdin, tty, detach, privileged bool
	user, dir                      string
	env                            []string
}

func (c *cli) exec() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use: "exec [flags] TASK COMMAND [ARG…]", DisableFlagsInUseLine: true, Short: "Run a program in a task's container",
		Long: "Run a program in a task's container and end with its exit code.\n\n" + taskHelp,
		Args: args(cobra.MinimumNArgs(2)), ValidArgsFunction: c.completeTask,
		Example: `  skep exec -it web.1 sh
  skep exec web cat /etc/hosts
  tar c . | skep exec -i web.2 tar x -C /data`,
		RunE: func(cmd *cobra.Command, a []string) error {
			return c.explain(c.runExec(cmd, &o, a[0], a[1:]))
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the task is for the program
	f.BoolVarP(&o.stdin, "interactive", "i", false, "send it the standard input")
	f.BoolVarP(&o.tty, "tty", "t", false, "give it a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "do not wait for it")
	f.BoolVar(&o.privileged, "privileged", false, "give it all capabilities")
	f.StringVarP(&o.user, "user", "u", "", "user, and group, NAME|UID[:GROUP|GID]")
	f.StringVarP(&o.dir, "workdir", "w", "", "directory that it begins in")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set `NAME=VALUE` in its environment")
	cmd.MarkFlagsMutuallyExclusive("detach", "interactive")
	return cmd
}

func (c *cli) runExec(cmd *cobra.Command, o *execOptions, ref string, command []string) error {
	ctx := cmd.Context()
	in, _ := cmd.InOrStdin().(*os.File)
	if o.tty && o.stdin && (in == nil || !term.IsTerminal(int(in.Fd()))) {
		return usageError{errors.New("the standard input is no terminal: leave --tty out")}
	}
	cl, err := c.connect()
	if err != nil {
		return err
	}
	id, err := c.container(ctx, cl, ref)
	if err != nil {
		return err
	}
	made, err := cl.ExecCreate(ctx, id, client.ExecCreateOptions{User: o.user, Privileged: o.privileged, TTY: o.tty, ConsoleSize: sizeOf(in, o.tty),
		AttachStdin: o.stdin, AttachStdout: !o.detach, AttachStderr: !o.detach, Env: o.env, WorkingDir: o.dir, Cmd: command})
	if err != nil {
		return err
	}
	if o.detach {
		_, err := cl.ExecStart(ctx, made.ID, client.ExecStartOptions{Detach: true, TTY: o.tty})
		return err
	}
	conn, err := cl.ExecAttach(ctx, made.ID, client.ExecAttachOptions{TTY: o.tty, ConsoleSize: sizeOf(in, o.tty)})
	if err != nil {
		return err
	}
	defer conn.Close()
	if o.tty && o.stdin {
		restore, err := rawTerminal(in)
		if err != nil {
			return err
		}
		defer restore()
	}
	if o.tty {
		stop := c.followSize(ctx, cl, made.ID, in)
		defer stop()
	}
	if err := streams(cmd, o, &conn.HijackedResponse); err != nil {
		return err
	}
	res, err := cl.ExecInspect(ctx, made.ID, client.ExecInspectOptions{})
	if err != nil {
		return err
	}
	if res.ExitCode != 0 {
		return exitCode(res.ExitCode)
	}
	return nil
}

// streams copies between the terminal or the files of this program and the other one, until that one has written all.
func streams(cmd *cobra.Command, o *execOptions, conn *client.HijackedResponse) error {
	ctx := cmd.Context()
	stop := context.AfterFunc(ctx, conn.Close)
	defer stop()
	if o.stdin {
		// It ends with the process: a read of a terminal cannot be called off.
		go func() {
			_, _ = io.Copy(conn.Conn, cmd.InOrStdin())
			_ = conn.CloseWrite()
		}()
	}
	var err error
	if o.tty {
		_, err = io.Copy(cmd.OutOrStdout(), conn.Reader)
	} else {
		_, err = stdcopy.StdCopy(cmd.OutOrStdout(), cmd.ErrOrStderr(), conn.Reader)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("read the program's output: %w", err)
	}
	return nil
}

// sizeOf is the size of the terminal, zero when there is none.
func sizeOf(in *os.File, tty bool) client.ConsoleSize {
	if !tty || in == nil {
		return client.ConsoleSize{}
	}
	width, height, err := term.GetSize(int(in.Fd()))
	if err != nil {
		return client.ConsoleSize{}
	}
	return client.ConsoleSize{Height: uint(height), Width: uint(width)}
}

// rawTerminal passes every key on as it is, until restore is called.
func rawTerminal(in *os.File) (restore func(), err error) {
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set the terminal up: %w", err)
	}
	return func() { _ = term.Restore(int(in.Fd()), before) }, nil
}

// followSize tells the daemon whenever the terminal changes its size.
func (c *cli) followSize(ctx context.Context, cl *client.Client, id string, in *os.File) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-changed:
				if s := sizeOf(in, true); s.Height > 0 {
					_, _ = cl.ExecResize(ctx, id, client.ExecResizeOptions(s)) // it may have ended
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		cancel()
	}
}
