package members_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/members"
)

// watcher runs a Watch, and notes when each change came.
type watcher struct {
	mu    sync.Mutex // guards what follows
	seen  []string   // "2.5s lost b"
	errs  []error
	now   []members.Info
	count int
}

func watch(t *testing.T, g *members.Group, start time.Time) *watcher {
	t.Helper()
	w := &watcher{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for u, err := range g.Watch(ctx) {
			w.mu.Lock()
			if err != nil {
				w.errs = append(w.errs, err)
			} else {
				w.count++
				w.now = u.Members
			}
			for _, c := range u.Changes {
				text := fmt.Sprintf("%v %s %s", time.Since(start).Round(100*time.Millisecond), c.Kind, c.Member.ID)
				if c.Member.Meta != "" {
					text += " " + c.Member.Meta
				}
				w.seen = append(w.seen, text)
			}
			w.mu.Unlock()
		}
	}()
	settle()
	return w
}

// take waits until the events are there, which a client publishes 2 ms after it has, or
// has given back, a lock.
func (w *watcher) take() []string {
	time.Sleep(2 * time.Millisecond)
	settle()
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

func (w *watcher) want(t *testing.T, want ...string) {
	t.Helper()
	if got := w.take(); !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
}

func newGroup(t *testing.T, l *qlock.Locker, opts ...members.Option) *members.Group {
	t.Helper()
	g, err := members.New(l, "workers", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func join(t *testing.T, g *members.Group, id, meta string) *members.Member {
	t.Helper()
	m, err := g.Join(within(t, time.Minute), id, meta)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func ids(list []members.Info) string {
	var out []string
	for _, m := range list {
		out = append(out, m.ID)
	}
	return strings.Join(out, " ")
}

func TestJoinListLeave(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, nc := w.Client("b")
		g := newGroup(t, a)
		x := join(t, g, "host.example:1", "zone=1")
		y := join(t, newGroup(t, b), "größe", "")
		other, err := members.New(a, "workers-eu")
		if err != nil {
			t.Fatal(err)
		}
		join(t, other, "z", "")
		list, err := newGroup(t, b, members.WithEvents(nc.Conn)).List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ids(list) != "größe host.example:1" || list[1].Meta != "zone=1" || list[1].Client != "a" || list[1].Token != x.Token() ||
			list[1].Lease <= 0 || list[0].Meta != "" || list[0].Uncertain {
			t.Errorf("%+v", list)
		}
		if qlock.Token(x.Context()) != x.Token() || x.ID() != "host.example:1" || g.Name() != "workers" {
			t.Error("what a member says of itself")
		}
		for range 2 {
			if err := y.Leave(t.Context()); err != nil {
				t.Error(err)
			}
		}
		wantIs(t, context.Cause(y.Context()), members.ErrLeft)
		wantIs(t, y.SetMeta(t.Context(), "late"), members.ErrLeft)
		settle()
		if list, err := g.List(t.Context()); err != nil || ids(list) != "host.example:1" {
			t.Errorf("%+v, %v", list, err)
		}
		if list, err := other.List(t.Context()); err != nil || ids(list) != "z" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// An id has one member at a time. Its successor joins when the lease of one that died is
// over, and the one that died knows before.
func TestTakenID(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, link := w.Client("a")
		b, _ := w.Client("b")
		x := join(t, newGroup(t, a), "x", "")
		_, err := newGroup(t, b).Join(within(t, time.Second), "x", "")
		wantIs(t, err, qlock.ErrHeld, context.DeadlineExceeded)
		wantText(t, err, `members: join group workers as "x": `, "held by a")
		link.Cut()
		start := time.Now()
		ended := make(chan time.Time, 1)
		context.AfterFunc(x.Context(), func() { ended <- time.Now() })
		y := join(t, newGroup(t, b), "x", "")
		if lost := <-ended; !lost.Before(time.Now()) || time.Since(start) > lease+time.Second {
			t.Errorf("taken over after %v, lost after %v", time.Since(start), lost.Sub(start))
		}
		wantIs(t, context.Cause(x.Context()), qlock.ErrLost)
		wantIs(t, x.Leave(t.Context()), qlock.ErrLost)
		if y.Token() <= x.Token() {
			t.Errorf("tokens %d, then %d", x.Token(), y.Token())
		}
		link.Mend()
	})
}

func TestWatch(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		watching, nc := w.Client("w")
		x := join(t, newGroup(t, a), "x", "one")
		start := time.Now()
		by := watch(t, newGroup(t, watching, members.WithEvents(nc.Conn)), start)
		by.want(t, "0s joined x one")
		time.Sleep(time.Second)
		y := join(t, newGroup(t, b), "y", "")
		by.want(t, "1s joined y")
		time.Sleep(time.Second)
		for _, meta := range []string{"two", "three"} {
			if err := x.SetMeta(t.Context(), meta); err != nil {
				t.Fatal(err)
			}
			by.want(t, "2s changed x "+meta)
		}
		if x.Meta() != "three" {
			t.Error(x.Meta())
		}
		if list, err := newGroup(t, b).List(t.Context()); err != nil || len(list) != 2 || list[0].Meta != "three" {
			t.Errorf("%+v, %v", list, err)
		}
		time.Sleep(10 * time.Second)
		by.want(t) // what the nodes say changes nothing
		if err := y.Leave(t.Context()); err != nil {
			t.Error(err)
		}
		by.want(t, "12s left y")
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		by.want(t, "12s left x three")
		wantIs(t, context.Cause(x.Context()), qlock.ErrUnlocked)
		time.Sleep(10 * time.Second)
		by.want(t)
		if err := watching.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		by.mu.Lock()
		defer by.mu.Unlock()
		if len(by.errs) != 1 {
			t.Errorf("errors %v", by.errs)
		}
		wantIs(t, by.errs[0], qlock.ErrClosed)
	})
}

// A death is noticed within the lease and a round trip, with and without events.
func TestDeathIsNoticed(t *testing.T) {
	for _, after := range []time.Duration{0, 100 * time.Millisecond, 1700 * time.Millisecond, 3200 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a, link := w.Client("a")
				watching, nc := w.Client("w")
				join(t, newGroup(t, a), "x", "")
				with := watch(t, newGroup(t, watching, members.WithEvents(nc.Conn)), time.Now())
				without := watch(t, newGroup(t, watching), time.Now())
				time.Sleep(after)
				with.want(t, "0s joined x")
				without.want(t, "0s joined x")
				link.Cut() // it cannot tell anybody
				start := time.Now()
				for _, by := range []*watcher{with, without} {
					for len(by.take()) == 0 {
						if time.Since(start) > 2*lease {
							t.Fatal("not noticed within two leases")
						}
					}
				}
				noticed := time.Since(start)
				t.Logf("noticed %v after it was cut off, the lease is %v", noticed, lease)
				if noticed > lease+50*time.Millisecond {
					t.Error("not noticed within the lease")
				}
				link.Mend()
			})
		})
	}
}

