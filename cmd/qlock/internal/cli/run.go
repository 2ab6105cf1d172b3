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
	"github.com/qlock/qlock/internal/printable"
)

const (
	onLossTerm   = "term"
	onLossKill   = "kill"
	onLossIgnore = "ignore"
)

const (
	untilCommand = "command"
	untilGroup   = "group"
)

type runOptions struct {
	connection
	lockOptions
	logs
	onLoss string
	grace  time.Duration
	until  string
	store  string
}

func (a *app) run() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:     "run NAME [flags] -- COMMAND [ARGUMENT...]",
		Short:   "Run a command under a lock",
		GroupID: groupLocks,
		Long: `Acquire a lock, run a command, and release the lock when the command ends.

The command finds QLOCK_NAME and QLOCK_TOKEN in its environment. Send the token with
each write to the system that the lock protects, and let that system reject a token
that is lower than the highest it has seen. Nothing else protects it from a command
that was stopped and continues when another client holds the lock.

If the lock is lost or evicted (qlock unlock --force), --on-loss decides what happens
to the command: term sends it SIGTERM, and SIGKILL after --grace; kill sends SIGKILL
at once; ignore lets it run, and qlock exits with its status. Another client may hold
the lock from that moment on.

A name that begins with - needs a -- of its own: qlock run -- -name -- COMMAND.

--note is the text that other people see with the lock. Without it, they see the user,
the host, the process and the command's name, without its arguments, which may be
secret.

The command runs in a process group of its own. SIGINT, SIGTERM, SIGHUP, SIGQUIT,
SIGUSR1, SIGUSR2 and SIGCONT are forwarded to the group. SIGCONT follows each signal
that ends programs, since a stopped program would not end. If qlock itself is killed,
a second small process kills the group. If qlock is stopped or hangs, that process
does with the group what --on-loss says, before another client can hold the lock. On
Linux the kernel also kills the command, whatever happened to that process. Programs
that the command puts into a group or session of their own are out of reach. On
Windows there are no groups: only the command is ended, and nothing ends it when
qlock is killed.

The group gets the terminal when qlock's own group would have it: from the start, or
in a pipeline from when it asks for it. Ctrl-Z also stops qlock, until the shell
continues both. The lock is not refreshed meanwhile, and may be lost.

The lock is released when the command ends: processes that it leaves in the
background continue without a lock. With --until group the lock is held until the
whole group has ended. Programs of other users, such as those that sudo starts,
cannot be signalled: if the lock is lost they continue, and qlock reports it.

Exit status:
  the command's own, or 128 plus the number of the signal that ended it
  120  another client holds the lock (--try, or --wait has passed)
  121  no quorum: too few nodes voted
  122  the lock was lost or evicted while the command ran
  123  refused by the nodes or by NATS permissions, or evicted while it waited
  125  qlock failed for another reason, such as no connection
  126  the command cannot be executed
  127  the command was not found
  2    bad flags` + statuses,
		Example: `  qlock run nightly -- ./backup.sh --full
  qlock run nightly --try -- ./backup.sh            fail at once if it runs elsewhere
  qlock run deploy --wait 10m --on-loss kill -- make deploy
  qlock run deploy --note "release 4.2, ask Ada" -- make deploy
  qlock run catalog --shared -- ./read-catalog`,
		Args: runArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.lockOptions.check(); err != nil {
				return err
			}
			name, argv := args[0], args[1:]
			if cmd.ArgsLenAtDash() == 0 {
				argv = args[2:] // after the second --
			}
			o.noteOf(argv[0], cmd.Flags())
			return a.runCommand(cmd.Context(), o, name, argv)
		},
	}
	fs := cmd.Flags()
	o.lockOptions.flags(fs)
	choiceFlag(fs, &o.onLoss, "on-loss", onLossTerm, []string{onLossTerm, onLossKill, onLossIgnore}, "what to do with the command when the lock is lost")
	durationFlag(fs, &o.grace, "grace", 5*time.Second, 0, "time from SIGTERM to SIGKILL with --on-loss term")
	choiceFlag(fs, &o.until, "until", untilCommand, []string{untilCommand, untilGroup}, "hold the lock until the command has ended, or until its whole process group has")
	fs.StringVar(&o.store, "store", "", "bucket whose qlock store commands, inside the command, work under this lock")
	o.logs.flags(fs, "warn")
	o.connection.flags(fs)
	return cmd
}

