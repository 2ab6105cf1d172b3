package hold

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	writer = quorum.Exclusive
	reader = quorum.Shared
	lease  = 10 * time.Second
)

// world is one real node, and clients with real tables. Messages take no time, and those
// of clients that are cut off are lost.
type world struct {
	t      *testing.T
	now    time.Duration
	node   *voter.Node
	tables map[string]*Table
	outs   map[string]*Out
	cut    map[string]bool
	asked  int // number of messages of clients
	log    []string
}

func newWorld(t *testing.T, retention time.Duration, names ...string) *world {
	cfg := wire.Config{Nodes: []string{"n1"}, MaxTTL: lease, Skew: 5 * time.Second}
	w := &world{t: t, tables: map[string]*Table{}, outs: map[string]*Out{}, cut: map[string]bool{}}
	w.node = voter.New(voter.Config{
		Name: "n1", Config: cfg, Incarnation: uuid.UUID{1}, ProbeWait: time.Millisecond, MaxClaims: 100, MaxQueue: 100,
	}, w.clock(), &voter.Saved{}, 0)
	for i, name := range names {
		core := client.New(client.Config{Name: name, Instance: uuid.UUID{2, byte(i)}, TTL: lease, MaxRuns: 4, Cluster: cfg}, w.clock())
		w.tables[name], w.outs[name] = New(core, retention), &Out{}
	}
	w.pass(10 * time.Millisecond) // the node asks for its name
	w.take()
	return w
}

func (w *world) clock() wire.Now {
	return wire.Now{Mono: w.now, Wall: 1_800_000_000_000_000 + w.now.Microseconds()}
}

// pass lets time pass, a millisecond at a time.
func (w *world) pass(d time.Duration) {
	for end := w.now + d; w.now < end; {
		w.now += time.Millisecond
		var out voter.Out
		w.node.Tick(w.clock(), &out)
		if out.Probe != nil { // it hears itself
			w.node.Handle(w.clock(), out.Probe, "n1", &out)
			for _, s := range out.Answers {
				if s.To == "n1" {
					w.node.HandleAnswer(w.clock(), &s.Answer, &voter.Out{})
				}
			}
		}
		w.answers(&out)
		for name, table := range w.tables {
			table.Tick(w.clock(), w.outs[name])
		}
		w.deliver()
	}
}

func (w *world) answers(out *voter.Out) {
	for _, s := range out.Answers {
		if table := w.tables[s.To]; table != nil && !w.cut[s.To] {
			a := s.Answer
			table.Handle(w.clock(), &a, w.outs[s.To])
		}
	}
}

// deliver carries messages until there are no more, and notes the events of holds.
func (w *world) deliver() {
	for busy := true; busy; {
		busy = false
		for _, name := range []string{"a", "b", "c"} {
			out := w.outs[name]
			if out == nil {
				continue
			}
			requests := append([]wire.Request(nil), out.Requests...)
			for _, e := range out.Holds {
				what := map[EventKind]string{Held: "holds", Lost: "lost", Failed: "failed", Returned: "returned", Expired: "expired"}[e.Kind]
				w.log = append(w.log, fmt.Sprint(e.Hold.User, " ", what))
			}
			out.Reset()
			for i := range requests {
				busy = true
				w.asked++
				if w.cut[name] {
					continue
				}
				var told voter.Out
				w.node.Handle(w.clock(), &requests[i], name, &told)
				w.answers(&told)
			}
		}
	}
}

// lock requests a lock for the hold named by the client's name and a number.
func (w *world) lock(name string, mode quorum.Mode, try ...bool) *Hold {
	w.now += time.Microsecond // so that the later one is younger
	u := w.tables[name[:1]].Lock(w.clock(), Request{Resource: "r", Mode: mode, Try: len(try) > 0, User: name}, w.outs[name[:1]])
	w.deliver()
	return u
}

func (w *world) unlock(u *Hold) {
	name := u.User.(string)[:1]
	w.tables[name].Unlock(w.clock(), u, w.outs[name])
	w.deliver()
}

func (w *world) take() (log string) {
	log = strings.Join(w.log, ", ")
	w.log = nil
	return log
}

func (w *world) want(log string) {
	w.t.Helper()
	if got := w.take(); got != log {
		w.t.Errorf("%q, want %q", got, log)
	}
}

// empty checks that nothing is left anywhere.
func (w *world) empty() {
	w.t.Helper()
	for name, table := range w.tables {
		if table.Claims() > 0 || len(table.claims) > 0 || table.idle.first != nil || table.passing.first != nil {
			w.t.Errorf("%s has %d claims and %d shares", name, table.Claims(), len(table.claims))
		}
	}
	if w.node.Claims() > 0 {
		w.t.Errorf("the node has %d claims", w.node.Claims())
	}
}

