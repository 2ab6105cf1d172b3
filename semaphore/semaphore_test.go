package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/semaphore"
)

func newSemaphore(t testing.TB, l *qlock.Locker, limit int) *semaphore.Semaphore {
	t.Helper()
	s, err := semaphore.New(l, "renders", limit)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustAcquire(t testing.TB, s *semaphore.Semaphore, k int) *semaphore.Permits {
	t.Helper()
	p, err := s.Acquire(within(t, 10*time.Minute), k)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustRelease(t testing.TB, p *semaphore.Permits) {
	t.Helper()
	if err := p.Release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
}

// call is Acquire in a goroutine of its own.
type call struct {
	done chan struct{}
	p    *semaphore.Permits
	err  error
	at   time.Time
}

// start calls Acquire, and returns when it waits or is over.
func start(ctx context.Context, s *semaphore.Semaphore, k int) *call {
	c := &call{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.p, c.err = s.Acquire(ctx, k)
		c.at = time.Now()
	}()
	synctest.Wait()
	time.Sleep(time.Millisecond) // the next call is younger
	synctest.Wait()
	return c
}

func (c *call) over() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func TestAcquire(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		sa, sb := newSemaphore(t, a, 3), newSemaphore(t, b, 3)
		p := mustAcquire(t, sa, 2)
		q := mustAcquire(t, sb, 1)
		if all := slices.Sorted(slices.Values(append(p.Numbers(), q.Numbers()...))); !slices.Equal(all, []int{1, 2, 3}) || !slices.IsSorted(p.Numbers()) {
			t.Errorf("permits %v and %v", p.Numbers(), q.Numbers())
		}
		number := q.Numbers()[0]
		if p.Name() != "renders" || q.Token(number) == 0 || q.Token(number) != qlock.Token(q.Context()) || q.Token(p.Numbers()[0]) != 0 {
			t.Errorf("%s, tokens %d and %d", p.Name(), q.Token(number), p.Token(number))
		}
		_, err := sb.TryAcquire(t.Context(), 1)
		wantError(t, err, qlock.ErrHeld, `semaphore "renders": 0 of the 1 permits that are wanted were free, of 3`, "held by")
		began := time.Now()
		_, err = sb.Acquire(within(t, 3*time.Second), 1)
		wantError(t, err, qlock.ErrHeld, "0 of the 1 permits", "held by")
		wantError(t, err, context.DeadlineExceeded)
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("it waited for %v", d)
		}
		waits := start(t.Context(), sb, 2)
		_, err = sb.Acquire(within(t, 3*time.Second), 1)
		wantError(t, err, qlock.ErrHeld, "not this call's turn")
		mustRelease(t, q)
		if waits.over() {
			t.Fatalf("with one permit of two: %v", waits.err)
		}
		old := p.Token(p.Numbers()[0])
		mustRelease(t, p)
		if !waits.over() || waits.err != nil {
			t.Fatalf("two permits are free: %v", waits.err)
		}
		if cause := context.Cause(p.Context()); cause != qlock.ErrUnlocked {
			t.Errorf("cause %v", cause)
		}
		if n := p.Numbers()[0]; slices.Contains(waits.p.Numbers(), n) && waits.p.Token(n) <= old {
			t.Errorf("permit %d has token %d after %d", n, waits.p.Token(n), old)
		}
		r, err := sa.TryAcquire(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		mustRelease(t, r)
		mustRelease(t, waits.p)
		mustRelease(t, waits.p)
		w.NoClaims()
	})
}

