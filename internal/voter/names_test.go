package voter

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// Two machines have one name, one after the other or at the same time. The test explores
// with the real node, exhaustively, every order of a number of events. A machine may
// start with what it left behind or with nothing, stop, crash, sleep, or be cut off, or
// one may not hear the other. An event may happen at each step of time. A client asks all
// the time, so a node that votes has given a vote at that moment. No node may vote while
// a vote stands that it does not know of (N8, N9).
//
// The test loses messages, and does not delay or repeat them; internal/sim does.

var namesDepth = flag.Int("voter.names", 0, "how many events are explored in TestNames; more than the default takes minutes")

const (
	namesTTL   = 6000 * time.Millisecond
	namesStep  = namesTTL / 6 // least time between two events
	namesProbe = namesTTL / 100
)

// bearer is one machine with the name.
type bearer struct {
	node   *Node // nil while it is down
	saved  *Saved
	slept  time.Duration // how long its monotonic clock slept
	asleep bool
	cut    bool // from everybody, including itself
	life   int
	knows  []int // lives whose votes it remembers
	kept   []int // the same, for what it left at its stop
}

type namesWorld struct {
	now time.Duration
	m   [2]bearer
	// If deaf is 1, the first does not hear the second; if 2, the second does not hear the
	// first.
	deaf    int
	lives   int
	votes   map[int]time.Duration // when the latest vote of a life was given
	left    int
	history []string
}

func (w *namesWorld) clock(b *bearer) wire.Now {
	return wire.Now{Mono: w.now - b.slept, Wall: int64(time.Hour/time.Microsecond) + w.now.Microseconds(), Boot: time.Hour + w.now}
}

func (w *namesWorld) clone() *namesWorld {
	c := *w
	c.votes = map[int]time.Duration{}
	for k, v := range w.votes {
		c.votes[k] = v
	}
	for i := range c.m {
		b := &c.m[i]
		b.knows, b.kept = slices.Clone(b.knows), slices.Clone(b.kept)
		if b.node != nil {
			n := *b.node // it has no claims, so nothing else is shared
			n.rivals, n.gone = slices.Clone(n.rivals), slices.Clone(n.gone)
			b.node = &n
		}
	}
	c.history = slices.Clip(c.history)
	return &c
}

// key returns everything that the future depends on.
func (w *namesWorld) key() string {
	var s strings.Builder
	rel := func(at, now time.Duration) time.Duration { return max(at-now, -3*namesTTL) }
	ids := map[uuid.UUID]int{}
	for i := range w.m {
		if n := w.m[i].node; n != nil {
			ids[n.cfg.Incarnation] = i + 1
		}
	}
	fmt.Fprint(&s, w.deaf, w.left)
	for i := range w.m {
		b := &w.m[i]
		fmt.Fprint(&s, "|", b.asleep, b.cut)
		if b.saved != nil {
			fmt.Fprint(&s, "mark", b.saved.Away, rel(time.Duration(b.saved.Boot), time.Hour+w.now))
		}
		if n := b.node; n != nil {
			now := w.clock(b)
			fmt.Fprint(&s, "node", n.State(), n.inQuarant, n.asks, n.voted, n.probeEchoed, n.asked, n.probed, n.stopped, n.farewells, n.back, n.hears,
				rel(n.quarantine, now.Mono), rel(n.probeAt, now.Mono), rel(n.heardAt, now.Mono),
				rel(n.echoAt, now.Mono), rel(time.Duration(n.echoWall)*time.Microsecond, time.Duration(now.Wall)*time.Microsecond), rel(n.listenEnd, now.Mono),
				rel(time.Duration(n.heardWall)*time.Microsecond, time.Duration(now.Wall)*time.Microsecond))
			for _, r := range n.rivals {
				fmt.Fprint(&s, "r", ids[r.incarnation], r.voted, rel(r.until, now.Mono))
			}
			for _, g := range n.gone {
				if ids[g] > 0 {
					fmt.Fprint(&s, "g", ids[g])
				}
			}
		}
	}
	if a, b := w.m[0].node, w.m[1].node; a != nil && b != nil {
		fmt.Fprint(&s, "older", a.started < b.started, a.started == b.started)
	}
	for life := range w.lives + 1 {
		at, ok := w.votes[life]
		if !ok {
			continue
		}
		fmt.Fprint(&s, "v", rel(at, w.now))
		for i := range w.m {
			fmt.Fprint(&s, slices.Contains(w.m[i].knows, life), slices.Contains(w.m[i].kept, life))
		}
	}
	return s.String()
}

func (w *namesWorld) start(i int, fresh bool) {
	b := &w.m[i]
	w.lives++
	b.life = w.lives
	saved := b.saved
	if fresh {
		saved = nil
	}
	now := w.clock(b)
	if saved != nil && !saved.Stale(now, namesTTL) {
		b.knows = append(slices.Clone(b.kept), b.life)
	} else {
		b.knows = []int{b.life}
	}
	b.saved, b.kept = nil, nil
	b.node = New(Config{
		Name: "n1", Config: wire.Config{Nodes: []string{"n1"}, MaxTTL: namesTTL, Skew: time.Second},
		Incarnation: uuid.UUID{0: byte(i + 1), 1: byte(w.lives)}, ProbeWait: namesProbe, MaxClaims: 1, MaxQueue: 1,
	}, now, saved, 0)
}

