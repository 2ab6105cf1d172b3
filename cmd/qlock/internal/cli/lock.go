package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func (a *app) lock() *cobra.Command {
	c, o, l := &connection{}, &lockOptions{}, &logs{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "lock NAME [flags]",
		Short:   "Hold a lock until standard input closes",
		GroupID: groupLocks,
		Long: `Take a lock, write its token to standard output, and hold it until standard input
closes or a signal comes. It is for scripts that cannot put their work into one
command for qlock run; who can should: a script is not told when the lock is lost,
but by the end of this program.

Exit status: 0 when the lock was given back; 120 held by another (--try, or --wait
is over), 121 no quorum, 122 the lock was lost, or somebody evicted it, 123 refused, or
evicted while it waited, 125 another failure, 2 bad flags.`,
		Example: `  # bash: the lock is held while the file descriptor is open
  coproc qlock lock nightly
  read -r token <&"${COPROC[0]}"

  qlock lock nightly --try --json`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			o.noteOf("qlock lock", cmd.Flags())
			a.supervise() // a token that nobody reads ends it, but not before the lock is given back
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			h, err := a.take(ctx, c, o, l, "lock", args[0])
			if err != nil {
				return err
			}
			defer h.close()
			if asJSON {
				err = a.json(map[string]any{"name": args[0], "token": h.Token(), "shared": h.Shared()})
			} else {
				_, err = fmt.Fprintln(a.out, h.Token())
			}
			if err != nil {
				return &statusError{exitSelf, err}
			}
			if terminal(a.in) && !o.quiet {
				fmt.Fprintf(a.err, "qlock: holding %s, Ctrl-D or Ctrl-C gives it back\n", lockNamed(args[0]))
			}
			closed := make(chan struct{})
			go func() { // it ends with the process if nobody closes the input
				defer close(closed)
				_, _ = io.Copy(io.Discard, a.in)
			}()
			select {
			case <-closed:
			case <-ctx.Done():
			case <-h.Context().Done():
			}
			if err := h.Unlock(ctx); err != nil {
				return &statusError{exitLost, fmt.Errorf("lock %q: %w", args[0], err)}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "write JSON")
	o.flags(cmd.Flags())
	l.flags(cmd.Flags(), "warn")
	c.flags(cmd.Flags())
	return cmd
}

func oneName(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usage("the name of the lock is missing: %s", cmd.UseLine())
	case len(args) > 1:
		return usage("one name is wanted, but there are %d arguments: %s", len(args), cmd.UseLine())
	}
	return nil
}
