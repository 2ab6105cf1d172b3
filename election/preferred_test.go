package election_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
)

func isClosed(c <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func names(list []election.Candidate) string {
	var out []string
	for _, c := range list {
		if c.Preferred {
			c.Client += "!"
		}
		out = append(out, c.Client)
	}
	return strings.Join(out, " ")
}

// A preferred candidate gets leadership from the one that has it, before those that have
// waited for longer, and they get it after it.
func TestPreferred(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ordinary := func(name string) *election.Election {
			l, _ := w.Client(name)
			return newElection(t, l, election.YieldsToPreferred())
		}
		p, _ := w.Client("p")
		q, _ := w.Client("q")
		ep, eq := newElection(t, p, election.Preferred()), newElection(t, q, election.Preferred())
		a := mustCampaign(t, ordinary("a"), "a")
		b, c := start(t.Context(), ordinary("b"), "b"), start(t.Context(), ordinary("c"), "c")
		if isClosed(a.HandOver()) {
			t.Fatal("to be handed over to nobody")
		}
		pp := start(t.Context(), ep, "p")
		qq := start(t.Context(), eq, "q")
		if !isClosed(a.HandOver()) || pp.over() {
			t.Fatal("the leader does not hear of the preferred one")
		}
		if list, err := ep.Candidates(t.Context()); err != nil || names(list) != "p! q! b c" {
			t.Errorf("%s, %v", names(list), err)
		}
		wantLeader(t, ep, "a", "a", a.Token())
		mustResign(t, a)
		if !pp.over() || pp.err != nil || b.over() || c.over() {
			t.Fatal("it is not the preferred one that leads", pp.err)
		}
		wantLeader(t, ep, "p", "p", pp.Token())
		if pp.HandOver() != nil {
			t.Error("a preferred one hands over")
		}
		if list, err := ep.Candidates(t.Context()); err != nil || !strings.HasPrefix(names(list), "q! ") || len(list) != 3 {
			t.Errorf("%s, %v", names(list), err)
		}
		mustResign(t, pp.Leadership)
		if !qq.over() || qq.err != nil || b.over() || c.over() {
			t.Fatal("it is not the other preferred one that leads", qq.err)
		}
		mustResign(t, qq.Leadership)
		// Which of the others comes first is not told once they have stepped back.
		for range 2 {
			next := b
			select {
			case <-b.done:
			case <-c.done:
				next = c
			}
			mustResign(t, next.Leadership)
			next.done = nil
		}
		w.NoClaims()
	})
}

// The death of a preferred candidate, in whichever state, costs the others its lease.
func TestPreferredDies(t *testing.T) {
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("leads=%v", leads), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				l, _ := w.Client("a")
				p, link := w.Client("p")
				ea := newElection(t, l, election.YieldsToPreferred())
				a := mustCampaign(t, ea, "a")
				ctx, cancel := context.WithCancel(t.Context())
				pp := start(ctx, newElection(t, p, election.Preferred()), "p")
				if leads {
					mustResign(t, a)
					<-pp.done
				}
				link.Cut()
				began := time.Now()
				if !leads {
					mustResign(t, a)
				}
				again := start(within(t, time.Minute), ea, "a")
				<-again.done
				if again.err != nil {
					t.Fatal(again.err)
				}
				if d := again.at.Sub(began); d > lease+lease/50+10*time.Millisecond {
					t.Errorf("nobody led for %v", d)
				}
				mustResign(t, again.Leadership)
				cancel()
				<-pp.done
			})
		})
	}
}

// Run hands over, and comes back.
func TestRunHandsOver(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, _ := w.Client("a")
		p, _ := w.Client("p")
		ctx, cancel := context.WithCancel(t.Context())
		leads := make(chan error)
		done := make(chan error)
		go func() {
			done <- newElection(t, a, election.YieldsToPreferred()).Run(ctx, "a", func(ctx context.Context) error {
				leads <- nil
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		<-leads
		pp := start(t.Context(), newElection(t, p, election.Preferred()), "p")
		if !pp.over() || pp.err != nil {
			t.Fatal("not handed over", pp.err)
		}
		synctest.Wait()
		mustResign(t, pp.Leadership)
		<-leads
		cancel()
		wantError(t, <-done, context.Canceled)
		w.NoClaims()
	})
}

// Preferred candidates come and go, among others, and are cut off: never two leaders, and
// in the end a preferred one leads.
func TestPreferredHistory(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				r := rand.New(rand.NewPCG(seed, 142))
				ctx, stop := context.WithCancel(t.Context())
				var mu sync.Mutex // guards what follows
				var leader context.Context
				var name string
				var term uint64
				by := map[string]int{}
				var links []*link
				var all sync.WaitGroup
				for i := range 5 {
					client, opt := fmt.Sprintf("c%d", i), election.YieldsToPreferred()
					if i >= 3 {
						client, opt = fmt.Sprintf("p%d", i), election.Preferred()
					}
					l, nc := w.Client(client)
					links = append(links, nc)
					e := newElection(t, l, opt)
					r := rand.New(rand.NewPCG(r.Uint64(), 0))
					errNext := errors.New("the next one")
					all.Go(func() {
						for ctx.Err() == nil {
							err := e.Run(ctx, client, func(leading context.Context) error {
								mu.Lock()
								if leader != nil && leader.Err() == nil && leading.Err() == nil {
									t.Error("two leaders")
								}
								if qlock.Token(leading) <= term {
									t.Errorf("term %d after %d", qlock.Token(leading), term)
								}
								leader, term, name = leading, qlock.Token(leading), client
								by[client[:1]]++
								mu.Unlock()
								reign := time.Duration(r.IntN(60)) * time.Second
								select {
								case <-leading.Done():
								case <-time.After(reign):
								}
								return errNext
							})
							if ctx.Err() == nil && !errors.Is(err, errNext) {
								t.Error(err)
								return
							}
							if client[0] == 'p' {
								select {
								case <-time.After(time.Duration(r.IntN(120)) * time.Second):
								case <-ctx.Done():
								}
							}
						}
					})
				}
				for range 25 {
					nc := links[r.IntN(len(links))]
					time.Sleep(time.Duration(r.IntN(20)) * time.Second)
					nc.Cut()
					time.Sleep(time.Duration(r.IntN(25)) * time.Second)
					nc.Mend()
				}
				l, _ := w.Client("last")
				last, err := newElection(t, l, election.Preferred()).Campaign(within(t, 10*time.Minute), "last")
				if err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				if leader.Err() == nil {
					t.Error("two leaders")
				}
				t.Logf("%v, the last one %s", by, name)
				if by["p"] == 0 || by["c"] == 0 {
					t.Error("too little was tried")
				}
				mu.Unlock()
				stop()
				all.Wait()
				mustResign(t, last)
				time.Sleep(2 * lease)
				w.NoClaims()
			})
		})
	}
}