func TestPassedOnInOrder(t *testing.T) {
	w := newWorld(t, 0, "a")
	u := []*Hold{w.lock("a1", writer), w.lock("a2", writer), w.lock("a3", reader), w.lock("a4", reader), w.lock("a5", writer)}
	w.want("a1 holds")
	asked := w.asked
	w.unlock(u[0])
	w.want("a2 holds")
	w.unlock(u[1])
	w.want("a3 holds, a4 holds")
	w.unlock(u[2])
	w.want("")
	w.unlock(u[3])
	w.want("a5 holds")
	if w.asked-asked > 2 {
		t.Errorf("%d messages for that", w.asked-asked)
	}
	for i := range u[1:] {
		if a, b := u[i].Token(), u[i+1].Token(); u[i+1].mode == writer && b <= a || b < a {
			t.Errorf("token %d of use %d, after %d", b, i+2, a)
		}
	}
	w.unlock(u[4])
	w.want("a5 returned")
	w.empty()
}

// When another client waits, all are served by age.
func TestOthersAreHeeded(t *testing.T) {
	w := newWorld(t, 0, "a", "b")
	a1, a2, b1, a3 := w.lock("a1", writer), w.lock("a2", writer), w.lock("b1", writer), w.lock("a3", writer)
	w.want("a1 holds")
	w.unlock(a1)
	w.want("a1 returned, a2 holds")
	w.unlock(a2)
	w.want("a2 returned, b1 holds")
	w.unlock(b1)
	w.want("b1 returned, a3 holds")
	w.unlock(a3)
	w.want("a3 returned")
	w.empty()
}

// A reader may join readers, but not overtake a writer, wherever it waits.
func TestReadersJoin(t *testing.T) {
	w := newWorld(t, 0, "a", "b")
	r1, r2 := w.lock("a1", reader), w.lock("a2", reader)
	w.want("a1 holds, a2 holds")
	if r1.Token() != r2.Token() || w.node.Claims() != 1 {
		t.Errorf("tokens %d and %d, %d claims", r1.Token(), r2.Token(), w.node.Claims())
	}
	wr := w.lock("b1", writer)
	r3 := w.lock("a3", reader)
	w.want("")
	w.unlock(r1)
	w.unlock(r2)
	w.want("a2 returned, b1 holds")
	w.unlock(wr)
	w.want("b1 returned, a3 holds")

	// Here a writer of the same client waits, and has its place at the nodes.
	own, late := w.lock("a4", writer), w.lock("b2", reader)
	w.unlock(r3)
	w.want("a3 returned, a4 holds")
	w.unlock(own)
	w.want("a4 returned, b2 holds")
	w.unlock(late)
	w.take()
	w.empty()
}

func TestTries(t *testing.T) {
	w := newWorld(t, 0, "a", "b")
	a1 := w.lock("a1", writer)
	asked := w.asked
	w.lock("a2", writer, true)
	w.lock("a3", reader, true)
	w.want("a1 holds, a2 failed, a3 failed")
	if w.asked > asked {
		t.Errorf("%d messages to learn what is known here", w.asked-asked)
	}
	w.lock("b1", writer, true)
	w.want("b1 failed")
	w.unlock(a1)
	w.want("a1 returned")
	a4 := w.lock("a4", reader, true)
	a5 := w.lock("a5", reader, true)
	w.want("a4 holds, a5 holds")
	w.unlock(a4)
	w.unlock(a5)
	w.take()
	w.pass(time.Second)
	w.empty()
}

func TestGivingUp(t *testing.T) {
	w := newWorld(t, 0, "a", "b")
	b1 := w.lock("b1", reader)
	a1, a2 := w.lock("a1", writer), w.lock("a2", reader)
	w.want("b1 holds")
	w.unlock(a1) // the reader behind it can be served now
	w.want("a2 holds")
	a3 := w.lock("a3", writer)
	w.unlock(a3)
	w.unlock(a2)
	w.unlock(b1)
	w.take()
	w.pass(time.Second)
	w.empty()
}