// Without events, and with events that were lost, the nodes tell.
func TestLostEvents(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a", qlock.WithoutEvents())
		watching, nc := w.Client("w")
		by := watch(t, newGroup(t, watching, members.WithEvents(nc.Conn)), time.Now())
		by.want(t)
		if by.count != 1 {
			t.Errorf("%d updates, want one of an empty group", by.count)
		}
		time.Sleep(time.Second)
		x := join(t, newGroup(t, a), "x", "one")
		if err := x.SetMeta(t.Context(), "two"); err != nil {
			t.Fatal(err)
		}
		by.want(t)
		time.Sleep(5 * time.Second)
		by.want(t, "3.4s joined x two") // said twice
		if err := x.SetMeta(t.Context(), "three"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		by.want(t, "6.7s changed x three")
		if err := x.Leave(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		by.want(t, "10s lost x three") // nobody told that it left
	})
}

// Forged events mislead until the nodes are asked, and no longer.
func TestForgedEvents(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		watching, nc := w.Client("w")
		x := join(t, newGroup(t, a), "x", "")
		by := watch(t, newGroup(t, watching, members.WithEvents(nc.Conn)), time.Now())
		by.want(t, "0s joined x")
		for _, m := range []struct{ subject, body string }{
			{"lock.default.event.released.a.qlock.members.workers.x", fmt.Sprintf(`{"mode":"exclusive","token":%d,"waited_ms":0}`, x.Token())},
			{"lock.default.event.acquired.a.qlock.members.workers.ghost", `{"mode":"exclusive","token":99,"waited_ms":0}`},
			{"lock.default.event.acquired.a.qlock.members.workers.reader", `{"mode":"shared","token":99,"waited_ms":0}`},
			{"lock.default.event.acquired.a.qlock.members.workers.@1.x", `{"mode":"exclusive","token":99,"waited_ms":0}`},
			{"lock.default.event.acquired.a.qlock.members.workers.@1.0.x", `{"mode":"exclusive","token":99,"waited_ms":0}`},
			{"lock.default.event.acquired.a.qlock.members.workers.@1.1.x", `{"mode":"exclusive","token":99,"note":"no","waited_ms":0}`},
			{"lock.default.event.acquired.a.qlock.members.workers.y", `nonsense`},
		} {
			if err := nc.Publish(m.subject, []byte(m.body)); err != nil {
				t.Fatal(err)
			}
		}
		if got := by.take(); !slices.Contains(got, "0s left x") || !slices.Contains(got, "0s joined ghost") || len(got) != 2 {
			t.Errorf("%q", got)
		}
		time.Sleep(4 * time.Second)
		by.want(t, "3.3s lost ghost", "3.4s joined x")
	})
}

