package natsio

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
)

var errDenied = fmt.Errorf("%w: Permissions Violation for Publish to \"x\"", nats.ErrPermissionViolation)

// callers is the error handler of a caller, which counts.
type callers struct {
	heard int
	wraps nats.ErrHandler
}

func (c *callers) handle(nc *nats.Conn, sub *nats.Subscription, err error) {
	c.heard++
	if c.wraps != nil {
		c.wraps(nc, sub, err)
	}
}

func codeOf(h nats.ErrHandler) uintptr { return reflect.ValueOf(h).Pointer() }

// The caller's error handler gets the errors that no client expected. It is the
// connection's own handler again when the last client leaves.
func TestErrorHandlerIsGivenBack(t *testing.T) {
	nc, own := new(nats.Conn), &callers{}
	nc.SetErrorHandler(own.handle)
	heard := map[string]int{}
	watch := func(name string, expects bool) *Denials {
		d := NewDenials(nc, nil, func(_ error, known bool) bool {
			if !known {
				heard[name]++
			}
			return expects
		})
		d.Watch(nc)
		return d
	}
	leave := func(d *Denials) {
		d.Stop()
		d.Restore(nc)
	}
	a, b := watch("a", false), watch("b", false)
	nc.ErrorHandler()(nc, nil, errDenied)
	nc.ErrorHandler()(nc, nil, errors.New("another"))
	if heard["a"] != 1 || heard["b"] != 1 || own.heard != 2 {
		t.Errorf("heard by the clients %v, by the caller %d", heard, own.heard)
	}
	leave(a)
	if codeOf(nc.ErrorHandler()) == codeOf(own.handle) {
		t.Error("the handler was taken away while a client needs it")
	}
	c := watch("c", true)
	nc.ErrorHandler()(nc, nil, errDenied)
	if heard["a"] != 1 || heard["c"] != 1 || own.heard != 2 {
		t.Errorf("heard by the clients %v, by the caller %d", heard, own.heard)
	}
	leave(b)
	leave(c)
	if codeOf(nc.ErrorHandler()) != codeOf(own.handle) {
		t.Error("the caller's handler was not given back")
	}
	leave(c) // again
	if codeOf(nc.ErrorHandler()) != codeOf(own.handle) {
		t.Error("the caller's handler was lost")
	}
}

// A handler that the caller sets meanwhile stays.
func TestErrorHandlerOfTheCallerStays(t *testing.T) {
	nc, own, other := new(nats.Conn), &callers{}, &callers{}
	nc.SetErrorHandler(own.handle)
	heard := 0
	told := func(_ error, known bool) bool {
		if !known {
			heard++
		}
		return false
	}
	d := NewDenials(nc, nil, told)
	d.Watch(nc)
	other.wraps = nc.ErrorHandler() // as a service of package micro does
	nc.SetErrorHandler(other.handle)
	d.Stop()
	d.Restore(nc)
	nc.ErrorHandler()(nc, nil, errDenied)
	if other.heard != 1 || own.heard != 1 || heard != 0 {
		t.Errorf("heard by the handler outside %d times, by the caller's %d, by the client %d", other.heard, own.heard, heard)
	}
	e := NewDenials(nc, nil, told)
	e.Watch(nc)
	nc.ErrorHandler()(nc, nil, errDenied)
	if other.heard != 2 || own.heard != 2 || heard != 1 {
		t.Errorf("heard by the handler outside %d times, by the caller's %d, by the client %d", other.heard, own.heard, heard)
	}
	e.Stop()
	e.Restore(nc)
	nc.SetErrorHandler(other.wraps) // the service has ended
	nc.ErrorHandler()(nc, nil, errDenied)
	if own.heard != 3 || heard != 1 {
		t.Errorf("heard by the caller's handler %d times, by the client %d", own.heard, heard)
	}

	nc.SetErrorHandler(nil)
	f := NewDenials(nc, nil, told)
	f.Watch(nc)
	nc.ErrorHandler()(nc, nil, errors.New("another"))
	f.Stop()
	f.Restore(nc)
	if nc.ErrorHandler() != nil {
		t.Error("a handler is left where there was none")
	}
}

// Clients come and go from many goroutines.
func TestErrorHandlerAmongClients(t *testing.T) {
	nc, own := new(nats.Conn), &callers{}
	nc.SetErrorHandler(own.handle)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				d := NewDenials(nc, nil, func(error, bool) bool { return true })
				d.Watch(nc)
				if codeOf(nc.ErrorHandler()) != handleCode {
					t.Error("a client is not heard")
				}
				d.Stop()
				d.Restore(nc)
			}
		})
	}
	all.Wait()
	if codeOf(nc.ErrorHandler()) != codeOf(own.handle) {
		t.Error("the caller's handler was not given back")
	}
}
