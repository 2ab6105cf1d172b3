package election_test

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
	"github.com/qlock/qlock/election"
)

func newElection(t testing.TB, l *qlock.Locker, opts ...election.Option) *election.Election {
	t.Helper()
	e, err := election.New(l, "scheduler", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustCampaign(t testing.TB, e *election.Election, value string) *election.Leadership {
	t.Helper()
	l, err := e.Campaign(within(t, 10*time.Minute), value)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustResign(t testing.TB, l *election.Leadership) {
	t.Helper()
	if err := l.Resign(t.Context()); err != nil {
		t.Errorf("resign: %v", err)
	}
}

// campaign is Campaign in a goroutine of its own.
type campaign struct {
	done chan struct{}
	*election.Leadership
	err error
	at  time.Time
}

// start campaigns, and returns when it waits or is over.
func start(ctx context.Context, e *election.Election, value string) *campaign {
	c := &campaign{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.Leadership, c.err = e.Campaign(ctx, value)
		c.at = time.Now()
	}()
	synctest.Wait()
	time.Sleep(time.Millisecond) // the next one is younger
	synctest.Wait()
	return c
}

func (c *campaign) over() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func wantLeader(t testing.TB, e *election.Election, client, value string, term uint64) {
	t.Helper()
	l, err := e.Leader(t.Context())
	if err != nil || l.Client != client || l.Value != value || l.Term != term || l.Claim == "" {
		t.Errorf("leader %+v, %v; want %s, %q, %d", l, err, client, value, term)
	}
}

func TestCampaign(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var es []*election.Election
		for _, name := range []string{"a", "b", "c"} {
			l, _ := w.Client(name)
			es = append(es, newElection(t, l))
		}
		watcher, _ := w.Client("watcher")
		look := newElection(t, watcher)
		_, err := look.Leader(t.Context())
		wantError(t, err, election.ErrNoLeader, `"scheduler"`)
		type key struct{}
		first, err := es[0].Campaign(context.WithValue(within(t, time.Second), key{}, 7), "10.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // the context of the campaign has ended
		if ctx := first.Context(); ctx.Err() != nil || ctx.Value(key{}) != 7 || qlock.Token(ctx) != first.Token() || first.Name() != "scheduler" || first.Value() != "10.0.0.1:80" {
			t.Errorf("%v, %q", ctx.Err(), first.Value())
		}
		wantLeader(t, look, "a", "10.0.0.1:80", first.Token())
		_, err = es[1].Campaign(within(t, time.Second), "x")
		wantError(t, err, qlock.ErrHeld, `election "scheduler": not elected`, "held by a")
		wantError(t, err, context.DeadlineExceeded)
		d, _ := w.Client("d")
		told := make(chan qlock.Waiting, 10)
		_, err = newElection(t, d, election.WithWaitFunc(func(w qlock.Waiting) { told <- w })).Campaign(within(t, time.Second), "x")
		wantError(t, err, qlock.ErrHeld)
		if w := <-told; w.Holder == nil || w.Holder.Client != "a" {
			t.Errorf("it waits for %+v", w)
		}
		second := start(t.Context(), es[1], "10.0.0.2:80")
		third := start(t.Context(), es[2], "10.0.0.3:80 ü%\x00")
		list, err := look.Candidates(t.Context())
		if err != nil || len(list) != 2 || list[0].Client != "b" || list[0].Value != "10.0.0.2:80" || list[1].Client != "c" || list[1].Value != "10.0.0.3:80 ü%\x00" || list[0].For <= list[1].For {
			t.Errorf("%+v, %v", list, err)
		}
		_, err = es[0].Campaign(t.Context(), "again")
		wantError(t, err, election.ErrCampaigning)
		_, err = es[1].Campaign(t.Context(), "again")
		wantError(t, err, election.ErrCampaigning)
		mustResign(t, first)
		if !second.over() || second.err != nil || third.over() {
			t.Fatal("the second candidate does not lead alone", second.err)
		}
		if cause := context.Cause(first.Context()); cause != qlock.ErrUnlocked {
			t.Errorf("cause %v", cause)
		}
		if second.Token() <= first.Token() {
			t.Errorf("term %d after %d", second.Token(), first.Token())
		}
		wantLeader(t, look, "b", "10.0.0.2:80", second.Token())
		last := start(t.Context(), es[0], "again")
		mustResign(t, second.Leadership)
		mustResign(t, first) // once more: it is another's
		if !third.over() || third.err != nil || last.over() {
			t.Fatal("the third candidate does not lead alone", third.err)
		}
		wantLeader(t, look, "c", "10.0.0.3:80 ü%\x00", third.Token())
		mustResign(t, third.Leadership)
		<-last.done
		mustResign(t, last.Leadership)
		w.NoClaims()
	})
}

func TestBadInput(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		l, _ := w.Client("a")
		_, err := election.New(l, "")
		wantError(t, err, qlock.ErrInvalidName, "empty")
		_, err = election.New(l, strings.Repeat("x", 901))
		wantError(t, err, qlock.ErrInvalidName, "901 bytes")
		for _, bad := range []func() (*election.Election, error){
			func() (*election.Election, error) { return election.New(nil, "x") },
			func() (*election.Election, error) { return election.New(l, "x", election.WithEvents(nil)) },
			func() (*election.Election, error) { return election.New(l, "x", election.WithInterval(0)) },
		} {
			if _, err := bad(); err == nil || !strings.HasPrefix(err.Error(), "election: ") {
				t.Errorf("error %v", err)
			}
		}
		e := newElection(t, l, nil)
		_, err = e.Campaign(t.Context(), strings.Repeat("ü", 101))
		wantError(t, err, election.ErrInvalidValue, "202 bytes", "606", "at most 200")
		k := mustCampaign(t, e, strings.Repeat("x", election.MaxValue))
		wantLeader(t, e, "a", strings.Repeat("x", election.MaxValue), k.Token())
		wantError(t, k.Proclaim(t.Context(), strings.Repeat("x", 201)), election.ErrInvalidValue)
		value := "\x00\xff" + strings.Repeat("y", election.MaxValue-6)
		if err := k.Proclaim(t.Context(), value); err != nil {
			t.Error(err)
		}
		wantLeader(t, e, "a", value, k.Token())
		mustResign(t, k)
		wantError(t, k.Proclaim(t.Context(), "x"), qlock.ErrNotHeld, "the leadership is over")
		w.NoClaims()
		_ = l.Close()
		_, err = e.Campaign(t.Context(), "")
		wantError(t, err, qlock.ErrClosed)
		wantError(t, e.Run(t.Context(), "", func(context.Context) error { return nil }), qlock.ErrClosed)
		_, err = e.Leader(t.Context())
		wantError(t, err, qlock.ErrClosed)
	})
}