// A watcher that is cut off says so, and makes it good.
func TestWatcherIsCutOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		watching, link := w.Client("w")
		x := join(t, newGroup(t, a), "x", "")
		by := watch(t, newGroup(t, watching, members.WithEvents(link.Conn)), time.Now())
		link.Cut()
		if err := x.Leave(t.Context()); err != nil {
			t.Error(err)
		}
		join(t, newGroup(t, b), "y", "")
		time.Sleep(9 * time.Second)
		by.want(t, "0s joined x")
		if len(by.errs) == 0 {
			t.Error("no error while it was cut off")
		}
		link.Mend()
		time.Sleep(10 * time.Second)
		if got := by.take(); len(got) != 2 || !strings.HasSuffix(got[0], " lost x") || !strings.HasSuffix(got[1], " joined y") {
			t.Errorf("%q", got)
		}
		wantIs(t, by.errs[0], qlock.ErrNoQuorum)
	})
}

func TestWaitFor(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, nc := w.Client("a")
		g := newGroup(t, a, members.WithEvents(nc.Conn))
		start := time.Now()
		for i := range 3 {
			time.AfterFunc(time.Duration(i+1)*time.Second, func() { join(t, g, fmt.Sprint(i), "") })
		}
		list, err := g.WaitFor(within(t, time.Minute), 3)
		if err != nil || ids(list) != "0 1 2" || time.Since(start).Round(10*time.Millisecond) != 3*time.Second {
			t.Errorf("%+v, %v after %v", list, err, time.Since(start))
		}
		_, err = g.WaitFor(within(t, time.Second), 5)
		wantIs(t, err, context.DeadlineExceeded)
		wantText(t, err, "members: group workers has 3 members, waited for 5: ")
		_, err = g.WaitFor(t.Context(), 0)
		wantIs(t, err, members.ErrInvalid)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		_, err = g.WaitFor(t.Context(), 1)
		wantIs(t, err, qlock.ErrClosed)
	})
}

// An operator ends a membership, or the metadata of one, which ends it as well.
func TestEvicted(t *testing.T) {
	for _, suffix := range []string{"x", "@%d.1.x"} {
		bubble(t, func(t *testing.T, w *world) {
			a, _ := w.Client("a")
			operator, _ := w.Client("operator")
			x := join(t, newGroup(t, a), "x", "")
			if err := x.SetMeta(t.Context(), "more"); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(suffix, "%") {
				suffix = fmt.Sprintf(suffix, x.Token())
			}
			name := "qlock.members.workers." + suffix
			info, err := operator.Inspect(t.Context(), name)
			if err != nil || len(info.Holders) != 1 {
				t.Fatalf("%s: %+v, %v", name, info, err)
			}
			if err := operator.Evict(t.Context(), name, info.Holders[0], "maintenance"); err != nil {
				t.Fatal(err)
			}
			settle()
			wantIs(t, context.Cause(x.Context()), qlock.ErrLost, qlock.ErrEvicted)
			wantIs(t, x.SetMeta(t.Context(), "late"), qlock.ErrEvicted)
			if locks, err := operator.Locks(t.Context(), ""); err != nil || len(locks) > 0 {
				t.Errorf("%+v, %v", locks, err)
			}
		})
	}
}

func TestSetMetaAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		x := join(t, newGroup(t, a), "x", "")
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				if err := x.SetMeta(t.Context(), fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		settle()
		if list, err := newGroup(t, a).List(t.Context()); err != nil || len(list) != 1 || list[0].Meta != x.Meta() {
			t.Errorf("%+v, %v: want %s", list, err, x.Meta())
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		before := x.Meta()
		wantIs(t, x.SetMeta(ended, "no"), context.Canceled)
		if x.Meta() != before {
			t.Error(x.Meta())
		}
		all.Go(func() { _ = x.SetMeta(t.Context(), "at the end") })
		_ = x.Leave(t.Context())
		all.Wait()
		settle()
		if locks, err := a.Locks(t.Context(), ""); err != nil || len(locks) > 0 {
			t.Errorf("%+v, %v", locks, err)
		}
	})
}

