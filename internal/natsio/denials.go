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

// A NATS server reports a denied publish by an error on the connection, not by an answer.
// The connection and its error handler belong to the caller. While clients use the
// connection, the handler is wrapped: it still gets all errors, except those that answer a
// client's own question. If the caller sets another handler meanwhile, the connection's
// last error is read instead. That takes longer when several requests are denied at once.

// Denials reports the publishes of one client that NATS denied. Its owner calls Watch once,
// Stop when it needs no more reports, and then Restore. The publisher's goroutine calls
// Read, and the goroutine of the connection's callbacks calls tell.
type Denials struct {
	nc   Conn
	told func(err error, known bool) (expected bool)

	mu      sync.Mutex // guards what follows; not held during calls of told
	last    error      // last error that was examined
	watched *watched   // nil before Watch
}

// NewDenials returns a Denials whose owner knows the error last already. told is called
// with each error that may say that a publish was denied. The call comes from the goroutine
// of the connection's callbacks or from the one that calls Read. known means that told was
// last called with this same error. told reports whether the owner expected the error; the
// caller's handler does not get an expected error.
func NewDenials(nc Conn, last error, told func(err error, known bool) (expected bool)) *Denials {
	return &Denials{nc: nc, last: last, told: told}
}

// Read examines the last error that the connection remembers. It blocks while the
// connection is blocked.
func (d *Denials) Read() {
	if err := d.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		d.tell(err)
	}
}

func (d *Denials) tell(err error) (expected bool) {
	d.mu.Lock()
	known := err == d.last
	d.last = err // the connection remembers it until the next error
	d.mu.Unlock()
	return d.told(err, known)
}

// Watch wraps the error handler of the connection. It blocks while the connection is
// blocked.
func (d *Denials) Watch(nc *nats.Conn) {
	w := watchedOf(nc)
	d.mu.Lock()
	d.watched = w
	d.mu.Unlock()
	w.add(d)
	w.wrap(nc)
}

// Stop ends the calls of told that Watch causes. It does not use the connection.
func (d *Denials) Stop() {
	d.mu.Lock()
	w := d.watched
	d.mu.Unlock()
	if w != nil {
		w.remove(d)
	}
}

// Restore sets the error handler that the connection had before Watch, if no other client
// uses the connection, and if the handler was not set or wrapped since. nats.go can read
// and set a handler, but cannot do both at once: Restore may overwrite a handler that is
// set at the same moment. It blocks while the connection is blocked.
func (d *Denials) Restore(nc *nats.Conn) {
	d.mu.Lock()
	w := d.watched
	d.mu.Unlock()
	if w != nil {
		w.unwrap(nc)
	}
}

// watched is a connection whose error handler is wrapped.
type watched struct {
	// setting is held while the connection's handler is changed. The calls on the connection
	// may block then, so nothing else waits for setting.
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

// tell passes an error to all clients, and reports whether one of them expected it.
func (w *watched) tell(err error) (expected bool) {
	for _, d := range w.list() {
		expected = d.tell(err) || expected
	}
	return expected
}

// wrap puts our handler in front of the connection's, unless it is there already.
func (w *watched) wrap(nc *nats.Conn) {
	w.setting.Lock()
	defer w.setting.Unlock()
	before := nc.ErrorHandler()
	if wrapperOf(before) == nil {
		nc.SetErrorHandler((&wrapper{w, before}).handle)
	}
}

// unwrap removes our handler if it is the outermost and no client needs it. If another
// handler wraps ours, as that of a service of package micro does, ours stays and passes
// errors on.
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

// identify is the error that a wrapper is called with so that it identifies itself, since
// functions cannot be compared.
type identify struct{ wrapper *wrapper }

func (*identify) Error() string { return "which error handler is this?" }

var handleCode = reflect.ValueOf((&wrapper{}).handle).Pointer()

// wrapperOf returns the wrapper whose method h is, or nil. It calls our own code only; it
// looks at the address of the caller's handler, and does not call it.
func wrapperOf(h nats.ErrHandler) *wrapper {
	if h == nil || reflect.ValueOf(h).Pointer() != handleCode {
		return nil
	}
	who := &identify{}
	h(nil, nil, who)
	return who.wrapper
}

// DeniedSubject extracts the subject from the server's message: Permissions Violation for
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

// PermissionError returns an error that says that a permission for subject is missing. It
// wraps err.
func PermissionError(subject string, err error) error {
	return fmt.Errorf("the NATS user lacks a permission for %s: %w", subject, err)
}
