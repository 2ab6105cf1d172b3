package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// The values of --until.
const (
	untilInput  = "input"
	untilParent = "parent"
	untilSignal = "signal"
)

func (a *app) lock() *cobra.Command {
	c, o, l := &connection{}, &lockOptions{}, &logs{}
	var asJSON bool
	var until string
	cmd := &cobra.Command{
		Use:     "lock NAME [flags]",
		Short:   "Hold a lock until standard input closes",
		GroupID: groupLocks,
		Long: `Acquire a lock, write its token to standard output, and hold the lock until standard
input closes or a signal arrives. This is for scripts whose work cannot be a single
command. Prefer qlock run where you can: a script learns that the lock is lost only
because this program ends.

A shell connects standard input of a background job (&) in a script to /dev/null,
and so do cron and systemd: there the lock is released at once. --until parent holds
it until the process that started this program, such as the script, has ended.
--until signal holds it until a signal arrives, and ignores standard input. In the
background of an interactive shell the lock is held; fg and Ctrl-D release it, and
so does kill %1. While this program is stopped (Ctrl-Z), the lock is not refreshed
and may be lost.

Exit status: 0 the lock was released; 120 another client holds it (--try, or --wait
has passed); 121 no quorum; 122 the lock was lost or evicted; 123 refused, or
evicted while it waited; 125 another failure; 2 bad flags.`,
		Example: `  # bash: the lock is held while the file descriptor is open
  coproc qlock lock nightly
  read -r token <&"${COPROC[0]}"

  # bash: the lock is held until the script has ended
  exec {lock}< <(exec qlock lock nightly --until parent)
  read -r token <&"$lock" || exit

  qlock lock nightly --try --json`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			o.noteOf("qlock lock", cmd.Flags())
			o.note = withUnder(o.note)
			// A token that nobody reads ends this program, but not before the lock is released.
			a.supervise()
			stayAwake()
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			if !signal.Ignored(syscall.SIGHUP) { // ignored under nohup
				var hungUp context.CancelFunc
				ctx, hungUp = signal.NotifyContext(ctx, syscall.SIGHUP)
				defer hungUp()
			}
			if until == untilParent {
				var noParent context.CancelFunc
				var err error
				if ctx, noParent, err = withParent(ctx); err != nil {
					return err
				}
				defer noParent()
			}
			h, err := a.take(ctx, c, o, l, "lock", args[0], o.acquire(args[0]))
			if err != nil {
				return err
			}
			defer h.close()
			if asJSON {
				err = a.json(map[string]any{"name": args[0], "encoded": encoded(args[0]), "token": h.Token(), "shared": o.shared})
			} else {
				_, err = fmt.Fprintln(a.out, h.Token())
			}
			if err != nil {
				return &statusError{exitSelf, err}
			}
			if says := a.howLong(args[0], until); says != "" && !o.quiet {
				fmt.Fprintf(a.err, "qlock: %s\n", says)
			}
			closed := make(chan struct{})
			if until == untilInput {
				go func() { // ends with the process if nobody closes the input
					defer close(closed)
					a.readAll()
				}()
			}
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
	choiceFlag(cmd.Flags(), &until, "until", untilInput, []string{untilInput, untilParent, untilSignal}, "hold the lock until standard input closes, until the process that started this one has ended, or only until a signal")
	o.flags(cmd.Flags())
	l.flags(cmd.Flags(), "warn")
	c.flags(cmd.Flags())
	return cmd
}

// howLong says what releases the lock, where that may not be what the user expects.
func (a *app) howLong(name, until string) string {
	switch {
	case until != untilInput:
		return ""
	case inBackground(a.in):
		return fmt.Sprintf("holding %s in the background: kill %d releases it, and so do fg and Ctrl-D", lockNamed(name), os.Getpid())
	case terminal(a.in):
		return fmt.Sprintf("holding %s, Ctrl-D or Ctrl-C releases it", lockNamed(name))
	}
	in, err := a.in.Stat()
	if err != nil {
		return ""
	}
	if null, err := os.Stat(os.DevNull); err == nil && os.SameFile(in, null) {
		return fmt.Sprintf("%s is released at once, because standard input is %s: --until parent or --until signal holds it", lockNamed(name), os.DevNull)
	}
	return ""
}

// lookAgain is the interval of checks for an event that cannot be waited for.
const lookAgain = 200 * time.Millisecond

// readAll returns when standard input is at its end. A terminal that other jobs use at
// present is not at its end.
func (a *app) readAll() {
	buf := make([]byte, 4096)
	for {
		if _, err := a.in.Read(buf); err == nil {
			continue
		}
		if !inBackground(a.in) {
			return
		}
		time.Sleep(lookAgain)
	}
}

func oneName(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usage("the name of the lock is missing: %s", cmd.UseLine())
	case len(args) > 1:
		return usage("one name is needed, got %d arguments: %s", len(args), cmd.UseLine())
	}
	return nil
}
