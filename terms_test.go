package qlock_test

import (
	"runtime"
	"testing"

	"github.com/qlock/qlock"
)

// A function of WithWaitFunc that panics, or ends its goroutine, leaves no request behind that is
// granted to nobody.
func TestWaitFuncThatDoesNotReturn(t *testing.T) {
	for how, end := range map[string]func(){"panic": func() { panic("oh") }, "Goexit": runtime.Goexit} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b := w.client("a"), w.client("b")
			k := mustLock(t, a, "x")
			panicked := make(chan any, 1)
			go func() {
				defer func() { panicked <- recover() }()
				_, err := b.Lock(t.Context(), "x", qlock.WithWaitFunc(func(qlock.Waiting) { end() }))
				t.Errorf("%s: Lock returned: %v", how, err)
			}()
			if p := <-panicked; (p != nil) != (how == "panic") {
				t.Errorf("%s: %v went on", how, p)
			}
			mustUnlock(t, k)
			settle()
			if s := b.Stats(); s.Held != 0 || s.Waiting != 0 {
				t.Errorf("%s: %d held, %d waiting", how, s.Held, s.Waiting)
			}
			w.noClaims()
		})
	}
}