func TestKept(t *testing.T) {
	w := newWorld(t, 3*time.Second, "a", "b")
	a1 := w.lock("a1", writer)
	w.unlock(a1)
	w.want("a1 holds")
	asked := w.asked
	a2 := w.lock("a2", writer)
	w.unlock(a2)
	w.want("a2 holds")
	if w.asked > asked || a2.Token() <= a1.Token() {
		t.Errorf("%d messages, tokens %d and %d", w.asked-asked, a1.Token(), a2.Token())
	}
	// Another hold gets it at once.
	b1 := w.lock("b1", writer)
	w.want("a2 returned, b1 holds")
	w.unlock(b1)
	w.want("")
	// It is released when its time is over, counted from the last use.
	w.pass(2 * time.Second)
	w.unlock(w.lock("b2", writer))
	w.pass(2 * time.Second)
	if w.node.Claims() != 1 {
		t.Errorf("%d claims, want the kept one", w.node.Claims())
	}
	w.pass(2 * time.Second)
	w.want("b2 holds, b2 returned")
	w.empty()
}

// A kept claim that was lost is not used.
func TestKeptAndLost(t *testing.T) {
	w := newWorld(t, time.Hour, "a", "b")
	w.unlock(w.lock("a1", writer))
	w.cut["a"] = true
	w.pass(lease + time.Second)
	b1 := w.lock("b1", writer)
	w.want("a1 holds, a1 returned, b1 holds")
	a2 := w.lock("a2", writer)
	w.want("")
	w.cut["a"] = false
	w.pass(4 * time.Second)
	w.want("")
	w.unlock(b1)
	w.take()
	w.pass(time.Second)
	if a2.State() != Holding || a2.Token() <= b1.Token() {
		t.Errorf("a2 is %v with token %d after %d", a2.State(), a2.Token(), b1.Token())
	}
	// Held and lost: its holder is told, and the waiting hold goes on waiting.
	a3 := w.lock("a3", writer)
	w.take()
	w.cut["a"] = true
	w.pass(lease + time.Second)
	w.want("a2 lost")
	w.cut["a"] = false
	w.pass(4 * time.Second)
	w.want("a3 holds")
	w.unlock(a3)
	w.tables["a"].ReleaseIdle(w.clock(), 100, w.outs["a"])
	w.tables["b"].ReleaseIdle(w.clock(), 100, w.outs["b"])
	w.deliver()
	w.empty()
}

// A single reader does not know whether somebody waits. The nodes must be asked before
// another reader joins.
func TestFirstToJoinAsks(t *testing.T) {
	w := newWorld(t, 0, "a", "b")
	r1 := w.lock("a1", reader)
	wr := w.lock("b1", writer)
	r2 := w.lock("a2", reader)
	w.want("a1 holds")
	w.unlock(r1)
	w.want("a1 returned, b1 holds")
	w.unlock(wr)
	w.want("b1 returned, a2 holds")
	w.unlock(r2)
	w.want("a2 returned")
	w.empty()
}

// What this client keeps unused does not block its own tries.
func TestTryBesideKept(t *testing.T) {
	for _, kept := range []quorum.Mode{writer, reader} {
		for _, try := range []quorum.Mode{writer, reader} {
			t.Run(fmt.Sprintf("%v after %v", try, kept), func(t *testing.T) {
				w := newWorld(t, time.Minute, "a", "b")
				w.unlock(w.lock("a1", kept))
				w.take()
				a2 := w.lock("a2", try, true)
				if a2.State() != Holding {
					t.Fatalf("the try is %v", a2.State())
				}
				w.unlock(a2)
				b1 := w.lock("b1", writer)
				w.unlock(b1)
				if b1.Token() <= a2.Token() {
					t.Errorf("token %d after %d", b1.Token(), a2.Token())
				}
				w.tables["b"].ReleaseIdle(w.clock(), 100, w.outs["b"])
				w.deliver()
				w.pass(time.Second)
				w.empty()
			})
		}
	}
}

// A try that was to be served by a claim that is gone does not wait as others do. It asks
// the nodes as a try.
func TestTryOutlivesTheClaim(t *testing.T) {
	w := newWorld(t, time.Hour, "a", "b")
	w.unlock(w.lock("a1", writer))
	w.cut["a"] = true
	for range 1000 { // until it has no tokens left
		u := w.lock("a2", writer)
		if u.State() == Waiting {
			w.unlock(u)
			break
		}
		w.unlock(u)
	}
	w.take()
	try := w.lock("a3", writer, true)
	if try.State() != Waiting {
		t.Fatalf("the try is %v, the test wants it to wait for a token", try.State())
	}
	w.pass(lease + time.Second) // the claim is lost
	b1 := w.lock("b1", writer)
	w.cut["a"] = false
	w.pass(lease)
	w.want("a2 returned, b1 holds, a3 failed")
	w.unlock(b1)
	w.tables["b"].ReleaseIdle(w.clock(), 100, w.outs["b"])
	w.deliver()
	w.empty()
}

