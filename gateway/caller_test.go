package gateway

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock"
)

var callerSeeds = flag.Int("gateway.seeds", 6, "how many random runs TestCallers makes")

// belief is what callers believe, by lock: nobody may believe that it holds what another
// believes to hold (G1). It is kept in real time.
type belief struct {
	t  *testing.T
	mu sync.Mutex // guards what follows
	by map[string]*believer
	// What the run has seen, so that a run in which nothing happens is noticed.
	holds, gone, late, lost int
	token                   map[string]uint64
}

func newBelief(t *testing.T) *belief {
	return &belief{t: t, by: map[string]*believer{}, token: map[string]uint64{}}
}

type believer struct {
	who   string
	token uint64
	until time.Time
}

func (b *belief) believes(name, who string, token uint64, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if !now.Before(until) {
		return // the answer came too late: it lets nobody believe anything
	}
	if other := b.by[name]; other != nil && (other.who != who || other.token != token) && now.Before(other.until) {
		b.t.Errorf("%s: %s with token %d and %s with token %d believe at once, for another %v", name, who, token, other.who, other.token, other.until.Sub(now))
	}
	if token < b.token[name] {
		b.t.Errorf("%s: %s holds with token %d after one with %d", name, who, token, b.token[name])
	}
	if token > b.token[name] {
		b.holds++
	}
	b.token[name] = token
	b.by[name] = &believer{who, token, until}
}

func (b *belief) stops(name, who string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if other := b.by[name]; other != nil && other.who == who {
		delete(b.by, name)
	}
}

// caller is a program with a clock of its own, which runs fast or slow by up to two per
// cent of what the votes allow, on a network that loses and delays requests and answers.
type caller struct {
	*belief
	who      string
	rate     float64 // of its clock: seconds of its own for a second
	rand     *rand.Rand
	gateways []http.Handler
	evictor  http.Handler
}

// request sends a request over the network. The answer may be lost or late; nil: none came.
func (c *caller) request(ctx context.Context, g http.Handler, method, path, body string, header ...string) *reply {
	slow := func() { time.Sleep(time.Duration(c.rand.ExpFloat64() * float64(20*time.Millisecond))) }
	if c.rand.IntN(10) == 0 {
		time.Sleep(time.Duration(c.rand.Int64N(int64(4 * time.Second)))) // late: what it promises was computed before it waited, or after
	}
	slow()
	if c.rand.IntN(12) == 0 {
		return nil // the request is lost
	}
	r := askIn(c.t, ctx, g, method, path, body, header...)
	if c.rand.IntN(12) == 0 {
		return nil // the answer is lost
	}
	if c.rand.IntN(8) == 0 {
		c.mu.Lock()
		c.late++
		c.mu.Unlock()
		time.Sleep(time.Duration(c.rand.Int64N(int64(15 * time.Second)))) // the answer is late
	}
	slow()
	return r
}

