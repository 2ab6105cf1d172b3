package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/semaphore"
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
	slots  int
	store  string

	what  string // what the command runs under, for messages
	ended bool   // a signal that ends programs has come
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
secret. If this program runs in the command of another qlock run, the note ends with the
name and token of that lock, by which qlock check finds deadlocks.

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

With --slots N up to N commands run at the same time, under one permit each of the
semaphore NAME, first come first served. QLOCK_PERMIT is the number of the permit, from
1 to N, and QLOCK_TOKEN its token. Give the same N everywhere: as many permits are held
as the largest N allows. A semaphore and a lock of the same name have nothing in common.

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
  2    bad flags`,
		Example: `  qlock run nightly -- ./backup.sh --full
  qlock run nightly --try -- ./backup.sh            fail at once if it runs elsewhere
  qlock run deploy --wait 10m --on-loss kill -- make deploy
  qlock run deploy --note "release 4.2, ask Ada" -- make deploy
  qlock run catalog --shared -- ./read-catalog
  qlock run render --slots 4 -- ./render.sh         four at a time, in the whole cluster`,
		Args: runArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.lockOptions.check(); err != nil {
				return err
			}
			if o.slots > 0 && o.shared {
				return usage("--slots limits how many commands run at the same time, and --shared does not limit them: give one or the other")
			}
			if o.slots > 0 && o.store != "" {
				return usage("--store fences writes by the token of a lock, and with --slots several hold a permit: give one or the other")
			}
			name, argv := runWords(cmd, args)
			o.noteOf(argv[0], cmd.Flags())
			o.note = withUnder(o.note)
			o.what = fmt.Sprintf("lock %q", name)
			acquire := o.acquire(name)
			if o.slots > 0 {
				o.what = fmt.Sprintf("the permit of semaphore %q", name)
				acquire = o.acquirePermit(name)
			}
			if o.store != "" {
				o.before = o.checkStore
			}
			a.supervise()
			return a.runCommand(cmd.Context(), o, "run", name, argv, acquire)
		},
	}
	fs := cmd.Flags()
	o.lockOptions.flags(fs)
	o.flags(fs, []string{onLossTerm, onLossKill, onLossIgnore})
	countFlag(fs, &o.slots, "slots", 0, 1, semaphore.MaxLimit, "run up to this many commands at the same time; default: one, under a lock")
	fs.StringVar(&o.store, "store", "", "bucket whose qlock store commands, inside the command, work under this lock")
	o.connection.flags(fs)
	return cmd
}

// flags are those of every command that runs another.
func (o *runOptions) flags(fs *pflag.FlagSet, onLoss []string) {
	choiceFlag(fs, &o.onLoss, "on-loss", onLossTerm, onLoss, "what to do with the command when the lock is lost")
	durationFlag(fs, &o.grace, "grace", 5*time.Second, 0, "time from SIGTERM to SIGKILL with --on-loss term")
	choiceFlag(fs, &o.until, "until", untilCommand, []string{untilCommand, untilGroup}, "hold the lock until the command has ended, or until its whole process group has")
	o.logs.flags(fs, "warn")
}

// runWords are the name and the command of arguments that runArgs has accepted.
func runWords(cmd *cobra.Command, args []string) (name string, argv []string) {
	if cmd.ArgsLenAtDash() == 0 {
		return args[0], args[2:] // after the second --
	}
	return args[0], args[1:]
}

func runArgs(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	switch {
	case dash == 0 && len(args) > 2 && args[1] == "--": // a name that begins with -
		return nil
	case dash == 0 && len(args) > 1 && args[1] == "--":
		return usage("the command after the second -- is missing: %s -- %s -- COMMAND", cmd.CommandPath(), args[0])
	case len(args) == 0 || dash == 0:
		return usage("the name of the lock is missing: %s", cmd.UseLine())
	case dash < 0:
		return usage("the command goes after --: %s %s -- COMMAND", cmd.CommandPath(), args[0])
	case dash > 1:
		return usage("one name is needed before --, got %d arguments", dash)
	case len(args) == 1:
		return usage("the command after -- is missing: %s %s -- COMMAND", cmd.CommandPath(), args[0])
	}
	return nil
}

func (a *app) runCommand(parent context.Context, o *runOptions, role, name string, argv []string, acquire acquisition) error {
	// Checked early: others should not wait for a lock that cannot be used.
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return cannotRun(argv[0], err)
	}
	if err := o.connection.check(); err != nil {
		return err // before anything is started
	}
	// Before the wait, during which the file of this program may be replaced.
	g, err := startGuard(a.err.file)
	if err != nil {
		return &statusError{exitSelf, err}
	}
	defer func() { g.dismiss() }()
	signals := make(chan os.Signal, 16)
	for _, s := range passedOn {
		if !signal.Ignored(s) { // ignored under nohup, which applies to the command too
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
		h, err := a.take(ctx, &o.connection, &o.lockOptions, &o.logs, role, name, acquire)
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
		if r.lock != nil { // it came at the same moment
			r.lock.close()
		}
		return &statusError{exitSignal + signalNumber(ended), r.err}
	}
	if r.err != nil {
		return r.err
	}
	defer r.lock.close()

	if now, err := exec.LookPath(argv[0]); err == nil {
		path = now // the command may also have been replaced during the wait
	}
	cmd := &exec.Cmd{Path: path, Args: argv, Stdin: a.in, Stdout: a.out, Stderr: a.err.file}
	cmd.Env = o.environment(os.Environ(), name, r.lock)
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

// environment is that of the command. If this program runs within another qlock run, nothing of
// the outer lock is left in it: its variables and those of this lock, together, would describe
// a lock that nobody holds.
func (o *runOptions) environment(inherited []string, name string, h *heldLock) []string {
	outer := map[string]string{"QLOCK_NAME": "", "QLOCK_TOKEN": "", "QLOCK_PERMIT": "", storeVariable: "", sharedVariable: "", clusterVariable: ""}
	env := slices.DeleteFunc(slices.Clone(inherited), func(v string) bool {
		name, value, _ := strings.Cut(v, "=")
		_, ours := outer[name]
		if ours {
			outer[name] = value
		}
		return ours
	})
	env = append(env, "QLOCK_NAME="+name, "QLOCK_TOKEN="+strconv.FormatUint(h.Token(), 10))
	env = append(env, h.env...)
	if o.shared {
		env = append(env, sharedVariable+"=1")
	}
	if o.store != "" || outer[clusterVariable] != "" {
		env = append(env, clusterVariable+"="+o.cluster)
	}
	switch {
	case o.store != "":
		env = append(env, storeVariable+"="+o.store)
		if o.server != "" {
			env = append(env, "NATS_URL="+o.server)
		}
	case outer[storeVariable] != "":
		// Without the variable, qlock store would work without a lock where the outer run says
		// that it works under one.
		env = append(env, storeVariable+"="+storeNone)
	}
	return env
}

// guardTimes returns the times of the command's guard. If this program stops running, the
// last refresh was at most a third of the lease ago, so the lock is held for at least two
// more thirds. About a tenth of the lease is left for margins and for the guard. Pauses of
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

// attendance is the state of this program while the command runs.
type attendance struct {
	*app
	o        *runOptions
	lock     *heldLock
	c        *child
	signals  <-chan os.Signal
	patience time.Duration

	lost    <-chan struct{}  // nil: the loss was dealt with
	kill    <-chan time.Time // when to kill what did not end, or what could not be killed before
	unheard bool             // a signal did not reach all processes of the command
	deaf    string           // the last message about processes that cannot be killed
}

const (
	killAgain = time.Second            // what cannot be killed now may become killable
	settle    = 250 * time.Millisecond // time for package qlock to evaluate a suspension
)

// attend supervises the command until it ends. It acts first, and reports afterwards.
func (w *attendance) attend() error {
	c := w.c
	beats := time.NewTicker(max(w.patience, time.Second) / 8)
	defer beats.Stop()
	w.lost = w.lock.Context().Done()
	status, done := 0, c.done
	look := 50 * time.Millisecond // interval of checks for remaining processes of the group
	var rest <-chan time.Time
	for {
		select {
		case s := <-w.signals:
			w.o.ended = w.o.ended || fatal(s)
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

// halt handles a command that was stopped or continued.
func (w *attendance) halt(s syscall.Signal) {
	began := time.Now()
	resume, trouble := w.c.halt(s)
	if time.Since(began) > w.patience/2 {
		// This program was suspended, perhaps for longer than the lease. The command must not
		// continue before that is known.
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

// lose handles the loss of the command's lock.
func (w *attendance) lose() {
	w.lost = nil
	why := ""
	if cause := context.Cause(w.lock.Context()); errors.Is(cause, qlock.ErrEvicted) {
		why = " (" + printable.Text(strings.TrimPrefix(plain(cause), "lock lost: ")) + ")"
	}
	what := fmt.Sprintf("%s is lost%s, the command", w.o.what, why)
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

// killNow kills the command. If a process cannot be killed, it is tried again: a process of
// another user may become one of this user.
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

// end releases the lock when the command has ended.
func (w *attendance) end(status int) error {
	loss := w.lock.Unlock(context.Background())
	lost := loss != nil && w.o.onLoss != onLossIgnore
	if lost && w.kill != nil {
		// Kills the rest of the group; close reports what cannot be killed.
		_ = w.c.kill()
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
		return &statusError{exitLost, fmt.Errorf("%s: %w", w.o.what, loss)}
	case lost:
		return &statusError{exitLost, fmt.Errorf("%s: %w while the command ran", w.o.what, loss)}
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

// signalNumber returns the number that the shell adds to 128.
func signalNumber(s os.Signal) int {
	if s, ok := s.(syscall.Signal); ok {
		return int(s)
	}
	return 0
}