func runArgs(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	switch {
	case dash == 0 && len(args) > 2 && args[1] == "--": // a name that begins with -
		return nil
	case dash == 0 && len(args) > 1 && args[1] == "--":
		return usage("the command after the second -- is missing: qlock run -- %s -- COMMAND", args[0])
	case len(args) == 0 || dash == 0:
		return usage("the name of the lock is missing: %s", cmd.UseLine())
	case dash < 0:
		return usage("the command goes after --: qlock run %s -- COMMAND", args[0])
	case dash > 1:
		return usage("one name is needed before --, got %d arguments", dash)
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
	if err := o.connection.check(); err != nil {
		return err // before anything is started
	}
	a.supervise()
	// Before the wait, in which the file of this program may be replaced.
	g, err := startGuard(a.err.file)
	if err != nil {
		return &statusError{exitSelf, err}
	}
	defer func() { g.dismiss() }()
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

	if now, err := exec.LookPath(argv[0]); err == nil {
		path = now // the command, too, may have been replaced during the wait
	}
	cmd := &exec.Cmd{Path: path, Args: argv, Stdin: a.in, Stdout: a.out, Stderr: a.err.file}
	cmd.Env = append(os.Environ(), "QLOCK_NAME="+name, "QLOCK_TOKEN="+strconv.FormatUint(r.lock.Token(), 10))
	cmd.Env = append(cmd.Env, o.storeEnvironment()...)
	patience, grace := o.guardTimes(r.lock)
	armed, err := g.arm(patience, grace)
	if err != nil {
		return &statusError{exitSelf, err}
	}
	g = armed
	c, err := startChild(cmd, g, signals)
	if err != nil {
		return cannotRun(argv[0], err)
	}
	w := &attendance{app: a, o: o, lock: r.lock, c: c, signals: signals, patience: patience}
	return w.attend()
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

// attendance is this program while the command runs.
type attendance struct {
	*app
	o        *runOptions
	lock     *heldLock
	c        *child
	signals  <-chan os.Signal
	patience time.Duration

	lost    <-chan struct{}  // nil: the loss was dealt with
	kill    <-chan time.Time // when to kill what did not end, or could not be killed
	unheard bool             // a signal did not reach all of the command
	deaf    string           // what was said of processes that cannot be killed
}

const (
	killAgain = time.Second            // what could not be killed may be able to be a little later
	settle    = 250 * time.Millisecond // after a standstill, until package qlock has seen what it means
)

// attend stays with the command until it ends. What is to be done is done first, and
// told of then.
func (w *attendance) attend() error {
	c := w.c
	beats := time.NewTicker(max(w.patience, time.Second) / 8)
	defer beats.Stop()
	w.lost = w.lock.Context().Done()
	status, done := 0, c.done
	look := 50 * time.Millisecond // when to look for what is left of the group
	var rest <-chan time.Time
	for {
		select {
		case s := <-w.signals:
			stop, err := c.pass(s)
			if err != nil && fatal(s) && w.lost != nil {
				w.unheard = true
				w.say("the signal %q did not reach all processes of the command: %v; the lock is held until they end", s, err)
			}
			if stop != 0 {
				w.halt(stop)
			}
		case s := <-c.stops:
			w.halt(s)
		case <-beats.C:
			c.beat()
		case <-w.lost:
			w.lose()
		case <-w.kill:
			w.killNow(fmt.Sprintf("the command did not end within %v, it", w.o.grace))
		case status = <-done:
			done = nil
			c.ended(status)
			if w.o.until == untilCommand || !c.left() {
				return w.end(status)
			}
			rest = time.After(look)
		case <-rest:
			if !c.left() {
				return w.end(status)
			}
			look = min(2*look, time.Second)
			rest = time.After(look)
		}
	}
}

func (w *attendance) say(format string, args ...any) {
	fmt.Fprintf(w.err, "qlock: "+format+"\n", args...)
}

// halt deals with a command that was stopped, or goes on.
func (w *attendance) halt(s syscall.Signal) {
	began := time.Now()
	resume, trouble := w.c.halt(s)
	if time.Since(began) > w.patience/2 {
		// This program stood still, perhaps for longer than the lease. The command must
		// not go on before that is known.
		select {
		case <-w.lost:
			w.lose()
		case <-time.After(settle):
		}
	}
	if resume {
		w.c.resume()
	}
	if trouble != "" {
		w.say("%s", trouble)
	}
}

// lose deals with the command when its lock is lost.
func (w *attendance) lose() {
	w.lost = nil
	why := ""
	if cause := context.Cause(w.lock.Context()); errors.Is(cause, qlock.ErrEvicted) {
		why = " (" + printable.Text(strings.TrimPrefix(plain(cause), "lock lost: ")) + ")"
	}
	what := fmt.Sprintf("lock %q is lost%s, the command", w.lock.Name(), why)
	switch w.o.onLoss {
	case onLossIgnore:
		w.say("%s continues without it (--on-loss ignore)", what)
	case onLossKill:
		w.killNow(what)
	default:
		err := w.c.terminate()
		w.kill = time.After(w.o.grace)
		if err == nil {
			w.say("%s gets SIGTERM, and SIGKILL after %v", what, w.o.grace)
		} else {
			w.say("%s cannot be sent SIGTERM: %v: "+worksOn, what, err)
		}
	}
}

const worksOn = "it continues without the lock, which another client may hold"

// killNow kills the command. What cannot be killed is tried again: a program of another
// user's may become one of this user's.
func (w *attendance) killNow(what string) {
	err := w.c.kill()
	switch {
	case err == nil:
		w.kill, w.deaf = nil, ""
		w.say("%s is killed", what)
		return
	case err.Error() != w.deaf:
		w.deaf = err.Error()
		w.say("%s cannot be killed: %v: "+worksOn, what, err)
	}
	w.kill = time.After(killAgain)
}

// end gives the lock back when the command has ended.
func (w *attendance) end(status int) error {
	loss := w.lock.Unlock(context.Background())
	lost := loss != nil && w.o.onLoss != onLossIgnore
	if lost && w.kill != nil {
		_ = w.c.kill() // what of its group is left; whom that does not reach, close knows
	}
	switch left := w.c.close(); {
	case left == nil:
	case lost:
		w.say("the command has ended, but processes that it started cannot be killed: %v: "+worksOn, left)
	case w.unheard:
		w.say("the command has ended, but the signal did not reach some of the processes that it started: %v; these processes continue without the lock (--until group would hold it for them)", left)
	}
	switch {
	case lost && errors.Is(loss, qlock.ErrEvicted):
		return &statusError{exitLost, fmt.Errorf("lock %q: %w", w.lock.Name(), loss)}
	case lost:
		return &statusError{exitLost, fmt.Errorf("lock %q: %w while the command ran", w.lock.Name(), loss)}
	case status != 0:
		return &statusError{status, nil}
	}
	return nil
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
