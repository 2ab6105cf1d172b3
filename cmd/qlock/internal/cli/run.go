package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
)

const (
	onLossTerm   = "term"
	onLossKill   = "kill"
	onLossIgnore = "ignore"
)

type runOptions struct {
	connection
	lockOptions
	logs
	onLoss string
	grace  time.Duration
}

func (a *app) run() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:     "run NAME [flags] -- COMMAND [ARGUMENT...]",
		Short:   "Run a command under a lock",
		GroupID: groupLocks,
		Long: `Take a lock, run a command, give the lock back when it ends.

The command finds QLOCK_NAME and QLOCK_TOKEN in its environment. Send the token
with each write to what the lock protects, and let that refuse a token lower than
the highest that it has seen: it is the only help against a command that was
stopped, and goes on when its lock is another's.

If the lock is lost, or somebody evicts it (qlock unlock --force), --on-loss says
what becomes of the command: term sends it SIGTERM, and SIGKILL after --grace; kill
sends SIGKILL at once; ignore lets it run, and qlock ends with its status. Another
may have the lock from that moment on.

What others see beside the lock is --note; without one it is the user, the host, the
process and the command's name, without its arguments, which may be secret.

The command runs in a process group of its own. SIGINT, SIGTERM, SIGHUP, SIGQUIT,
SIGUSR1, SIGUSR2 and SIGCONT are passed on to the group. If qlock itself is killed,
a second small process kills the group; if qlock is stopped or hangs, that process
does with the group as --on-loss says, before the lock can be another's. On Linux the
kernel also kills the command, whatever became of that process. What a command puts
into a group or session of its own is out of reach, and the lock ends with the
command: what it leaves in the background goes on without one. On Windows there are no
groups: only the command is ended, and nobody ends it when qlock is killed.

` + statuses,
		Example: `  qlock run nightly -- ./backup.sh --full
  qlock run nightly --try -- ./backup.sh            end at once if it runs elsewhere
  qlock run deploy --wait 10m --on-loss kill -- make deploy
  qlock run deploy --note "release 4.2, ask Ada" -- make deploy
  qlock run catalog --shared -- ./read-catalog`,
		Args: runArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.lockOptions.check(); err != nil {
				return err
			}
			o.noteOf(args[1], cmd.Flags())
			return a.runCommand(cmd.Context(), o, args[0], args[1:])
		},
	}
	fs := cmd.Flags()
	o.lockOptions.flags(fs)
	choiceFlag(fs, &o.onLoss, "on-loss", onLossTerm, []string{onLossTerm, onLossKill, onLossIgnore}, "what becomes of the command when the lock is lost")
	durationFlag(fs, &o.grace, "grace", 5*time.Second, 0, "from SIGTERM to SIGKILL with --on-loss term")
	o.logs.flags(fs, "warn")
	o.connection.flags(fs)
	return cmd
}

func runArgs(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	switch {
	case len(args) == 0 || dash == 0:
		return usage("the name of the lock is missing: %s", cmd.UseLine())
	case dash < 0:
		return usage("the command goes after --: qlock run %s -- COMMAND", args[0])
	case dash > 1:
		return usage("one name is wanted before --, but there are %d arguments", dash)
	case len(args) == 1:
		return usage("the command after -- is missing: qlock run %s -- COMMAND", args[0])
	}
	return nil
}