// events returns what may happen to the world at a step, by name.
func (w *namesWorld) events() map[string]func(w *namesWorld) {
	out := map[string]func(w *namesWorld){}
	for i := range w.m {
		b := &w.m[i]
		name := [...]string{"first", "second"}[i]
		switch {
		case b.node == nil:
			out[name+" starts with nothing"] = func(w *namesWorld) { w.start(i, true) }
			if b.saved != nil {
				out[name+" starts with its mark"] = func(w *namesWorld) { w.start(i, false) }
			}
		default:
			out[name+" crashes"] = func(w *namesWorld) { w.m[i].node, w.m[i].asleep = nil, false }
			if !b.asleep {
				out[name+" stops"] = func(w *namesWorld) {
					b := &w.m[i]
					if saved, ok := b.node.Save(w.clock(b)); ok {
						saved.Floors = nil
						b.saved, b.kept = saved, b.knows
					}
					b.node = nil
				}
				out[name+" sleeps"] = func(w *namesWorld) { w.m[i].asleep = true }
			} else {
				out[name+" wakes"] = func(w *namesWorld) { w.m[i].asleep = false }
			}
		}
		// With a further cut nothing could be heard any more: docs/protocol.md, Bounds.
		if w.deaf == 0 {
			out[name+" is cut off, or reached again"] = func(w *namesWorld) { w.m[i].cut = !w.m[i].cut }
		}
	}
	if !w.m[0].cut && !w.m[1].cut && w.deaf == 0 && w.lives == 1 {
		out["the first does not hear the second"] = func(w *namesWorld) { w.deaf = 1 }
		out["the second does not hear the first"] = func(w *namesWorld) { w.deaf = 2 }
	}
	return out
}

// hears reports whether i hears k.
func (w *namesWorld) hears(i, k int) bool {
	a, b := &w.m[i], &w.m[k]
	return a.node != nil && !a.asleep && !a.cut && !b.cut && (i == k || w.deaf != i+1)
}

// say delivers a question to all that hear it, and their answers.
func (w *namesWorld) say(k int, q *wire.Request) {
	for i := range w.m {
		if !w.hears(i, k) {
			continue
		}
		var out Out
		w.m[i].node.Handle(w.clock(&w.m[i]), q, "inbox", &out)
		w.did(i, &out, k)
	}
}

// did performs the actions that machine i requests; its answers go to machine to.
func (w *namesWorld) did(i int, out *Out, to int) {
	for _, s := range out.Answers {
		if a := s.Answer; to >= 0 && w.hears(to, i) {
			var more Out
			w.m[to].node.HandleAnswer(w.clock(&w.m[to]), &a, &more)
			w.did(to, &more, -1)
		}
	}
	if out.Probe != nil {
		w.say(i, out.Probe)
	}
}

// step lets time pass, and reports the first vote that is not allowed.
func (w *namesWorld) step() error {
	for end := w.now + namesStep; w.now < end; {
		w.now += namesProbe / 2
		for i := range w.m {
			b := &w.m[i]
			if b.asleep {
				b.slept += namesProbe / 2
				continue
			}
			if b.node == nil {
				continue
			}
			for range 4 {
				if b.node.Deadline() > w.clock(b).Mono {
					break
				}
				var out Out
				b.node.Tick(w.clock(b), &out)
				w.did(i, &out, -1)
			}
			if b.node.Stopped() && !b.node.Leaving() {
				b.node = nil
			}
		}
		for i := range w.m {
			b := &w.m[i]
			// Nobody hears of votes of a machine that is cut off.
			if b.node == nil || b.asleep || b.cut {
				continue
			}
			// A client asks. Whatever the request is, the node first reads its clocks.
			var out Out
			b.node.Handle(w.clock(b), &wire.Request{Verb: wire.Info, Client: "c"}, "", &out)
			if !b.node.voting() {
				continue
			}
			for life, at := range w.votes {
				// A client counts a vote from its request, for less than the lease (C1).
				if !slices.Contains(b.knows, life) && w.now-at < namesTTL-wire.Margin(namesTTL) {
					return fmt.Errorf("machine %d votes while a vote given %v before stands, of which it knows nothing", i+1, w.now-at)
				}
			}
			b.node.voted = true
			w.votes[b.life] = w.now
		}
	}
	for life, at := range w.votes {
		if w.now-at >= namesTTL {
			delete(w.votes, life)
		}
	}
	return nil
}

func TestNames(t *testing.T) {
	depth := 2
	if *namesDepth > 0 {
		depth = *namesDepth
	}
	begin := &namesWorld{votes: map[int]time.Duration{}, left: depth}
	begin.m[0].saved, begin.m[0].kept = &Saved{}, nil
	begin.start(0, false)
	// Keys are long, and there are millions of them, so only a hash of each is kept.
	level, seen := []*namesWorld{begin}, map[[16]byte]struct{}{}
	votes, steps := 0, 0
	// When nothing more can happen, time passes until nothing changes any more.
	for len(level) > 0 {
		var next []*namesWorld
		visit := func(w *namesWorld) {
			if err := w.step(); err != nil {
				saved, _ := json.Marshal(w.m[0].saved)
				t.Fatalf("%v\nafter: %s\nat %v (mark of the first: %s)", err, strings.Join(w.history, ", "), w.now, saved)
			}
			steps++
			votes += len(w.votes)
			sum := sha256.Sum256([]byte(w.key()))
			k := [16]byte(sum[:16])
			if _, old := seen[k]; !old {
				seen[k] = struct{}{}
				next = append(next, w)
			}
		}
		for _, w := range level {
			if w.left > 0 {
				events := w.events()
				for name, do := range events {
					c := w.clone()
					c.left--
					c.history = append(c.history, fmt.Sprintf("%v: %s", c.now, name))
					do(c)
					visit(c)
				}
			}
			visit(w.clone())
		}
		level = next
	}
	t.Logf("%d states, %d steps, %d events at most", len(seen), steps, depth)
	if votes == 0 {
		t.Error("nobody ever voted")
	}
}
