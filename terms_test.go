package qlock_test

import (
	"math"
	"runtime"
	"testing"
	"time"

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

// The place of a request is that of its age also if a younger request of the same Locker waits
// already, for which the Locker has a place of its own.
func TestAgeBehindAYoungerRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, c := w.client("a"), w.client("b"), w.client("c")
		k := mustLock(t, a, "x")
		before := time.Now()
		time.Sleep(time.Second)
		other := b.Start(t.Context(), "x")
		time.Sleep(time.Second)
		young := c.Start(t.Context(), "x")
		settle()
		old := c.Start(t.Context(), "x", qlock.WithAge(before))
		settle()
		mustUnlock(t, k)
		settle()
		for i, p := range []*qlock.Pending{old, other, young} {
			k, err := p.Lock()
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			mustUnlock(t, k)
			settle()
		}
		w.noClaims()
	})
}

// Any time can be an age. One in the future gives no place before others, and one before 1970 is
// the oldest.
func TestAgeOfAnyTime(t *testing.T) {
	for name, age := range map[string]time.Time{
		"largest":   time.Unix(math.MaxInt64, 0),
		"overflow":  time.Unix(math.MaxInt64/1_000_000+1, 0),
		"year 9999": time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC),
		"1970":      time.Unix(0, 0),
		"1969":      time.Unix(-1, 0),
		"year 1":    time.Time{}.Add(1),
		"underflow": time.Unix(math.MinInt64/1_000_000-1, 0),
		"smallest":  time.Unix(math.MinInt64, 0),
	} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b, c := w.client("a"), w.client("b"), w.client("c")
			k := mustLock(t, a, "x")
			first := b.Start(t.Context(), "x")
			time.Sleep(time.Second)
			second := c.Start(t.Context(), "x", qlock.WithAge(age))
			if age.Before(time.Now()) {
				first, second = second, first
			}
			settle()
			mustUnlock(t, k)
			for _, p := range []*qlock.Pending{first, second} {
				settle()
				k, err := p.Lock()
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				mustUnlock(t, k)
			}
			w.noClaims()
		})
	}
}