func TestBadInput(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		for _, name := range []string{"", ".", "a.b", "a b", "*", ">", "größe", "@member", strings.Repeat("x", 65)} {
			_, err := members.New(a, name)
			wantIs(t, err, members.ErrInvalid)
		}
		_, err := members.New(nil, "g")
		wantIs(t, err, members.ErrInvalid)
		_, err = members.New(a, "g", members.WithEvents(nil))
		wantIs(t, err, members.ErrInvalid)
		_, err = members.New(a, "g", nil, members.WithInterval(time.Millisecond))
		wantIs(t, err, members.ErrInvalid)
		g := newGroup(t, a)
		for _, id := range []string{"", "@x", strings.Repeat("x", 257)} {
			_, err := g.Join(t.Context(), id, "")
			wantIs(t, err, members.ErrInvalid)
		}
		x := join(t, g, "x", strings.Repeat("m", 256))
		for _, meta := range []string{"a\tb", "\xff", "\u202e", strings.Repeat("x", 257)} {
			_, err := g.Join(t.Context(), "y", meta)
			wantIs(t, err, members.ErrInvalid)
			wantIs(t, x.SetMeta(t.Context(), meta), members.ErrInvalid)
		}
		if list, err := g.List(t.Context()); err != nil || len(list[0].Meta) != 256 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

func TestParseName(t *testing.T) {
	for name, want := range map[string]string{
		"qlock.members.workers.7":            "workers 7",
		"qlock.members.a.b.x.y":              "a b.x.y",
		"qlock.members.workers.@12.3.x.y":    "workers x.y",
		"qlock.members.workers.@12.0.x":      "",
		"qlock.members.workers.@x.1.x":       "",
		"qlock.members.workers.@12.3":        "",
		"qlock.members.workers.":             "",
		"qlock.members.workers":              "",
		"qlock.members..x":                   "",
		"qlock.members.a b.x":                "",
		"workers.7":                          "",
		"qlock.members.workers.@1.1.@1.1.1x": "",
	} {
		group, id, ok := members.ParseName(name)
		if got := strings.TrimSpace(group + " " + id); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q %q %v", name, group, id, ok)
		}
	}
}

var costOf = flag.Int("members.cost", 100, "of how many members TestCost counts the messages")

// TestCost counts what members and a watcher say in a minute without changes.
func TestCost(t *testing.T) {
	n := *costOf
	bubble(t, func(t *testing.T, w *world) {
		for i := range n {
			l, _ := w.Client(fmt.Sprint("c", i))
			join(t, newGroup(t, l), fmt.Sprint(i), "zone=1")
		}
		count := map[string]int{}
		var mu sync.Mutex // guards count
		observe := func(subject string) {
			sub, err := w.Connect().Subscribe(subject, func(m *nats.Msg) {
				part := strings.Split(m.Subject, ".")
				kind := "answer"
				if part[0] == "lock" && len(part) > 3 {
					kind = part[3]
				}
				mu.Lock()
				defer mu.Unlock()
				count[kind]++
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = sub.Unsubscribe() })
		}
		counted := func(d time.Duration) map[string]int {
			mu.Lock()
			clear(count)
			mu.Unlock()
			time.Sleep(d)
			mu.Lock()
			defer mu.Unlock()
			return maps.Clone(count)
		}
		watching, nc := w.Client("w")
		observe("lock.>")
		observe("_INBOX.>")
		time.Sleep(time.Second)
		said := counted(time.Minute)
		t.Logf("%d members, a minute: %v, %.0f a second without the answers", n, said, sent(said))
		if got, most := said["refresh"], 6*3*n+n; got > most || got == 0 {
			t.Errorf("%d refreshes, want at most %d", got, most)
		}
		by := watch(t, newGroup(t, watching, members.WithEvents(nc.Conn)), time.Now())
		said = counted(time.Minute)
		t.Logf("and a watcher: %v, %.0f a second without the answers", said, sent(said))
		if got := said["list"]; got > 19*(1+n/40) { // by page
			t.Errorf("%d questions in a minute", got)
		}
		by.take()
	})
}

// sent is how many messages a second were no answers, of those of a minute.
func sent(said map[string]int) float64 {
	sum := 0
	for kind, n := range said {
		if kind != "answer" {
			sum += n
		}
	}
	return float64(sum) / 60
}

// A context whose deadline is far away keeps Watch neither from saying that the nodes do not
// answer, nor from seeing that they do again.
func TestWatchFarDeadline(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		watching, link := w.Client("w")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		cut := time.Now()
		for u, err := range newGroup(t, watching).Watch(ctx) {
			switch late := time.Since(cut); {
			case err != nil:
				wantIs(t, err, qlock.ErrNoQuorum)
				if most := lease/3 + 5*time.Second; late > most {
					t.Errorf("told after %v, want %v", late, most)
				}
				join(t, newGroup(t, a), "x", "")
				link.Mend()
				cut = time.Now()
			case len(u.Members) == 0:
				link.Cut()
				cut = time.Now()
			default:
				if late > lease {
					t.Errorf("seen after %v", late)
				}
				return
			}
		}
		t.Error("the loop ended")
	})
}