// Within bounds a claim is passed on though others wait. Then all are served by age.
func TestPassedOnWithinBounds(t *testing.T) {
	tests := []struct {
		name   string
		most   int
		within time.Duration
		want   string
	}{
		{"never", 0, 0, "a1 b1 a2 a3 a4 a5 b2 a6"},
		{"twice", 2, 0, "a1 a2 a3 b1 a4 a5 a6 b2"},
		{"within a time", 0, 15 * time.Millisecond, "a1 a2 b1 a3 a4 a5 a6 b2"},
		{"twice within a long time", 2, time.Hour, "a1 a2 a3 b1 a4 a5 a6 b2"},
		{"many times within a time", 100, 15 * time.Millisecond, "a1 a2 b1 a3 a4 a5 a6 b2"},
		{"for ever", 100, math.MaxInt64, "a1 a2 a3 a4 a5 a6 b1 b2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 0, "a", "b")
			w.tables["a"].PassOn(tt.most, tt.within)
			u := map[string]*Hold{}
			for _, name := range strings.Fields("a1 b1 a2 a3 a4 a5 b2 a6") {
				u[name] = w.lock(name, writer)
			}
			var order []string
			var last uint64
			for range u {
				for _, name := range slices.Sorted(maps.Keys(u)) {
					if k := u[name]; k.State() == Holding {
						if k.Token() <= last {
							t.Errorf("token %d of %s after %d", k.Token(), name, last)
						}
						last = k.Token()
						order = append(order, name)
						w.pass(10 * time.Millisecond)
						w.unlock(k)
						break
					}
				}
			}
			if got := strings.Join(order, " "); got != tt.want {
				t.Errorf("order %s, want %s", got, tt.want)
			}
			w.empty()
		})
	}
}

// Waiting holds get a place at the nodes as soon as the time for passing on is over, not
// only when the holder is done.
func TestPassingOnEndsInTime(t *testing.T) {
	w := newWorld(t, 0, "a", "b")
	w.tables["a"].PassOn(0, 100*time.Millisecond)
	a1, b1, a2 := w.lock("a1", writer), w.lock("b1", writer), w.lock("a2", writer)
	w.pass(90 * time.Millisecond)
	if n := w.node.Claims(); n != 2 {
		t.Errorf("%d claims before the time is over, want 2", n)
	}
	w.pass(20 * time.Millisecond)
	if n := w.node.Claims(); n != 3 {
		t.Errorf("%d claims after it, want 3", n)
	}
	w.unlock(a1)
	w.want("a1 holds, a1 returned, b1 holds")
	w.unlock(b1)
	w.want("b1 returned, a2 holds")

	// A later waiter does not start the time anew.
	w.unlock(w.lock("a0", writer)) // the nodes know that the claim is kept
	b2 := w.lock("b2", writer)
	w.pass(200 * time.Millisecond)
	a3 := w.lock("a3", writer)
	if n := w.node.Claims(); n != 3 {
		t.Errorf("%d claims with one that came too late, want 3", n)
	}
	for _, u := range []*Hold{a2, b2, a3} {
		w.unlock(u)
	}
	w.take()
	w.empty()
}

// Readers that join count as well: no more of them overtake a writer of another client.
func TestReadersJoinWithinBounds(t *testing.T) {
	w := newWorld(t, 0, "a", "b")
	w.tables["a"].PassOn(2, 0)
	r := []*Hold{w.lock("a1", reader), w.lock("a2", reader)}
	wr := w.lock("b1", writer)
	r = append(r, w.lock("a3", reader), w.lock("a4", reader, true), w.lock("a5", reader))
	w.want("a1 holds, a2 holds, a3 holds, a4 holds")
	for _, u := range r[:4] {
		w.unlock(u)
	}
	w.want("a4 returned, b1 holds")
	w.unlock(wr)
	w.unlock(r[4])
	w.want("b1 returned, a5 holds, a5 returned")
	w.empty()
}

// An unlimited time is long, and does not overflow into the past.
func TestRetentionForEver(t *testing.T) {
	w := newWorld(t, math.MaxInt64, "a", "b")
	w.unlock(w.lock("a1", writer))
	w.pass(time.Second)
	if w.tables["a"].Claims() != 1 || w.tables["a"].idle.first == nil {
		t.Error("the claim is not kept")
	}
	if d, ok := w.tables["a"].Wait(w.clock()); !ok || d < 0 {
		t.Errorf("the next deadline is in %v, %v", d, ok)
	}
	b1 := w.lock("b1", writer)
	w.want("a1 holds, a1 returned, b1 holds")
	w.unlock(b1)
	w.tables["b"].ReleaseIdle(w.clock(), 100, w.outs["b"])
	w.deliver()
	w.take()
	w.empty()
}