// A name that cannot stand in a subject as it is works like any other.
func TestAnyName(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		l, nc := w.Client("a")
		e, err := election.New(l, "price list *.>\x00.", election.WithEvents(nc.Conn))
		if err != nil {
			t.Fatal(err)
		}
		seen := observe(t, e)
		k := mustCampaign(t, e, "x")
		seen.want(t, "no leader", "a x")
		mustResign(t, k)
		seen.want(t, "no leader", "a x", "no leader")
		seen.stop()
	})
}

func TestProclaim(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		ea, eb := newElection(t, a), newElection(t, b)
		k := mustCampaign(t, ea, "v0")
		for i := range 7 {
			value := fmt.Sprintf("v%d", i)
			if i > 0 {
				if err := k.Proclaim(t.Context(), value); err != nil {
					t.Fatal(err)
				}
			}
			wantLeader(t, eb, "a", value, k.Token())
			if k.Value() != value {
				t.Errorf("value %q, want %q", k.Value(), value)
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		wantError(t, k.Proclaim(ended, "never"), context.Canceled, "not proclaimed")
		wantLeader(t, eb, "a", "v6", k.Token())
		// Somebody evicts the lock that has the value.
		evict(t, b, "qlock.election.scheduler.value-0")
		synctest.Wait()
		wantLeader(t, eb, "a", "v6", k.Token())
		mustResign(t, k)
		w.NoClaims()
		// What one leader proclaimed is not what the next one says.
		next := mustCampaign(t, eb, "w0")
		wantLeader(t, ea, "b", "w0", next.Token())
		if err := next.Proclaim(t.Context(), "w1"); err != nil {
			t.Fatal(err)
		}
		wantLeader(t, ea, "b", "w1", next.Token())
		mustResign(t, next)
		w.NoClaims()
	})
}

