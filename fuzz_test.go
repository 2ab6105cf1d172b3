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

	"github.com/qlock/qlock/internal/dice"
	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// Whatever comes to a Locker's inbox, in messages of one answer or of many, while its
// callers lock, give up, unlock and ask: it does not panic, its counts add up, and
// every call returns. In place of a connection there is one that reads what is published.
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

// fuzzConn is a connection that keeps what a hostile network wants to know of what is
// published.
type fuzzConn struct {
	t *testing.T

	mu       sync.Mutex // guards what follows
	denial   error
	closed   bool
	beats    map[uint64]uint64 // highest sent, by claim
	beat     uint64
	instance uuid.UUID // the Locker's
	nonces   []string
}

func (c *fuzzConn) Publish(subject string, body []byte) error {
	return c.PublishRequest(subject, "", body)
}

func (c *fuzzConn) PublishRequest(on, _ string, body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nats.ErrConnectionClosed
	}
	p, resource, err := subject.Parse(on)
	if err != nil {
		c.t.Errorf("it publishes on %s: %v", on, err)
		return nil
	}
	if p.Family == subject.FamilyEvent {
		return nil
	}
	list := make([]wire.Request, 1)
	if p.IsBatch() {
		list, err = wire.DecodeBatch(nil, p.Client, body)
	} else {
		err = list[0].Decode(wire.Verb(p.Verb), p.Client, resource, body)
	}
	if err != nil {
		c.t.Errorf("it sends %s on %s, which cannot be read: %v", body, on, err)
	}
	for i := range list {
		r := &list[i]
		if r.Claim.Seq > 0 && r.Verb != wire.Evict {
			c.beats[r.Claim.Seq] = max(c.beats[r.Claim.Seq], r.SentAt)
		}
		c.beat = max(c.beat, r.SentAt)
		if r.Verb == wire.Acquire {
			c.instance = r.Claim.Instance
		}
		if r.Nonce != "" {
			c.nonces = append(c.nonces, r.Nonce)
		}
	}
	return nil
}

func (c *fuzzConn) MaxPayload() int64 { return 1 << 20 }

func (c *fuzzConn) LastError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.denial
}

func (c *fuzzConn) IsClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func fuzzLocker(t *testing.T, d *dice.Dice) {
	const lease = 10 * time.Second
	cluster := wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
	opt, err := buildOptions([]Option{WithName("a"), WithLease(lease)})
	if err != nil {
		t.Fatal(err)
	}
	opt.retention = dice.Of(d, 0, time.Second)
	conn := &fuzzConn{t: t, beats: map[uint64]uint64{}}
	log := natsio.NewLog(slog.New(slog.DiscardHandler))
	l := &Locker{opt: opt, log: log, client: driver.NewClient(conn, "inbox", nil, opt.driver(log), driver.NewMembership("inbox", cluster))}
	status := make(chan nats.Status, 1)
	l.client.Run(status, func() error { return nil })
	id := uuid.UUID{1} // of claims that are not the Locker's
	w := &dice.World{
		Cluster: cluster, Nodes: cluster.Nodes, Clients: []string{"a", "a", "b"}, Instances: []uuid.UUID{id}, Resources: []string{"r", "s"}, Lease: lease,
	}
	var calls sync.WaitGroup
	var mu sync.Mutex // guards holding
	var holding []*Lock
	var cancels []context.CancelFunc
	for d.Left() {
		if pass := d.Pass(lease); pass > 0 {
			time.Sleep(pass)
			synctest.Wait() // for those who slept as long
		}
		w.Wall = time.Now().UnixMicro()
		switch what := d.N(16); what {
		case 1, 2, 3:
			ctx, cancel := context.WithTimeout(context.Background(), dice.Of(d, time.Millisecond, time.Second, time.Minute))
			cancels = append(cancels, cancel)
			lock, name := dice.Of(d, l.Lock, l.RLock, l.TryLock, l.TryRLock), dice.Of(d, w.Resources...)
			w.Seq++
			calls.Go(func() {
				if k, err := lock(ctx, name); err == nil {
					mu.Lock()
					defer mu.Unlock()
					holding = append(holding, k)
				}
			})
		case 4:
			if len(holding) > 0 {
				_ = holding[d.N(min(len(holding), 200))].Unlock(context.Background()) // it may be lost
			}
		case 5:
			if len(cancels) > 0 {
				cancels[d.N(min(len(cancels), 200))]()
			}
		case 6:
			status <- dice.Of(d, nats.RECONNECTING, nats.CONNECTED)
		case 7: // NATS says no
			on := dice.Of(d, "lock.default.node.acquire.a.r", "lock.default.node.a", "lock.default.admin.list.a", "inbox", "", "x")
			denial := fmt.Errorf("%w: %s", nats.ErrPermissionViolation, dice.Of(d, `Permissions Violation for Publish to "`+on+`"`, `Subscription to "`+on, ""))
			gone := d.Odds(8)
			conn.mu.Lock()
			conn.denial, conn.closed = denial, conn.closed || gone
			conn.mu.Unlock()
			if gone {
				status <- nats.CLOSED
			}
		case 8, 9:
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
					_ = l.Evict(ctx, "r", ClaimInfo{ID: wire.ClaimID{Instance: id, Seq: 1}.Text(), Client: "a"}, "why")
				case 3:
					_ = l.Flush(ctx)
				}
			})
		default:
			conn.mu.Lock()
			w.Beat = max(w.Beat, conn.beat)
			var answers []wire.Answer
			for range d.N(8) {
				answers = append(answers, d.Answer(w))
			}
			if d.Odds(2) {
				for _, seq := range slices.Sorted(maps.Keys(conn.beats)) {
					if seq+8 < w.Seq {
						continue // most are over
					}
					claim, beat := wire.ClaimID{Instance: conn.instance, Seq: seq}, conn.beats[seq]
					answers = append(answers, d.Grants(w, "a", claim, beat)...)
					if d.Odds(3) {
						answers = append(answers, wire.Answer{
							Kind: dice.Of(d, wire.Evicted, wire.Recall), Node: "n1", Incarnation: uuid.UUID{1}, Digest: cluster.Digest(),
							Client: "a", Claim: claim, SentAt: beat, By: "ops",
						})
					}
				}
			}
			nonces := conn.nonces[max(0, len(conn.nonces)-4):]
			conn.mu.Unlock()
			for _, nonce := range nonces {
				kind := dice.Of(d, wire.Listed, wire.Evicting, wire.Informed)
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
				body = wire.AppendAnswer(wire.AppendSeparator(body), &answers[i])
			}
			if len(body) > 0 && d.N(8) > 0 {
				l.client.Receive(&nats.Msg{Data: append(body, ']')})
			}
			if len(answers) > 0 {
				l.client.Receive(&nats.Msg{Data: wire.AppendAnswer(nil, &answers[0])})
			}
		}
		synctest.Wait()
		s := l.Stats()
		if s.Held < 0 || s.Waiting < 0 || s.Granted != uint64(s.Held)+s.Lost+s.Unlocked {
			t.Fatalf("%+v", s)
		}
	}
	for _, cancel := range cancels {
		cancel()
	}
	calls.Wait()
	for _, k := range holding {
		_ = k.Unlock(context.Background())
	}
	if s := l.Stats(); s.Held != 0 || s.Waiting != 0 {
		t.Errorf("at the end: %+v", s)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
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
