package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/wire"
)

// lockOptions is how a command takes its lock.
type lockOptions struct {
	shared bool
	try    bool
	wait   time.Duration
	lease  time.Duration
	quiet  bool
	note   string
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

// heldLock is a lock with all that was made to have it.
type heldLock struct {
	*qlock.Lock
	locker *qlock.Locker
	link   *link
	lease  time.Duration
}

func (h *heldLock) close() {
	_ = h.locker.Close() // it has said what it could not do
	h.link.Close()
}

// take takes a lock as the options say, and tells a person who waits how it stands.
func (a *app) take(ctx context.Context, c *connection, o *lockOptions, log *logs, role, name string) (*heldLock, error) {
	lease := o.lease
	if lease == 0 {
		lease = qlock.DefaultLease
	}
	logger, _ := log.logger(a.err)
	began := time.Now()
	p := a.progress(name, o.quiet)
	defer p.close()
	if !o.try {
		p.start(began)
	}
	var waiting func() // for a server, which the wait is for as well
	if o.wait > 0 {
		limited, cancel := context.WithDeadlineCause(ctx, began.Add(o.wait), fmt.Errorf("--wait %v has passed", o.wait))
		defer cancel()
		ctx, waiting = limited, p.noServer
	}
	l, err := c.connectWaiting(ctx, role, lease, waiting, connectionLogs(logger)...)
	if err != nil {
		if exitOf(err) == exitUsage {
			return nil, err
		}
		return nil, &statusError{exitSelf, err}
	}
	p.hasServer()
	fail := func(err error) (*heldLock, error) {
		l.Close()
		return nil, &statusError{lockStatus(err), err}
	}
	locker, sub, err := l.lockerFor(ctx, o, p, lease, logger)
	if errors.Is(err, qlock.ErrInvalidLease) && o.lease == 0 {
		// The nodes allow less than the default. A connection that fits the lease finds out
		// in time that its server is silent, so it takes another one.
		if most := l.maxLease(ctx, lease); most < lease {
			lease = most
			l.Close()
			if l, err = c.connectWaiting(ctx, role, lease, waiting, connectionLogs(logger)...); err != nil {
				return nil, &statusError{exitSelf, err}
			}
			locker, sub, err = l.lockerFor(ctx, o, p, lease, logger)
		}
	}
	if err != nil {
		return fail(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	ask := locker.Lock
	switch {
	case o.try && o.shared:
		ask = locker.TryRLock
	case o.try:
		ask = locker.TryLock
	case o.shared:
		ask = locker.RLock
	}
	lock, err := ask(ctx, name)
	if err != nil {
		_ = locker.Close()
		return fail(err)
	}
	return &heldLock{lock, locker, l, lease}, nil
}

// lockerFor makes a Locker with this lease, and has p hear all that it is answered.
func (l *link) lockerFor(ctx context.Context, o *lockOptions, p *progress, lease time.Duration, logger *slog.Logger) (*qlock.Locker, *nats.Subscription, error) {
	// Before there is a Locker, so that no answer is missed.
	sub, err := l.Subscribe(l.Opts.InboxPrefix+".*", p.answer)
	if err != nil {
		return nil, nil, err
	}
	locker, err := l.locker(ctx, o.wait, logger, qlock.WithNote(o.note), qlock.WithLease(lease))
	if err != nil {
		_ = sub.Unsubscribe()
		return nil, nil, err
	}
	return locker, sub, nil
}

func exitOf(err error) int {
	if e, ok := err.(*statusError); ok {
		return e.status
	}
	return exitFailed
}

// progress tells how a wait stands: on a terminal in one line that changes,
// elsewhere in a line now and then. It begins when a wait is long enough for a
// person to wonder.
//
// It hears the nodes' answers beside the Locker, which shows no claim before it is
// held. The inboxes of this connection have a prefix of their own, so it hears
// nobody else's.
type progress struct {
	out   *diagnostics
	name  string
	quiet bool

	mu      sync.Mutex // guards what follows
	answers map[string]*heard
	present map[string]bool // nodes that have said who they are
	server  bool            // a server has answered, or is not waited for
	drawn   bool

	stop chan struct{}
	done sync.WaitGroup
}

type heard struct {
	*wire.Answer
	at time.Time
}

const (
	waitNotice = 300 * time.Millisecond // until a wait is told of
	redraw     = 100 * time.Millisecond // on a terminal
	logEvery   = 30 * time.Second       // elsewhere
)

func (a *app) progress(name string, quiet bool) *progress {
	return &progress{out: a.err, name: name, quiet: quiet, answers: map[string]*heard{}, present: map[string]bool{}, server: true, stop: make(chan struct{})}
}

func (p *progress) answer(m *nats.Msg) {
	a, err := wire.DecodeAnswer(m.Data)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch a.Kind {
	case wire.Queued, wire.Granted, wire.Refused:
		p.answers[a.Node] = &heard{a, time.Now()}
	case wire.Informed:
		p.present[a.Node] = true
	}
}

// noServer says that there is no server yet.
func (p *progress) noServer() { p.setServer(false) }

func (p *progress) hasServer() { p.setServer(true) }

func (p *progress) setServer(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server = is
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
			case <-p.stop:
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

// text is how the wait stands: who is in the way according to most nodes, and how
// many stand before this claim where the queue is longest.
func (p *progress) text(waited time.Duration) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	place, votes := 0, 0
	recovering := time.Duration(0)
	var holder *heard
	count := map[wire.ClaimID]int{}
	for _, h := range p.answers {
		switch h.Kind {
		case wire.Granted:
			votes++
		case wire.Queued:
			recovering = max(recovering, h.Recovering-time.Since(h.at))
			if b := h.Blocker; b != nil {
				count[b.Claim]++
				if b.Voted {
					count[b.Claim] += 100 // a holder rather than one who waits too
				}
			}
		}
	}
	for _, h := range p.answers {
		// A node that gives no votes has the holder in its queue: others know better.
		if b := h.Blocker; h.Kind == wire.Queued && b != nil && (holder == nil || count[b.Claim] > count[holder.Blocker.Claim] ||
			b.Claim == holder.Blocker.Claim && b.Voted && !holder.Blocker.Voted) {
			holder = h
		}
	}
	for _, h := range p.answers {
		if h.Kind == wire.Queued && (holder == nil || h.Blocker != nil && h.Blocker.Voted == holder.Blocker.Voted) {
			place = max(place, h.Place)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "waiting for %s for %v", lockNamed(p.name), waited.Round(100*time.Millisecond))
	switch {
	case !p.server:
		b.WriteString(": no NATS server can be reached")
	case holder != nil:
		verb, mode := "held by", ""
		if !holder.Blocker.Voted {
			verb = "behind"
		}
		if holder.Blocker.Mode.String() == "shared" {
			mode = " (shared)"
		}
		since := holder.Blocker.For + time.Since(holder.at)
		fmt.Fprintf(&b, ": %s %s%s for %v, ", verb, printable.Text(holder.Blocker.Client), mode, since.Round(100*time.Millisecond))
		if place == 0 {
			b.WriteString("first in the queue")
		} else {
			fmt.Fprintf(&b, "%d ahead in the queue", place)
		}
	case recovering >= 100*time.Millisecond:
		fmt.Fprintf(&b, ": nodes that restarted give no votes for another %v", recovering.Round(100*time.Millisecond))
	case votes > 0:
		fmt.Fprintf(&b, ": %d %s voted for it, which is too few", votes, verb(votes, "node has", "nodes have"))
	case len(p.present) > 0:
		fmt.Fprintf(&b, ": %d %s, too few", len(p.present), verb(len(p.present), "node answers", "nodes answer"))
	default:
		b.WriteString(": no node answers")
	}
	return b.String()
}

// close clears the line and stops.
func (p *progress) close() {
	close(p.stop)
	p.done.Wait()
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.out.flush(redraw) // or it would clear what others write next
	}
}