// Only the leader's own word counts, whatever others write into notes.
func TestForgedProclamation(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		b, _ := w.Client("b")
		e := newElection(t, a)
		k := mustCampaign(t, e, "true")
		note := qlock.ContextWithNote(t.Context(), fmt.Sprintf("%d.99 forged", k.Token()))
		forged, err := b.Lock(note, "qlock.election.scheduler.value-1")
		if err != nil {
			t.Fatal(err)
		}
		wantLeader(t, e, "a", "true", k.Token())
		if err := forged.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		namesake, _ := w.Client("a")
		if _, err := namesake.Lock(note, "qlock.election.scheduler.value-1"); err != nil {
			t.Fatal(err)
		}
		wantLeader(t, e, "a", "true", k.Token())
		mustResign(t, k)
	})
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

// sightings is what Observe yields.
type sightings struct {
	mu   sync.Mutex // guards what follows
	list []string
	errs []error
	at   []time.Time
	stop func()

	ended sync.WaitGroup
}

func observe(t *testing.T, e *election.Election) *sightings {
	ctx, cancel := context.WithCancel(t.Context())
	s := &sightings{}
	s.stop = func() {
		cancel()
		s.ended.Wait()
	}
	s.ended.Go(func() {
		for l, err := range e.Observe(ctx) {
			text := l.Client + " " + l.Value
			switch {
			case errors.Is(err, election.ErrNoLeader):
				text = "no leader"
			case errors.Is(err, qlock.ErrNoQuorum):
				text = "no quorum"
			case err != nil:
				text = err.Error()
			}
			s.mu.Lock()
			s.list, s.errs, s.at = append(s.list, text), append(s.errs, err), append(s.at, time.Now())
			s.mu.Unlock()
		}
	})
	synctest.Wait()
	return s
}

func (s *sightings) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	time.Sleep(time.Second) // for the nodes to be asked again after an event
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.list, want) {
		t.Errorf("seen were %q, want %q (errors %v)", s.list, want, s.errs)
	}
}

// With events changes are seen at once; what is lost of these is made up for.
func TestObserve(t *testing.T) {
	for _, events := range []bool{true, false} {
		t.Run(fmt.Sprintf("events=%v", events), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a, _ := w.Client("a")
				b, _ := w.Client("b")
				o, nc := w.Client("observer")
				var opts []election.Option
				pause := lease / 3
				if events {
					opts = append(opts, election.WithEvents(nc.Conn))
					pause = 0
				}
				seen := observe(t, newElection(t, o, opts...))
				want := []string{"no leader"}
				seen.want(t, want...)
				k := mustCampaign(t, newElection(t, a), "1")
				next := start(t.Context(), newElection(t, b), "2")
				time.Sleep(pause)
				want = append(want, "a 1")
				seen.want(t, want...)
				if err := k.Proclaim(t.Context(), "1.1"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(pause)
				want = append(want, "a 1.1")
				seen.want(t, want...)
				mustResign(t, k)
				<-next.done
				time.Sleep(pause)
				if want = append(want, "b 2"); events {
					seen.mu.Lock()
					if late := seen.at[len(seen.at)-1].Sub(next.at); late > 10*time.Millisecond {
						t.Errorf("the next leader was seen after %v", late)
					}
					seen.mu.Unlock()
				}
				seen.want(t, want...)
				mustResign(t, next.Leadership)
				time.Sleep(pause)
				want = append(want, "no leader")
				seen.want(t, want...)

				// The observer is cut off, and misses an event.
				nc.Cut()
				time.Sleep(lease)
				k = mustCampaign(t, newElection(t, a), "3")
				nc.Mend()
				time.Sleep(lease)
				want = append(want, "no quorum", "a 3")
				seen.want(t, want...)
				mustResign(t, k)
				seen.stop()
			})
		})
	}
}