func (a *app) runCommand(parent context.Context, o *runOptions, name string, argv []string) error {
	// Known before others wait for a lock that nobody can use.
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return cannotRun(argv[0], err)
	}
	a.supervise()
	signals := make(chan os.Signal, 16)
	for _, s := range passedOn {
		if !signal.Ignored(s) { // as under nohup, which means the command too
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)

	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	type result struct {
		lock *heldLock
		err  error
	}
	taken := make(chan result, 1)
	go func() {
		h, err := a.take(ctx, &o.connection, &o.lockOptions, &o.logs, "run", name)
		taken <- result{h, err}
	}()
	var r result
	var ended os.Signal
	for waiting := true; waiting; {
		select {
		case s := <-signals:
			if fatal(s) && ended == nil {
				ended = s
				cancel(fmt.Errorf("ended by a signal: %v", s))
			}
		case r = <-taken:
			waiting = false
		}
	}
	if ended != nil {
		if r.lock != nil { // it came in the same moment
			r.lock.close()
		}
		return &statusError{exitSignal + signalNumber(ended), r.err}
	}
	if r.err != nil {
		return r.err
	}
	defer r.lock.close()

	cmd := &exec.Cmd{Path: path, Args: argv, Stdin: a.in, Stdout: a.out, Stderr: a.err.file}
	cmd.Env = append(os.Environ(), "QLOCK_NAME="+name, "QLOCK_TOKEN="+strconv.FormatUint(r.lock.Token(), 10))
	patience, grace := o.guardTimes(r.lock)
	c, err := startChild(cmd, a.in, patience, grace)
	if err != nil {
		return cannotRun(argv[0], err)
	}
	return a.attend(o, r.lock, c, signals, patience)
}

// guardTimes are for the guard of the command. When this program stands still, the
// last refresh was a third of the lease ago at most, so the lock is held for two
// thirds more; a tenth of the lease is left for margins and for the guard. Pauses of
// less than a second are ordinary.
func (o *runOptions) guardTimes(h *heldLock) (patience, grace time.Duration) {
	switch o.onLoss {
	case onLossIgnore:
		return 0, 0
	case onLossTerm:
		grace = max(o.grace, 1)
	}
	return max(h.lease*55/100, time.Second), grace
}

// attend stays with the command until it ends.
func (a *app) attend(o *runOptions, lock *heldLock, c *child, signals <-chan os.Signal, patience time.Duration) error {
	beats := time.NewTicker(max(patience, time.Second) / 8)
	defer beats.Stop()
	lost := lock.Context().Done()
	var kill <-chan time.Time
	for {
		select {
		case s := <-signals:
			c.signal(s)
		case <-beats.C:
			c.beat()
		case <-lost:
			lost = nil
			why := ""
			if cause := context.Cause(lock.Context()); errors.Is(cause, qlock.ErrEvicted) {
				why = " (" + printable(strings.TrimPrefix(plain(cause), "lock lost: ")) + ")"
			}
			switch o.onLoss {
			case onLossIgnore:
				fmt.Fprintf(a.err, "qlock: lock %q is lost%s, the command goes on without it (--on-loss ignore)\n", lock.Name(), why)
			case onLossKill:
				c.kill()
				fmt.Fprintf(a.err, "qlock: lock %q is lost%s, the command is killed\n", lock.Name(), why)
			default:
				c.terminate()
				fmt.Fprintf(a.err, "qlock: lock %q is lost%s, the command is told to end, and killed after %v\n", lock.Name(), why, o.grace)
				kill = time.After(o.grace)
			}
		case <-kill:
			kill = nil
			c.kill()
			fmt.Fprintf(a.err, "qlock: the command did not end within %v, it is killed\n", o.grace)
		case status := <-c.done:
			loss := lock.Unlock(context.Background())
			switch {
			case loss != nil && o.onLoss != onLossIgnore:
				if kill != nil {
					c.kill() // what of its group is left
				}
				if errors.Is(loss, qlock.ErrEvicted) {
					return &statusError{exitLost, fmt.Errorf("lock %q: %w", lock.Name(), loss)}
				}
				return &statusError{exitLost, fmt.Errorf("lock %q: %w while the command ran", lock.Name(), loss)}
			case status != 0:
				return &statusError{status, nil}
			}
			return nil
		}
	}
}

func cannotRun(name string, err error) error {
	status := exitCannotRun
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		status = exitNotFound
	}
	return &statusError{status, fmt.Errorf("run %s: %w", name, err)}
}

// signalNumber is what the shell adds to 128.
func signalNumber(s os.Signal) int {
	if s, ok := s.(syscall.Signal); ok {
		return int(s)
	}
	return 0
}
