package testworld

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// Sampler notes for how long locks are held for certain: it looks at their lease clocks again and
// again. When a context ends, or when a goroutine that waits for that runs, does not tell: both
// may be late on a busy machine, after the lock is another's.
type Sampler struct {
	mu   sync.Mutex // guards what follows
	open map[*sample]struct{}
}

type sample struct {
	ctx context.Context
	to  time.Time // the last moment before a look that found the lock held
	ok  bool      // there was one
}

// NewSampler starts a Sampler, and stops it when the test ends.
func NewSampler(t testing.TB, interval time.Duration) *Sampler {
	s := &Sampler{open: map[*sample]struct{}{}}
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			s.mu.Lock()
			for o := range s.open {
				o.look()
			}
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() { close(stop); work.Wait() })
	return s
}

// look is called with the Sampler's mu held.
func (o *sample) look() {
	if now := time.Now(); qlock.Held(o.ctx) == nil {
		o.to, o.ok = now, true
	}
}

// Begin begins to look at the lock of a context that comes from one. The function that it returns
// ends that, and returns a time in which the lock was held for certain. ok is false if there is
// none: the lock was lost before the first look.
func (s *Sampler) Begin(ctx context.Context) (end func() (from, to time.Time, ok bool)) {
	o, from := &sample{ctx: ctx}, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	o.look()
	s.open[o] = struct{}{}
	return func() (time.Time, time.Time, bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		o.look()
		delete(s.open, o)
		return from, o.to, o.ok
	}
}
