package qlock

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"weak"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/local"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/subject"
)

// A NATS server tells what a user may not publish by an error on the connection,
// not by an answer. The connection is the caller's, and so is its error handler:
// it is wrapped, once for each connection, and asked first. Should the caller set
// another later, the connection's last error is read in its place, which is slower
// when several requests are denied at once.

// denials is what the Lockers of one connection learn from it.
type denials struct {
	mu      sync.Mutex
	lockers map[*Locker]struct{}
}

var denialsOf sync.Map // weak.Pointer[nats.Conn] to *denials

func watchDenials(nc *nats.Conn) *denials {
	key := weak.Make(nc)
	made, known := denialsOf.LoadOrStore(key, &denials{lockers: map[*Locker]struct{}{}})
	d := made.(*denials)
	if known {
		return d
	}
	runtime.AddCleanup(nc, func(key weak.Pointer[nats.Conn]) { denialsOf.Delete(key) }, key)
	before := nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) && d.tell(err) {
			return
		}
		if before != nil {
			before(nc, sub, err)
		}
	})
	return d
}

// tell tells all of them. It reports whether that was all there is to say: the error
// answers a question of one of them, whether it may send batches.
func (d *denials) tell(err error) bool {
	d.mu.Lock()
	all := make([]*Locker, 0, len(d.lockers))
	for l := range d.lockers {
		all = append(all, l)
	}
	d.mu.Unlock()
	expected := false
	for _, l := range all {
		expected = l.denied(err) || expected
	}
	return expected
}

func (d *denials) add(l *Locker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lockers[l] = struct{}{}
}

func (d *denials) remove(l *Locker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.lockers, l)
}

// beforePublishing looks at what the connection remembers before it is given more:
// that cannot be about what was not published yet.
func (l *Locker) beforePublishing(acquired uint64) {
	l.readDenial()
	l.published.Store(max(l.published.Load(), acquired)) // a claim that asks again does not take it back
}

// readDenial looks at what the connection remembers.
func (l *Locker) readDenial() {
	if err := l.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		l.denied(err)
	}
}

// denied fails claims whose requests the server did not let through. It reports
// whether it was to be expected, and concerns none.
func (l *Locker) denied(err error) bool {
	l.mu.Lock()
	known := err == l.denial
	l.denial = err // the connection remembers it until the next
	l.mu.Unlock()
	on, ok := deniedSubject(err)
	if ok && on == l.out.batching.subject {
		if l.out.batching.deny() { // what was in them is lost
			l.step(func(now proto.Now, out *local.Out) { l.table.Reconnected(now, out) })
		}
		return true
	}
	if known || !ok || !l.concerns(on) {
		return false
	}
	l.deny(on, err)
	published := l.published.Load()
	l.failWaiting(ErrRefused, permissionError(on, err), func(k *Lock) bool {
		claim := k.use.Claim()
		return claim != nil && claim.Seq() <= published && on == subject.Request(l.opt.cluster, subject.Acquire, l.opt.name, k.resource)
	})
	l.log.line(slog.LevelError, "NATS permissions are missing", "subject", on, "error", err)
	return false
}

// concerns reports whether this Locker publishes or subscribes to it; others may share
// its connection.
func (l *Locker) concerns(on string) bool {
	p, ok := subject.Split(on)
	return on == l.inbox || ok && p.Cluster == l.opt.cluster && p.Client == l.opt.name
}

// deniedSubject takes the subject out of the server's words: Permissions
// Violation for Publish to "<subject>".
func deniedSubject(err error) (string, bool) {
	_, rest, ok := strings.Cut(err.Error(), `Publish to "`)
	if !ok {
		if _, rest, ok = strings.Cut(err.Error(), `Subscription to "`); !ok {
			return "", false
		}
	}
	subject, _, ok := strings.Cut(rest, `"`)
	return subject, ok
}

func permissionError(subject string, err error) error {
	return fmt.Errorf("the NATS user lacks a permission for %s: %w", subject, err)
}