func TestBadInput(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		for _, c := range []struct {
			name  string
			limit int
			is    error
			says  string
		}{
			{"", 1, qlock.ErrInvalidName, "is empty"},
			{strings.Repeat("x", 901), 1, qlock.ErrInvalidName, "901 bytes, at most 900"},
			{"x", 0, semaphore.ErrLimit, "the limit 0 is not within 1 and 1024"},
			{"x", 1025, semaphore.ErrLimit, "1025"},
		} {
			_, err := semaphore.New(a, c.name, c.limit)
			wantError(t, err, c.is, c.says)
		}
		if _, err := semaphore.New(nil, "x", 1); err == nil {
			t.Error("no error without a Locker")
		}
		s := newSemaphore(t, a, 2)
		for _, k := range []int{-1, 0, 3} {
			_, err := s.Acquire(t.Context(), k)
			wantError(t, err, semaphore.ErrLimit, fmt.Sprint(k), "within 1 and the limit 2")
			_, err = s.TryAcquire(t.Context(), k)
			wantError(t, err, semaphore.ErrLimit, fmt.Sprint(k))
		}
		wantError(t, s.SetLimit(0), semaphore.ErrLimit, "0")
		if s.Limit() != 2 || s.Name() != "renders" {
			t.Error(s.Limit(), s.Name())
		}
		// Any name will do, and the longest one.
		long, err := semaphore.New(a, strings.Repeat("a b", 300), 1)
		if err != nil {
			t.Fatal(err)
		}
		mustRelease(t, mustAcquire(t, long, 1))
		w.NoClaims()
		_ = a.Close()
		_, err = s.Acquire(t.Context(), 1)
		wantError(t, err, qlock.ErrClosed)
		_, err = s.TryAcquire(t.Context(), 1)
		wantError(t, err, qlock.ErrClosed)
	})
}

func TestParseName(t *testing.T) {
	for lock, want := range map[string]struct {
		name   string
		permit int
	}{
		"qlock.semaphore.a.gate":                {"a", 0},
		"qlock.semaphore.a.permit.3":            {"a", 3},
		"qlock.semaphore.a.permit.3.permit.4":   {"a.permit.3", 4},
		"qlock.semaphore.a.permit.3.gate":       {"a.permit.3", 0},
		"qlock.semaphore.a.gate.permit.1024":    {"a.gate", 1024},
		"qlock.semaphore.a.permit.03":           {},
		"qlock.semaphore.a.permit.0":            {},
		"qlock.semaphore.a.permit.1025":         {},
		"qlock.semaphore..gate":                 {},
		"qlock.semaphore.permit.3":              {},
		"qlock.semaphore.a":                     {},
		"orders.gate":                           {},
		"qlock.semaphore.a.permit.999999999999": {},
	} {
		name, permit, ok := semaphore.ParseName(lock)
		if ok != (want.name != "") || name != want.name || permit != want.permit {
			t.Errorf("%s: %q, %d, %v", lock, name, permit, ok)
		}
	}
}

// Calls are served in the order in which they were made, in whichever client, and a call
// for many permits is not overtaken by later ones for few.
func TestOrder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const limit = 4
		var sems []*semaphore.Semaphore
		for i := range 5 {
			l, _ := w.Client(fmt.Sprintf("c%d", i))
			sems = append(sems, newSemaphore(t, l, limit))
		}
		r := rand.New(rand.NewPCG(14, 2))
		first := mustAcquire(t, sems[0], limit)
		var calls []*call
		for i := range 40 {
			calls = append(calls, start(t.Context(), sems[i%len(sems)], 1+r.IntN(limit)))
		}
		mustRelease(t, first)
		held := 0
		for i := 0; i < len(calls); {
			// All that fit have been served, in order, and nobody else.
			n := i
			for n < len(calls) && calls[n].over() {
				if calls[n].err != nil {
					t.Fatal(calls[n].err)
				}
				held += len(calls[n].p.Numbers())
				n++
			}
			if n == i {
				t.Fatalf("call %d is not served", i)
			}
			for k := n; k < len(calls); k++ {
				if calls[k].over() {
					t.Fatalf("call %d is served before call %d", k, n)
				}
			}
			if held > limit {
				t.Fatalf("%d permits of %d are held", held, limit)
			}
			for ; i < n; i++ {
				held -= len(calls[i].p.Numbers())
				mustRelease(t, calls[i].p)
			}
		}
		w.NoClaims()
	})
}

// Of a client that dies while it is its turn the others are rid after its lease.
func TestDeadGateHolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, dead := w.Client("b")
		c, _ := w.Client("c")
		held := mustAcquire(t, newSemaphore(t, a, 2), 2)
		ctx, cancel := context.WithCancel(t.Context())
		gone := start(ctx, newSemaphore(t, b, 2), 1) // it holds the gate
		next := start(t.Context(), newSemaphore(t, c, 2), 1)
		dead.Cut()
		cutAt := time.Now()
		mustRelease(t, held)
		if next.over() {
			t.Fatal("served while the gate was held by another")
		}
		<-next.done
		if next.err != nil {
			t.Fatal(next.err)
		}
		if d := next.at.Sub(cutAt); d < lease/2 || d > lease+lease/50 {
			t.Errorf("the dead client blocked for %v, its lease is %v", d, lease)
		}
		mustRelease(t, next.p)
		cancel()
		<-gone.done
		wantError(t, gone.err, context.Canceled)
	})
}

