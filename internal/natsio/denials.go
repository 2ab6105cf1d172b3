package natsio

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"weak"

	"github.com/nats-io/nats.go"
)

// A NATS server tells what a user may not publish by an error on the connection, not by
// an answer. The connection is the caller's, and so is its error handler: while clients
// use the connection, it is wrapped, and it still gets all errors but those that answer
// a question of a client's own. Should the caller set another handler meanwhile, the
// connection's last error is read in its place, which is slower when several requests
// are denied at once.

// Denials is what one client learns of publishes that NATS denied. Its owner calls
// Watch once, Stop when it hears of no more, and then Restore. Read is called by the
// publisher's goroutine, and tell by that of the connection's callbacks.
type Denials struct {
	nc   Conn
	told func(err error, known bool) (expected bool)

	mu      sync.Mutex // guards what follows; told is not called under it
	last    error      // that was looked at
	watched *watched   // nil before Watch
}

// NewDenials makes a Denials whose owner knows the error last already. told is called
// with each error that may say that a publish was denied, from the goroutine of
// the connection's callbacks or that which calls Read. known says that it was told of
// this very error last. It reports whether the owner expected the error, so that the
// caller's handler need not hear of it.
func NewDenials(nc Conn, last error, told func(err error, known bool) (expected bool)) *Denials {
	return &Denials{nc: nc, last: last, told: told}
}

// Read looks at what the connection remembers, which is its last error. It blocks while
// the connection stands still.
func (d *Denials) Read() {
	if err := d.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		d.tell(err)
	}
}

func (d *Denials) tell(err error) (expected bool) {
	d.mu.Lock()
	known := err == d.last
	d.last = err // the connection remembers it until the next
	d.mu.Unlock()
	return d.told(err, known)
}

// Watch wraps the error handler of the connection. It blocks while the connection stands
// still.
func (d *Denials) Watch(nc *nats.Conn) {
	w := watchedOf(nc)
	d.mu.Lock()
	d.watched = w
	d.mu.Unlock()
	w.add(d)
	w.wrap(nc)
}

// Stop ends the calls of told that Watch causes. It does not touch the connection.
func (d *Denials) Stop() {
	d.mu.Lock()
	w := d.watched
	d.mu.Unlock()
	if w != nil {
		w.remove(d)
	}
}

// Restore gives the connection the error handler back that it had before Watch, if
// nobody else uses it, and nobody has set or wrapped it since. nats.go has handlers that
// can be read and set, but no way to do both at once: a handler that is set in the very
// moment may be overwritten. It blocks while the connection stands still.
func (d *Denials) Restore(nc *nats.Conn) {
	d.mu.Lock()
	w := d.watched
	d.mu.Unlock()
	if w != nil {
		w.unwrap(nc)
	}
}

// watched is a connection whose errors are listened to.
type watched struct {
	// setting is held by whoever changes the connection's handler, while its calls on the
	// connection may block. Nobody else waits for it.
	setting sync.Mutex

	mu  sync.Mutex // guards all; nothing is called under it
	all map[*Denials]struct{}
}

var watchedConns sync.Map // weak.Pointer[nats.Conn] to *watched

func watchedOf(nc *nats.Conn) *watched {
	key := weak.Make(nc)
	made, known := watchedConns.LoadOrStore(key, &watched{all: map[*Denials]struct{}{}})
	if !known {
		runtime.AddCleanup(nc, func(key weak.Pointer[nats.Conn]) { watchedConns.Delete(key) }, key)
	}
	return made.(*watched)
}

func (w *watched) add(d *Denials) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[d] = struct{}{}
}

func (w *watched) remove(d *Denials) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, d)
}

func (w *watched) list() []*Denials {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]*Denials, 0, len(w.all))
	for d := range w.all {
		all = append(all, d)
	}
	return all
}

// tell tells all clients. It reports whether one of them expected the error.
func (w *watched) tell(err error) (expected bool) {
	for _, d := range w.list() {
		expected = d.tell(err) || expected
	}
	return expected
}

// wrap puts a handler of ours in front of the connection's, unless one is there already.
func (w *watched) wrap(nc *nats.Conn) {
	w.setting.Lock()
	defer w.setting.Unlock()
	before := nc.ErrorHandler()
	if wrapperOf(before) == nil {
		nc.SetErrorHandler((&wrapper{w, before}).handle)
	}
}

// unwrap takes our handler away if it is the outermost and no client needs it. If another
// is around it, as that of a service of package micro, ours stays and passes errors on.
func (w *watched) unwrap(nc *nats.Conn) {
	w.setting.Lock()
	defer w.setting.Unlock()
	if len(w.list()) > 0 {
		return
	}
	if ours := wrapperOf(nc.ErrorHandler()); ours != nil {
		nc.SetErrorHandler(ours.before)
	}
}

// wrapper is an error handler in front of another.
type wrapper struct {
	watched *watched
	before  nats.ErrHandler
}

func (w *wrapper) handle(nc *nats.Conn, sub *nats.Subscription, err error) {
	if who, ok := err.(*identify); ok {
		who.wrapper = w
		return
	}
	if errors.Is(err, nats.ErrPermissionViolation) && w.watched.tell(err) {
		return
	}
	if w.before != nil {
		w.before(nc, sub, err)
	}
}

// identify is what a wrapper is called with to tell that it is one, since functions
// cannot be compared.
type identify struct{ wrapper *wrapper }

func (*identify) Error() string { return "which error handler is this?" }

var handleCode = reflect.ValueOf((&wrapper{}).handle).Pointer()

// wrapperOf is the wrapper whose method h is, or nil. It calls no code but our own: of
// the caller's handler it looks at the address.
func wrapperOf(h nats.ErrHandler) *wrapper {
	if h == nil || reflect.ValueOf(h).Pointer() != handleCode {
		return nil
	}
	who := &identify{}
	h(nil, nil, who)
	return who.wrapper
}

// DeniedSubject takes the subject out of the server's words: Permissions Violation for
// Publish to "<subject>".
func DeniedSubject(err error) (string, bool) {
	_, rest, ok := strings.Cut(err.Error(), `Publish to "`)
	if !ok {
		if _, rest, ok = strings.Cut(err.Error(), `Subscription to "`); !ok {
			return "", false
		}
	}
	subject, _, ok := strings.Cut(rest, `"`)
	return subject, ok
}

// PermissionError says that err means that a permission is missing.
func PermissionError(subject string, err error) error {
	return fmt.Errorf("the NATS user lacks a permission for %s: %w", subject, err)
}