// run acquires locks, believes what rule G1 lets it believe, and nothing else.
func (c *caller) run(end time.Time) {
	for time.Now().Before(end) {
		name := fmt.Sprintf("x%d", c.rand.IntN(2))
		id := uuid.NewString()
		path := "/v1/leases/" + id
		lease := []string{"1s", "3s", "10s", "25s"}[c.rand.IntN(4)]
		var until time.Time // by the real clock, until when it believes
		over := false
		hear := func(sent time.Time, r *reply) {
			switch {
			case r == nil:
			case r.status == 410 || r.status == 404:
				over = true // G2
				c.stops(name, id)
				c.mu.Lock()
				c.gone++
				if r.fault.Cause == causeLost {
					c.lost++
				}
				c.mu.Unlock()
			case (r.status == 200 || r.status == 201) && r.lease.State == "held" && !over:
				// s + h + E by the caller's own clock, which is fast or slow.
				d := time.Duration(r.lease.HandledMS+r.lease.ExpiresInMS) * time.Millisecond
				if e := sent.Add(time.Duration(float64(d) / c.rate)); e.After(until) {
					until = e
				}
				c.believes(name, id, r.lease.Token, until)
			}
		}
		// Any gateway answers for any lease: a caller may ask another one each time.
		g := func() http.Handler { return c.gateways[c.rand.IntN(len(c.gateways))] }
		for try := 0; try < 12 && !over && until.IsZero(); try++ {
			sent := time.Now()
			r := c.request(context.Background(), g(), "PUT", path, fmt.Sprintf(`{"name":%q,"wait":"40s","lease":%q}`, name, lease), "Prefer", "wait=5")
			if hear(sent, r); r != nil && r.status == 409 {
				break
			}
		}
		for k := c.rand.IntN(6); k > 0 && !over && !until.IsZero() && time.Now().Before(until); k-- {
			time.Sleep(time.Duration(c.rand.Int64N(int64(3 * time.Second))))
			sent := time.Now()
			if c.rand.IntN(3) == 0 {
				hear(sent, c.request(context.Background(), g(), "GET", path, ""))
			} else {
				hear(sent, c.request(context.Background(), g(), "POST", path+"/renew", ""))
			}
			if c.rand.IntN(12) == 0 {
				ask(c.t, c.evictor, "POST", "/v1/locks/"+name+"/evict", "")
			}
		}
		switch c.rand.IntN(3) {
		case 0: // it forgets to release
		default:
			c.stops(name, id) // it stops before it says so
			c.request(context.Background(), g(), "DELETE", path, "")
		}
		time.Sleep(time.Duration(c.rand.Int64N(int64(time.Second))))
	}
}

// Never do two callers believe that they hold a lock, whatever gets lost or comes late,
// while gateways are cut off and stop, and leases are evicted. (A gateway that stands still
// while it answers is in TestPauseWhileAnswering: virtual time stands still while somebody
// waits for a mutex, so nobody can sleep here in the middle of an answer.)
func TestCallers(t *testing.T) {
	for seed := range *callerSeeds {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			b := newBelief(t)
			g1, nc1 := w.gatewayOn()
			g2, nc2 := w.gatewayOn(func(c *Config) { c.Client = "second"; c.Drain = 5 * time.Second })
			evictor := w.gateway(func(c *Config) { c.Client = "operator" })
			start := time.Now()
			end := start.Add(10 * time.Minute)
			var all sync.WaitGroup
			for i := range 8 {
				// The rate is within what two clocks may differ by: 2 per cent between caller and
				// gateway.
				c := &caller{belief: b, who: fmt.Sprintf("c%d", i), rate: 0.981 + 0.038*float64(i)/7, gateways: []http.Handler{g1, g2}, evictor: evictor}
				c.rand = rand.New(rand.NewPCG(uint64(seed), uint64(10+i)))
				all.Go(func() { c.run(end) })
			}
			direct := w.locker("direct")
			all.Go(func() { // a program that uses the library
				own := rand.New(rand.NewPCG(uint64(seed), 3))
				for time.Now().Before(end) {
					name := fmt.Sprintf("x%d", own.IntN(2))
					ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
					k, err := direct.Lock(ctx, name, qlock.WithManualRelease()) // it does not look at the context, and may be evicted
					cancel()
					if err == nil {
						who := fmt.Sprintf("direct %d", k.Token())
						b.believes(name, who, k.Token(), time.Now().Add(k.Stands()))
						time.Sleep(time.Duration(own.Int64N(int64(2 * time.Second))))
						b.stops(name, who)
						_ = k.Unlock(context.Background())
					}
					time.Sleep(time.Duration(own.Int64N(int64(8 * time.Second))))
				}
			})
			for i, nc := range []*link{nc1, nc2} {
				random := rand.New(rand.NewPCG(uint64(seed), uint64(20+i)))
				all.Go(func() {
					for time.Now().Before(end) {
						time.Sleep(time.Duration(random.Int64N(int64(time.Minute))))
						nc.Cut()
						time.Sleep(time.Duration(random.Int64N(int64(15 * time.Second))))
						nc.Mend()
					}
				})
			}
			time.Sleep(5 * time.Minute)
			if err := g2.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			all.Wait()
			t.Logf("seed %d: %d holds, %d leases told to be over, %d of them lost, %d late answers", seed, b.holds, b.gone, b.lost, b.late)
			if b.holds < 20 || b.gone < 5 || b.late < 20 {
				t.Errorf("seed %d: too little happened", seed)
			}
		})
	}
}