// The permits of a client that is cut off are free after its lease, and their contexts end
// before another client has them.
func TestCutOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, cut := w.Client("a")
		b, _ := w.Client("b")
		sa, sb := newSemaphore(t, a, 3), newSemaphore(t, b, 3)
		p, one := mustAcquire(t, sa, 2), mustAcquire(t, sa, 1)
		cut.Cut()
		q := mustAcquire(t, sb, 3)
		for _, p := range []*semaphore.Permits{p, one} {
			if cause := context.Cause(p.Context()); !errors.Is(cause, qlock.ErrLost) {
				t.Errorf("the context of %v has not ended, or with %v", p.Numbers(), cause)
			}
			for _, n := range p.Numbers() {
				if q.Token(n) <= p.Token(n) {
					t.Errorf("permit %d: token %d after %d", n, q.Token(n), p.Token(n))
				}
			}
			wantError(t, p.Release(t.Context()), qlock.ErrLost, `semaphore "renders"`, fmt.Sprintf("permit %d", p.Numbers()[0]))
		}
		mustRelease(t, q)
		// It is of use again when it is back.
		cut.Mend()
		mustRelease(t, mustAcquire(t, sa, 3))
		w.NoClaims()
	})
}

// The context of several ends with any of them; the others are held until Release.
func TestEvictedPermit(t *testing.T) {
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a, _ := w.Client("a")
				b, _ := w.Client("b")
				sa, sb := newSemaphore(t, a, 3), newSemaphore(t, b, 3)
				p := mustAcquire(t, sa, 3)
				evictPermit(t, b, p.Numbers()[i])
				<-p.Context().Done()
				if cause := context.Cause(p.Context()); !errors.Is(cause, qlock.ErrEvicted) {
					t.Errorf("cause %v", cause)
				}
				q, err := sb.TryAcquire(t.Context(), 1)
				if err != nil {
					t.Fatal(err)
				}
				_, err = sb.TryAcquire(t.Context(), 1)
				wantError(t, err, qlock.ErrHeld)
				wantError(t, p.Release(t.Context()), qlock.ErrLost, fmt.Sprintf("permit %d", p.Numbers()[i]))
				mustRelease(t, q)
				w.NoClaims()
			})
		})
	}
}

// An operator evicts a call that waits for one of several permits: the error says so, and not
// that its waits for the others were ended.
func TestEvictedWait(t *testing.T) {
	for number := 1; number <= 3; number++ {
		bubble(t, func(t *testing.T, w *world) {
			a, _ := w.Client("a")
			b, _ := w.Client("b")
			p := mustAcquire(t, newSemaphore(t, a, 3), 3)
			failed := make(chan error)
			go func() {
				_, err := newSemaphore(t, b, 3).Acquire(t.Context(), 3)
				failed <- err
			}()
			time.Sleep(time.Second)
			info, err := a.Inspect(t.Context(), fmt.Sprintf("qlock.semaphore.renders.permit.%d", number))
			if err != nil || len(info.Queue) != 1 {
				t.Fatalf("%+v, %v", info, err)
			}
			if err := a.Evict(t.Context(), info.Name, info.Queue[0], "a test"); err != nil {
				t.Fatal(err)
			}
			wantError(t, <-failed, qlock.ErrEvicted)
			mustRelease(t, p)
			w.NoClaims()
		})
	}
}

func evictPermit(t *testing.T, by *qlock.Locker, number int) {
	t.Helper()
	evict(t, by, fmt.Sprintf("qlock.semaphore.renders.permit.%d", number))
}