// The loop ends when it is left, and leaves nothing.
func TestObserveIsLeft(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, nc := w.Client("a")
		e := newElection(t, a, election.WithEvents(nc.Conn))
		for range 3 {
			for range e.Observe(t.Context()) {
				break
			}
		}
		if n := nc.NumSubscriptions(); n != 1 {
			t.Errorf("%d subscriptions are left", n)
		}
	})
}

// A leader that is cut off stops before the next begins, which is after its lease.
func TestCutOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, link := w.Client("a")
		b, _ := w.Client("b")
		ea, eb := newElection(t, a), newElection(t, b)
		k := mustCampaign(t, ea, "1")
		if err := k.Proclaim(t.Context(), "1.1"); err != nil {
			t.Fatal(err)
		}
		next := start(t.Context(), eb, "2")
		link.Cut()
		cutAt := time.Now()
		ended := make(chan time.Time, 1)
		go func() {
			<-k.Context().Done()
			ended <- time.Now()
		}()
		<-next.done
		if next.err != nil {
			t.Fatal(next.err)
		}
		over := <-ended
		if !over.Before(next.at) || next.at.Sub(cutAt) > lease+lease/50 {
			t.Errorf("cut off at 0, over after %v, the next began after %v", over.Sub(cutAt), next.at.Sub(cutAt))
		}
		if !errors.Is(context.Cause(k.Context()), qlock.ErrLost) {
			t.Errorf("cause %v", context.Cause(k.Context()))
		}
		wantLeader(t, eb, "b", "2", next.Token())
		if err := next.Proclaim(within(t, time.Minute), "2.1"); err != nil {
			t.Errorf("the dead leader's value is in the way: %v", err)
		}
		wantError(t, k.Proclaim(t.Context(), "x"), qlock.ErrNotHeld)
		wantError(t, k.Resign(t.Context()), qlock.ErrLost, `election "scheduler"`)
		mustResign(t, next.Leadership)
		link.Mend()
		mustResign(t, mustCampaign(t, ea, "3"))
		w.NoClaims()
	})
}

