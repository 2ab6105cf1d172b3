package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
)

// lockOptions is how a command takes its lock.
type lockOptions struct {
	shared bool
	try    bool
	wait   time.Duration
	lease  time.Duration
	quiet  bool
	note   string
	before func(context.Context, *nats.Conn) error // called before the lock is asked for; nil: nothing
}

func (o *lockOptions) flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.shared, "shared", false, "acquire a shared (read) lock")
	fs.BoolVar(&o.try, "try", false, "fail at once instead of waiting for other clients")
	durationFlag(fs, &o.wait, "wait", 0, time.Millisecond, "time to wait for the lock, and for a NATS server; default: no limit for the lock, no wait for a server")
	durationFlag(fs, &o.lease, "lease", 0, 10*time.Millisecond, "how long the lock stays held if this program dies; default 10s, or less if the nodes allow less")
	env(fs, "lease", "QLOCK_LEASE")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "print only errors")
	fs.StringVar(&o.note, "note", "", "text that others see with the lock, up to 256 bytes; default: user@host, process and command")
	env(fs, "note", "QLOCK_NOTE")
}

// noteOf is the note where none was given: enough to find the process. Of the command
// it has the name only, as arguments may be secrets and notes are for all to read.
func (o *lockOptions) noteOf(command string, fs *pflag.FlagSet) {
	if fs.Changed("note") {
		return
	}
	who, host := "", "host"
	if u, err := user.Current(); err == nil {
		who = u.Username + "@"
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	o.note = fmt.Sprintf("%s%s %d: %s", who, host, os.Getpid(), filepath.Base(command))
}

func (o *lockOptions) check() error {
	if o.try && o.wait > 0 {
		return usage("--try does not wait, and --wait limits the wait: give one or the other")
	}
	return nil
}

// holding is what a command runs under: a lock, a permit or a leadership.
type holding interface {
	Token() uint64
	Context() context.Context
	Unlock(context.Context) error
}

// acquisition is how a holding is acquired, by a Locker made as the options say. The
// progress is told how the wait stands.
type acquisition func(ctx context.Context, l *qlock.Locker, p *progress) (h holding, env []string, err error)

// acquire acquires a lock.
func (o *lockOptions) acquire(name string) acquisition {
	return func(ctx context.Context, l *qlock.Locker, p *progress) (holding, []string, error) {
		var opts []qlock.LockOption
		if o.shared {
			opts = append(opts, qlock.Shared())
		}
		if o.try {
			opts = append(opts, qlock.Try())
		}
		k, err := p.wait(l.Start(ctx, name, opts...))
		return k, nil, err
	}
}

// heldLock is a holding with all that was made to have it.
type heldLock struct {
	holding
	env    []string // for the command, beside name and token
	locker *qlock.Locker
	link   *link
	lease  time.Duration
}

func (h *heldLock) close() {
	_ = h.locker.Close() // it has said what it could not do
	h.link.Close()
}

// take takes a lock as the options say, and tells a person who waits how it stands.
func (a *app) take(ctx context.Context, c *connection, o *lockOptions, log *logs, role, name string, acquire acquisition) (*heldLock, error) {
	lease := o.lease
	if lease == 0 {
		lease = qlock.DefaultLease
	}
	logger, _ := log.logger(a.err)
	began := time.Now()
	p := a.progress(ctx, name, o.quiet)
	defer p.close()
	if !o.try {
		p.start(began)
	}
	var waiting func() // for a server, which the wait is for as well
	if o.wait > 0 {
		limited, cancel := context.WithDeadlineCause(ctx, began.Add(o.wait), fmt.Errorf("--wait %v has passed", o.wait))
		defer cancel()
		ctx, waiting = limited, func() { p.set(func() { p.noServer = true }) }
	}
	l, err := c.connectWaiting(ctx, role, lease, waiting, connectionLogs(logger)...)
	if err != nil {
		if exitOf(err) == exitUsage {
			return nil, err
		}
		return nil, &statusError{exitSelf, err}
	}
	p.set(func() { p.noServer = false })
	fail := func(err error) (*heldLock, error) {
		l.Close()
		return nil, &statusError{lockStatus(err), err}
	}
	if o.before != nil {
		if err := o.before(ctx, l.Conn); err != nil {
			return fail(err)
		}
	}
	locker, err := p.lockerFor(ctx, l, o, lease, logger)
	if errors.Is(err, qlock.ErrInvalidLease) && o.lease == 0 {
		// The nodes allow less than the default. A connection that fits the lease finds out
		// in time that its server is silent, so it takes another one.
		if most := l.maxLease(ctx, lease); most < lease {
			lease = most
			l.Close()
			if l, err = c.connectWaiting(ctx, role, lease, waiting, connectionLogs(logger)...); err != nil {
				return nil, &statusError{exitSelf, err}
			}
			locker, err = p.lockerFor(ctx, l, o, lease, logger)
		}
	}
	if err != nil {
		return fail(err)
	}
	held, env, err := acquire(ctx, locker, p)
	if err != nil {
		_ = locker.Close()
		return fail(err)
	}
	return &heldLock{held, env, locker, l, lease}, nil
}

// lockerFor makes a Locker with this lease, and shows meanwhile which nodes answer.
func (p *progress) lockerFor(ctx context.Context, l *link, o *lockOptions, lease time.Duration, logger *slog.Logger) (*qlock.Locker, error) {
	p.set(func() { p.link = l })
	defer p.set(func() { p.link = nil })
	return l.locker(ctx, o.wait, logger, qlock.WithNote(o.note), qlock.WithLease(lease))
}

func exitOf(err error) int {
	if e, ok := err.(*statusError); ok {
		return e.status
	}
	return exitFailed
}

// progress tells how a wait stands: on a terminal in one line that changes, elsewhere in a
// line now and then. It begins when the wait is long enough for a person to wonder.
type progress struct {
	out   *diagnostics
	name  string
	quiet bool

	ctx    context.Context // ends when nothing more is to be shown
	cancel context.CancelFunc
	drawn  bool

	mu       sync.Mutex // guards what follows
	noServer bool       // no server has answered yet, and one is waited for
	link     *link      // of a Locker that looks for its nodes
	pending  *qlock.Pending
	told     *qlock.Waiting // what a recipe said that it waits for
	toldAt   time.Time

	done sync.WaitGroup
}

const (
	waitNotice = 300 * time.Millisecond // until a wait is told of
	redraw     = 100 * time.Millisecond // on a terminal
	logEvery   = 30 * time.Second       // elsewhere
)

func (a *app) progress(ctx context.Context, name string, quiet bool) *progress {
	p := &progress{out: a.err, name: name, quiet: quiet}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

func (p *progress) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// wait waits until a request is decided. The context that it was started with ends it.
func (p *progress) wait(r *qlock.Pending) (*qlock.Lock, error) {
	p.set(func() { p.pending = r })
	defer p.set(func() { p.pending = nil })
	<-r.Done()
	return r.Lock()
}

// tell is for recipes, which wait by themselves.
func (p *progress) tell(w qlock.Waiting) {
	p.set(func() { p.told, p.toldAt = &w, time.Now() })
}

func (p *progress) start(began time.Time) {
	if p.quiet {
		return
	}
	p.done.Go(func() {
		every := logEvery
		if terminal(p.out.file) {
			every = redraw
		}
		timer := time.NewTimer(waitNotice)
		defer timer.Stop()
		for {
			select {
			case <-p.ctx.Done():
				return
			case <-timer.C:
			}
			p.draw(time.Since(began))
			timer.Reset(every)
		}
	})
}

func (p *progress) draw(waited time.Duration) {
	if p.out.busy() {
		return // a person who does not see this line needs no newer one
	}
	line := p.text(waited)
	if terminal(p.out.file) {
		p.drawn = true
		if width, _ := size(p.out.file); width > 1 && text.StringWidth(line) >= width {
			line = text.Snip(line, width-1, "…") // a second line would stay
		}
		fmt.Fprintf(p.out, "\r\x1b[K%s", paint(p.out.file, line, text.Faint))
		return
	}
	fmt.Fprintf(p.out, "qlock: %s\n", line)
}

// text is how the wait stands.
func (p *progress) text(waited time.Duration) string {
	p.mu.Lock()
	noServer, l, r, told, toldAt := p.noServer, p.link, p.pending, p.told, p.toldAt
	p.mu.Unlock()
	why := "no node answers"
	switch {
	case noServer:
		why = "no NATS server can be reached"
	case r != nil:
		r.Changed() // asks the nodes to say so from now on
		why = waitsFor(r.Status())
	case told != nil:
		w := *told
		if w.Holder != nil {
			h := *w.Holder
			h.For += time.Since(toldAt)
			w.Holder = &h
		}
		why = waitsFor(w)
	case l != nil:
		if n := l.answering(p.ctx); n > 0 {
			why = fmt.Sprintf("%d %s, too few", n, verb(n, "node answers", "nodes answer"))
		}
	}
	return fmt.Sprintf("waiting for %s for %v: %s", lockNamed(p.name), waited.Round(100*time.Millisecond), why)
}

// answering is how many nodes answer.
func (l *link) answering(ctx context.Context) (n int) {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	m, err := qlock.QueryMembers(ctx, l.Conn, qlock.WithCluster(l.cluster), qlock.WithName(l.client))
	if err != nil {
		return 0
	}
	for _, node := range m.Nodes {
		if node.Answered {
			n++
		}
	}
	return n
}

// waitsFor is what a request waits for.
func waitsFor(w qlock.Waiting) string {
	recovering := time.Duration(0)
	for _, n := range w.Nodes {
		recovering = max(recovering, n.Waiting)
	}
	votes := w.Votes()
	switch h := w.Holder; {
	case h != nil:
		verb, mode, place := "held by", "", fmt.Sprintf("%d ahead in the queue", w.Ahead)
		if !h.Held {
			verb = "behind"
		}
		if h.Shared {
			mode = " (shared)"
		}
		if w.Ahead == 0 {
			place = "first in the queue"
		}
		return fmt.Sprintf("%s %s%s for %v, %s", verb, printable.Text(h.Client), mode, h.For.Round(100*time.Millisecond), place)
	case recovering >= 100*time.Millisecond:
		return fmt.Sprintf("nodes that restarted give no votes for another %v", recovering.Round(100*time.Millisecond))
	case votes > 0:
		return fmt.Sprintf("%d %s voted for it, which is too few", votes, verb(votes, "node has", "nodes have"))
	}
	return "no node answers"
}

// close clears the line and stops.
func (p *progress) close() {
	p.cancel()
	p.done.Wait()
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.out.flush(redraw) // or it would clear what others write next
	}
}