func evict(t *testing.T, by *qlock.Locker, name string) {
	t.Helper()
	info, err := by.Inspect(t.Context(), name)
	if err != nil || len(info.Holders) != 1 {
		t.Fatalf("%s: %+v, %v", name, info, err)
	}
	if err := by.Evict(t.Context(), name, info.Holders[0], "a test"); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// What is lost during a wait, permit or gate, ends neither the wait nor the order.
func TestLossDuringWait(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		sa, sb := newSemaphore(t, a, 2), newSemaphore(t, b, 2)
		p := mustAcquire(t, sa, 1)
		waits := start(t.Context(), sb, 2) // it has one permit, and the gate
		other := 3 - p.Numbers()[0]
		evictPermit(t, a, other)
		if waits.over() {
			t.Fatal(waits.err)
		}
		mustRelease(t, p)
		if !waits.over() || waits.err != nil {
			t.Fatal("not served", waits.err)
		}
		mustRelease(t, waits.p)

		// The same of one that came while it waited.
		sc, sd := newSemaphore(t, a, 3), newSemaphore(t, b, 3)
		p = mustAcquire(t, sc, 1)
		q := mustAcquire(t, sc, 1)
		waits = start(t.Context(), sd, 3)
		mustRelease(t, q)
		synctest.Wait()
		evictPermit(t, a, q.Numbers()[0])
		mustRelease(t, p)
		<-waits.done
		if waits.err != nil || waits.p.Context().Err() != nil {
			t.Fatal("what was granted was not held by then", waits.err)
		}
		mustRelease(t, waits.p)

		// Who is evicted from the gate is not to wait: it is told.
		p = mustAcquire(t, sa, 1)
		waits = start(t.Context(), sb, 2)
		evict(t, a, "qlock.semaphore.renders.gate")
		if !waits.over() {
			t.Fatal("it waits still")
		}
		wantError(t, waits.err, qlock.ErrEvicted, `semaphore "renders"`)
		mustRelease(t, p)
		w.NoClaims()
	})
}

// A client that is cut off while it waits, for longer than the lease, goes on waiting, and
// keeps nothing of what it had.
func TestCutOffDuringWait(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, link := w.Client("b")
		sa, sb := newSemaphore(t, a, 2), newSemaphore(t, b, 2)
		p := mustAcquire(t, sa, 1)
		waits := start(t.Context(), sb, 2)
		link.Cut()
		time.Sleep(2 * lease)
		q, err := sa.TryAcquire(t.Context(), 1)
		if err != nil {
			t.Fatalf("what it held is not free: %v", err)
		}
		link.Mend()
		time.Sleep(lease)
		if waits.over() {
			t.Fatal(waits.err)
		}
		mustRelease(t, p)
		mustRelease(t, q)
		<-waits.done
		if waits.err != nil {
			t.Fatal(waits.err)
		}
		mustRelease(t, waits.p)
		w.NoClaims()
	})
}

// The limit changes while permits are held and waited for.
func TestSetLimit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		sa, sb := newSemaphore(t, a, 2), newSemaphore(t, b, 2)
		p := mustAcquire(t, sa, 2)
		waits := start(t.Context(), sb, 1)
		later := start(t.Context(), sa, 1)
		if err := sb.SetLimit(3); err != nil {
			t.Fatal(err)
		}
		if !waits.over() || waits.err != nil || !slices.Equal(waits.p.Numbers(), []int{3}) {
			t.Fatalf("not served after the limit was raised: %v", waits.err)
		}
		if later.over() {
			t.Fatal("a client that has not heard of the higher limit uses it")
		}
		// Lower: what is held stays held, and nobody gets it anew.
		for _, s := range []*semaphore.Semaphore{sa, sb} {
			if err := s.SetLimit(1); err != nil {
				t.Fatal(err)
			}
		}
		if p.Context().Err() != nil || waits.p.Context().Err() != nil {
			t.Error("a permit ended with the limit")
		}
		mustRelease(t, waits.p)
		if later.over() {
			t.Fatal("served beyond the limit")
		}
		if err := p.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !later.over() || later.err != nil || !slices.Equal(later.p.Numbers(), []int{1}) {
			t.Fatalf("not served: %v", later.err)
		}
		// Who waits for more than there are is told.
		if err := sb.SetLimit(3); err != nil {
			t.Fatal(err)
		}
		many := start(t.Context(), sb, 3)
		if err := sb.SetLimit(2); err != nil {
			t.Fatal(err)
		}
		if !many.over() {
			t.Fatal("it waits for more permits than there are")
		}
		wantError(t, many.err, semaphore.ErrLimit, "3 permits are wanted", "the limit 2")
		mustRelease(t, later.p)
		w.NoClaims()
	})
}

