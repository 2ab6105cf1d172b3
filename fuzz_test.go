package qlock

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/dice"
	"github.com/qlock/qlock/internal/local"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/proto"
)

// Whatever comes to a Locker's inbox, in messages of one answer or of many, while its
// callers lock, give up, unlock and ask: it does not panic, its counts add up, and
// every call returns. There is no connection: what it would publish is dropped.
func FuzzLocker(f *testing.F) {
	for seed := range uint64(32) {
		rng, script := rand.New(rand.NewPCG(seed, 4)), make([]byte, 1500)
		for i := range script {
			script[i] = byte(rng.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) { fuzzLocker(t, dice.New(script)) })
	})
}

func fuzzLocker(t *testing.T, d *dice.Dice) {
	const lease = 10 * time.Second
	cluster := proto.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
	opt, err := buildOptions([]Option{WithName("a"), WithLease(lease)})
	if err != nil {
		t.Fatal(err)
	}
	opt.retention = dice.Of(d, 0, time.Second)
	l := &Locker{
		nc: new(nats.Conn), opt: opt, log: newLimited(slog.New(slog.DiscardHandler)), start: time.Now(), inbox: "inbox",
		wake: make(chan struct{}, 1), stop: make(chan struct{}), members: members.New("inbox"),
	}
	l.out = newOutbox(nil, l.inbox, opt, l.log)
	defer l.out.late.Stop()
	id := uuid.UUID{1}
	l.core = client.New(client.Config{Name: "a", Instance: id, TTL: lease, MaxRuns: 4, Cluster: cluster}, l.at(time.Now()))
	l.table = local.New(l.core, opt.retention)

	w := &dice.World{
		Cluster: cluster, Nodes: cluster.Nodes, Clients: []string{"a", "a", "b"}, Instances: []uuid.UUID{id}, Resources: []string{"r", "s"}, Lease: lease,
	}
	var calls sync.WaitGroup
	var mu sync.Mutex // guards held
	var held []*Lock
	var cancels []context.CancelFunc
	beats := map[uint64]uint64{} // highest sent, by claim
	for d.Left() {
		if pass := d.Pass(lease); pass > 0 {
			time.Sleep(pass)
		}
		w.Wall = time.Now().UnixMicro()
		switch what := d.N(16); what {
		case 0:
			l.step(func(now proto.Now, out *local.Out) { l.table.Tick(now, out) })
		case 1, 2, 3:
			ctx, cancel := context.WithTimeout(context.Background(), dice.Of(d, time.Millisecond, time.Second, time.Minute))
			cancels = append(cancels, cancel)
			lock, name := dice.Of(d, l.Lock, l.RLock, l.TryLock, l.TryRLock), dice.Of(d, w.Resources...)
			w.Seq++
			calls.Go(func() {
				if k, err := lock(ctx, name); err == nil {
					mu.Lock()
					defer mu.Unlock()
					held = append(held, k)
				}
			})
		case 4:
			if len(held) > 0 {
				_ = held[d.N(min(len(held), 200))].Unlock(context.Background()) // it may be lost
			}
		case 5:
			if len(cancels) > 0 {
				cancels[d.N(min(len(cancels), 200))]()
			}
		case 6:
			l.step(func(now proto.Now, out *local.Out) { l.table.Reconnected(now, out) })
		case 7: // NATS says no
			subject := dice.Of(d, "lock.default.node.acquire.a.r", "lock.default.node.a", "lock.default.admin.list.a", "inbox", "", "x")
			l.denied(fmt.Errorf("%w: %s", nats.ErrPermissionViolation, dice.Of(d, `Permissions Violation for Publish to "`+subject+`"`, `Subscription to "`+subject, "")))
			if d.Odds(8) {
				l.shut()
			}
		case 8, 9:
			if d.Odds(4) {
				l.step(func(now proto.Now, out *local.Out) { l.learn(now, out, l.members.Query) })
				break
			}
			ctx, cancel := context.WithTimeout(context.Background(), dice.Of(d, time.Second, time.Minute, time.Millisecond))
			cancels = append(cancels, cancel)
			ask := d.N(4)
			calls.Go(func() {
				switch ask {
				case 0:
					all, _ := l.Locks(ctx, "")
					for i := range all {
						oneWordEach(t, &all[i])
					}
				case 1:
					if info, err := l.Inspect(ctx, "r"); err == nil {
						oneWordEach(t, info)
					}
				case 2:
					_ = l.Evict(ctx, "r", ClaimInfo{ID: proto.ClaimID{Instance: id, Seq: 1}.Text(), Client: "a"}, "why")
				case 3:
					_ = l.Flush(ctx)
				}
			})
		default:
			var answers []proto.Answer
			for range d.N(8) {
				answers = append(answers, d.Answer(w))
			}
			if d.Odds(2) {
				l.mu.Lock()
				for _, cl := range l.core.All() {
					claim := proto.ClaimID{Instance: id, Seq: cl.Seq()}
					answers = append(answers, d.Grants(w, "a", claim, beats[cl.Seq()])...)
					if d.Odds(3) {
						answers = append(answers, proto.Answer{
							Kind: dice.Of(d, proto.Evicted, proto.Recall), Node: "n1", Incarnation: uuid.UUID{1}, Digest: cluster.Digest(),
							Client: "a", Claim: claim, Beat: beats[cl.Seq()], By: "ops",
						})
					}
				}
				l.mu.Unlock()
			}
			l.mu.Lock()
			nonces := slices.Sorted(maps.Keys(l.inquiries))
			nonces = append(nonces, fmt.Sprintf("%s/%d/%d", l.inbox, 1+d.N(3), 1+d.N(3)))
			l.mu.Unlock()
			for _, nonce := range nonces {
				kind := dice.Of(d, proto.Listed, proto.Evicting, proto.Informed)
				for d.N(4) > 0 {
					a := d.AnswerOf(w, kind)
					if a.Nonce, a.Client = nonce, "a"; a.Info != nil {
						a.Nonce, a.Info.Nonce = "", nonce
					}
					if a.List != nil {
						a.List.After = 0
					}
					answers = append(answers, a)
				}
			}
			body := []byte(nil)
			for i := range answers {
				a := &answers[i]
				body = proto.AppendAnswer(proto.AppendSeparator(body), a)
			}
			if len(body) > 0 && d.N(8) > 0 {
				l.receive(&nats.Msg{Data: append(body, ']')})
			}
			if len(answers) > 0 {
				l.receive(&nats.Msg{Data: proto.AppendAnswer(nil, &answers[0])})
			}
		}
		synctest.Wait()
		load, _ := l.out.take()
		from := 0
		for _, m := range load.messages {
			var r proto.Request
			switch body := load.bodies[from:m.body]; m.verb {
			case proto.Acquire, proto.Refresh, proto.Yield:
				if err := r.Decode(m.verb, "a", "r", body); err != nil {
					t.Fatalf("it sends %s, which cannot be read: %v", body, err)
				}
				beats[r.Claim.Seq] = max(beats[r.Claim.Seq], r.Beat)
				w.Beat = max(w.Beat, r.Beat)
			}
			from = m.body
		}
		s := l.Stats()
		if s.Held < 0 || s.Waiting < 0 || s.Granted != uint64(s.Held)+s.Lost+s.Unlocked {
			t.Fatalf("%+v", s)
		}
	}
	for _, cancel := range cancels {
		cancel()
	}
	calls.Wait()
	for _, k := range held {
		_ = k.Unlock(context.Background())
	}
	if s := l.Stats(); s.Held != 0 || s.Waiting != 0 {
		t.Errorf("at the end: %+v", s)
	}
}

// oneWordEach checks that no node counts twice, whatever it told.
func oneWordEach(t *testing.T, info *LockInfo) {
	for _, c := range slices.Concat(info.Holders, info.Queue) {
		if nodes := slices.Sorted(slices.Values(slices.Concat(c.Voted, c.Queued))); len(slices.Compact(nodes)) != len(c.Voted)+len(c.Queued) {
			t.Errorf("the claim %s has the votes of %v and waits at %v", c.ID, c.Voted, c.Queued)
		}
	}
}