func TestRun(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, link := w.Client("a")
		b, _ := w.Client("b")
		e := newElection(t, a)
		// It returns what lead returns, and has resigned.
		wrong := errors.New("wrong")
		for _, want := range []error{nil, wrong} {
			if err := e.Run(t.Context(), "x", func(ctx context.Context) error {
				if qlock.Token(ctx) == 0 || qlock.Held(ctx) != nil {
					t.Error("it does not lead")
				}
				return want
			}); err != want {
				t.Errorf("%v, want %v", err, want)
			}
			w.NoClaims()
		}
		// A panic resigns, too.
		func() {
			defer func() { _ = recover() }()
			_ = e.Run(t.Context(), "x", func(context.Context) error { panic("on purpose") })
		}()
		w.NoClaims()
		// It campaigns again when it is cut off, and when it is evicted, and ends with ctx.
		ctx, cancel := context.WithCancelCause(t.Context())
		var terms []uint64
		leads := make(chan struct{})
		done := make(chan error)
		go func() {
			done <- e.Run(ctx, "x", func(ctx context.Context) error {
				terms = append(terms, qlock.Token(ctx))
				leads <- struct{}{}
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		<-leads
		link.Cut()
		time.Sleep(2 * lease)
		link.Mend()
		<-leads
		evict(t, b, "qlock.election.scheduler.leader")
		<-leads
		cancel(wrong)
		if err := <-done; err != wrong {
			t.Errorf("%v, want %v", err, wrong)
		}
		if len(terms) != 3 || !slices.IsSorted(terms) {
			t.Errorf("terms %v", terms)
		}
		w.NoClaims()
		// While it waits, it ends with ctx, and goes on when it is evicted.
		k := mustCampaign(t, newElection(t, b), "y")
		ctx, cancel = context.WithCancelCause(t.Context())
		go func() { done <- e.Run(ctx, "x", func(context.Context) error { return nil }) }()
		synctest.Wait()
		info, err := b.Inspect(t.Context(), "qlock.election.scheduler.leader")
		if err != nil || len(info.Queue) != 1 {
			t.Fatal(info, err)
		}
		if err := b.Evict(t.Context(), info.Name, info.Queue[0], "a test"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		select {
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		default:
		}
		cancel(wrong)
		wantError(t, <-done, wrong)
		mustResign(t, k)
		// The Locker is closed while it leads.
		go func() {
			done <- e.Run(t.Context(), "x", func(ctx context.Context) error {
				leads <- struct{}{}
				<-ctx.Done()
				return nil
			})
		}()
		<-leads
		_ = a.Close()
		wantError(t, <-done, qlock.ErrClosed)
		w.NoClaims()
	})
}

func TestParseName(t *testing.T) {
	for lock, want := range map[string]struct {
		name   string
		leader bool
	}{
		"qlock.election.a.leader":          {"a", true},
		"qlock.election.a.value-0":         {"a", false},
		"qlock.election.a.leader.value-1":  {"a.leader", false},
		"qlock.election.a.value-0.leader":  {"a.value-0", true},
		"qlock.election.a.preferred":       {"a", false},
		"qlock.election.a.value-2":         {},
		"qlock.election..leader":           {},
		"qlock.election.leader":            {},
		"qlock.election.":                  {},
		"orders.leader":                    {},
		"qlock.semaphore.a.gate":           {},
		"qlock.election.a b\x00.c..leader": {"a b\x00.c.", true},
	} {
		name, leader, ok := election.ParseName(lock)
		if ok != (want.name != "") || name != want.name || leader != want.leader {
			t.Errorf("%q: %q, %v, %v", lock, name, leader, ok)
		}
	}
}

// Candidates that are cut off for longer than their lease, at random from one seed: never
// two leaders, terms rise, an observer sees no term or value go back, and in the end
// somebody leads.
func TestHistory(t *testing.T) {
	lost := 0
	defer func() {
		if lost == 0 {
			t.Error("no leadership was lost: the faults do nothing")
		}
	}()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				r := rand.New(rand.NewPCG(seed, 141))
				ctx, stop := context.WithCancel(t.Context())
				var mu sync.Mutex // guards what follows
				var leader context.Context
				var term uint64
				reigns, losses := 0, 0
				var links []*link
				var all sync.WaitGroup
				for i := range 5 {
					l, nc := w.Client(fmt.Sprintf("c%d", i))
					links = append(links, nc)
					e := newElection(t, l)
					r := rand.New(rand.NewPCG(r.Uint64(), 0))
					all.Go(func() {
						for ctx.Err() == nil {
							k, err := e.Campaign(ctx, "0")
							if err != nil {
								if ctx.Err() == nil {
									t.Error(err)
								}
								return
							}
							mu.Lock()
							if leader != nil && leader.Err() == nil && k.Context().Err() == nil {
								t.Error("two leaders")
							}
							if k.Token() <= term {
								t.Errorf("term %d after %d", k.Token(), term)
							}
							leader, term = k.Context(), k.Token()
							reigns++
							mu.Unlock()
							for n := 1; k.Context().Err() == nil && r.IntN(10) > 0; n++ {
								if err := k.Proclaim(k.Context(), fmt.Sprint(n)); err != nil && k.Context().Err() == nil {
									t.Errorf("proclaim: %v", err)
								}
								select {
								case <-time.After(time.Duration(r.IntN(4000)) * time.Millisecond):
								case <-k.Context().Done():
								}
							}
							if err := k.Resign(t.Context()); errors.Is(err, qlock.ErrLost) {
								mu.Lock()
								losses++
								mu.Unlock()
							}
						}
					})
				}
				o, nc := w.Client("observer")
				var last election.Leader
				seen := 0
				all.Go(func() {
					for l, err := range newElection(t, o, election.WithEvents(nc.Conn)).Observe(ctx) {
						if err != nil {
							continue
						}
						mu.Lock()
						seen++
						mu.Unlock()
						var now, before int
						_, _ = fmt.Sscan(l.Value, &now)
						_, _ = fmt.Sscan(last.Value, &before)
						if l.Term < last.Term || l.Term == last.Term && now < before {
							t.Errorf("%+v after %+v", l, last)
						}
						last = l
					}
				})
				for range 25 {
					nc := links[r.IntN(len(links))]
					time.Sleep(time.Duration(r.IntN(10)) * time.Second)
					nc.Cut()
					time.Sleep(time.Duration(r.IntN(25)) * time.Second)
					nc.Mend()
				}
				time.Sleep(2 * lease)
				mu.Lock()
				if leader == nil || leader.Err() != nil {
					t.Error("nobody leads at the end")
				}
				t.Logf("%d leaderships, %d lost, %d sightings", reigns, losses, seen)
				lost += losses
				if seen < reigns/2 {
					t.Error("too little was tried")
				}
				mu.Unlock()
				stop()
				all.Wait()
				time.Sleep(2 * lease)
				w.NoClaims()
			})
		})
	}
}

