package main

import (
	"fmt"
	"runtime"
	"sync/atomic"
)

// guard watches one key. The holder of the key's lock enters, and leaves before it releases
// the lock. A lock that two clients hold at once is not worth measuring.
type guard struct {
	key      string
	excluded bool // false: the floor, which need not exclude anybody

	writers, readers atomic.Int32
	// counter is read at the beginning of a visit and written at its end, by load and store and
	// not by Add. So two visits at once lose one of their increments, even if neither visit saw
	// the other. It is atomic only so that such a fault is a number and not a data race.
	counter atomic.Int64
	entered atomic.Int64
	token   atomic.Uint64 // of the last writer

	violations atomic.Int64
	example    atomic.Pointer[string]
}

type visit struct {
	g      *guard
	shared bool
	seen   int64
}

func (g *guard) enter(h hold, shared bool) visit {
	v := visit{g: g, shared: shared}
	if shared {
		g.readers.Add(1)
		if g.writers.Load() != 0 {
			g.violated("a reader came in beside a writer")
		}
		return v
	}
	if g.writers.Add(1) != 1 {
		g.violated("two writers are in at once")
	}
	if g.readers.Load() != 0 {
		g.violated("a writer came in beside a reader")
	}
	g.entered.Add(1)
	v.seen = g.counter.Load()
	if token := h.token(); token != 0 {
		if last := g.token.Swap(token); last >= token {
			g.violated("the token %d came after %d", token, last)
		}
	}
	return v
}

func (v visit) leave() {
	if v.shared {
		v.g.readers.Add(-1)
		return
	}
	// Gives a visitor that should not be here a chance to run.
	runtime.Gosched()
	v.g.counter.Store(v.seen + 1)
	v.g.writers.Add(-1)
}

func (g *guard) violated(format string, args ...any) {
	g.violations.Add(1)
	text := fmt.Sprintf(format, args...)
	g.example.CompareAndSwap(nil, &text)
}

// check returns, after the end of the load, how often exclusion was violated, and how.
func (g *guard) check() (int64, string) {
	if !g.excluded {
		return 0, ""
	}
	if lost := g.entered.Load() - g.counter.Load(); lost > 0 && g.violations.Load() == 0 {
		g.violated("%d increments were lost", lost)
	}
	if p := g.example.Load(); p != nil {
		return g.violations.Load(), fmt.Sprintf("%s: %s", g.key, *p)
	}
	return 0, ""
}