// Clients come, go, and are cut off for longer than their lease, from one seed: never more
// than the limit hold permits, nobody starves, nothing is left. Time is exact here, so
// what a context says is compared with what the others have, to the microsecond.
func TestHistory(t *testing.T) {
	lost := 0
	defer func() {
		if lost == 0 {
			t.Error("no permit was lost: the faults do nothing")
		}
	}()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				const clients, limit, rounds = 6, 3, 12
				r := rand.New(rand.NewPCG(seed, 14))
				h := &holders{t: t, limit: limit, tokens: map[int]uint64{}, by: map[int]context.Context{}}
				var all sync.WaitGroup
				var links []*link
				for i := range clients {
					l, nc := w.Client(fmt.Sprintf("c%d", i))
					links = append(links, nc)
					s := newSemaphore(t, l, limit)
					r := rand.New(rand.NewPCG(r.Uint64(), 0))
					all.Go(func() {
						for range rounds {
							p, err := s.Acquire(within(t, time.Hour), 1+r.IntN(limit))
							if err != nil {
								t.Error(err)
								return
							}
							h.enter(p)
							select {
							case <-time.After(time.Duration(r.IntN(30_000)) * time.Millisecond):
							case <-p.Context().Done():
							}
							err = p.Release(t.Context())
							h.leave(err)
							time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
						}
					})
				}
				stop := make(chan struct{})
				var faults sync.WaitGroup
				faults.Go(func() {
					for {
						l := links[r.IntN(len(links))]
						select {
						case <-stop:
							return
						case <-time.After(time.Duration(r.IntN(10)) * time.Second):
						}
						l.Cut()
						time.Sleep(time.Duration(5+r.IntN(35)) * time.Second)
						l.Mend()
					}
				})
				all.Wait()
				close(stop)
				faults.Wait()
				t.Logf("%d grants, %d of them lost", h.grants, h.lost)
				lost += h.lost
				time.Sleep(2 * lease)
				w.NoClaims()
			})
		})
	}
}

// holders is who holds which permit.
type holders struct {
	t      *testing.T
	limit  int
	mu     sync.Mutex // guards what follows
	tokens map[int]uint64
	by     map[int]context.Context
	grants int
	lost   int
}

func (h *holders) enter(p *semaphore.Permits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.Context().Err() != nil {
		return // lost since
	}
	h.grants++
	for _, n := range p.Numbers() {
		if n < 1 || n > h.limit {
			h.t.Errorf("permit %d of %d", n, h.limit)
		}
		if other := h.by[n]; other != nil {
			if other.Err() == nil {
				h.t.Errorf("permit %d has two holders", n)
			}
		}
		if p.Token(n) <= h.tokens[n] {
			h.t.Errorf("permit %d: token %d after %d", n, p.Token(n), h.tokens[n])
		}
		h.tokens[n], h.by[n] = p.Token(n), p.Context()
	}
}

// leave notes what Release returned.
func (h *holders) leave(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case errors.Is(err, qlock.ErrLost):
		h.lost++
	case err != nil:
		h.t.Error(err)
	}
}

// Who waits can be told for whom.
func TestWaitFunc(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		c, _ := w.Client("c")
		p := mustAcquire(t, newSemaphore(t, a, 2), 2)
		var mu sync.Mutex // guards holders
		holders := map[string]bool{}
		for _, l := range []*qlock.Locker{b, c} {
			s, err := semaphore.New(l, "renders", 2, nil, semaphore.WithWaitFunc(func(w qlock.Waiting) {
				mu.Lock()
				defer mu.Unlock()
				if w.Holder != nil {
					holders[l.Name()+" for "+w.Holder.Client] = true
				}
			}))
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.TryAcquire(t.Context(), 1)
			wantError(t, err, qlock.ErrHeld)
			waits := start(t.Context(), s, 1)
			defer func() {
				<-waits.done
				mustRelease(t, waits.p)
			}()
		}
		mu.Lock()
		if !holders["b for a"] || !holders["c for b"] {
			t.Errorf("%v", holders)
		}
		mu.Unlock()
		mustRelease(t, p)
	})
}

// Calls of a Locker that is closed fail with ErrClosed, wherever they are at that moment.
func TestCloseDuringCalls(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for range 100 {
			l, _ := w.Client("a")
			s := newSemaphore(t, l, 2)
			var calls sync.WaitGroup
			for i := range 4 {
				calls.Go(func() {
					for {
						p, err := s.Acquire(context.Background(), 1+i%2)
						if err != nil {
							if !errors.Is(err, qlock.ErrClosed) {
								t.Errorf("%v, want ErrClosed", err)
							}
							return
						}
						time.Sleep(time.Millisecond)
						_ = p.Release(context.Background()) // the Locker may be closed
					}
				})
			}
			time.Sleep(3 * time.Millisecond)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			calls.Wait()
		}
	})
}