// A context whose deadline is far away keeps Observe neither from saying that the nodes do not
// answer, nor from seeing that they do again.
func TestObserveFarDeadline(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		o, link := w.Client("observer")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		e := newElection(t, o)
		cut := time.Now()
		for l, err := range e.Observe(ctx) {
			switch late := time.Since(cut); {
			case errors.Is(err, election.ErrNoLeader):
				link.Cut()
				cut = time.Now()
			case errors.Is(err, qlock.ErrNoQuorum):
				if most := lease/3 + 5*time.Second; late > most {
					t.Errorf("told after %v, want %v", late, most)
				}
				k := mustCampaign(t, newElection(t, a), "1")
				defer func() { mustResign(t, k) }()
				link.Mend()
				cut = time.Now()
			case err != nil:
				t.Error(err)
			default:
				if l.Value != "1" || late > lease {
					t.Errorf("%+v after %v", l, late)
				}
				return
			}
		}
		t.Error("the loop ended")
	})
}

func TestRunNil(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		if err := newElection(t, a).Run(t.Context(), "", nil); err == nil {
			t.Error("no error of a function that is nil")
		}
		w.NoClaims()
	})
}

// That the Locker is closed is told, also during an outage, and ends the loop.
func TestObserveClosed(t *testing.T) {
	for _, outage := range []bool{false, true} {
		t.Run(fmt.Sprintf("outage=%v", outage), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				o, link := w.Client("observer")
				seen := observe(t, newElection(t, o))
				want := []string{"no leader"}
				if outage {
					link.Cut()
					time.Sleep(2 * lease)
					want = append(want, "no quorum")
				}
				seen.want(t, want...)
				if err := o.Close(); err != nil {
					t.Error(err)
				}
				time.Sleep(lease)
				seen.mu.Lock()
				defer seen.mu.Unlock()
				if n := len(want); len(seen.errs) != n+1 || !errors.Is(seen.errs[n], qlock.ErrClosed) {
					t.Errorf("errors %v", seen.errs)
				}
				ended := make(chan bool)
				go func() { seen.ended.Wait(); close(ended) }()
				select {
				case <-ended:
				case <-time.After(lease):
					t.Error("the loop goes on")
				}
				seen.stop()
			})
		})
	}
}
