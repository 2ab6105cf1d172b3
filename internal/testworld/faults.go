package testworld

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// A longer run: go test -run TestFaults -faults.rounds=20 -faults.seed=7
var (
	rounds = flag.Int("faults.rounds", 1, "how often a test of faults does to the cluster all that it can")
	seed   = flag.Uint64("faults.seed", 14, "of what a test of faults does")
)

// Rand returns random numbers that depend on -faults.seed and on stream.
func Rand(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(*seed, stream)) }

// Worlds returns how many worlds a test in virtual time is to run: n, or more in a longer run.
func Worlds(n int) int { return n * *rounds }

// Faults does to a real cluster and its clients what can go wrong there, from one seed.
type Faults struct {
	*qlocktest.Cluster
	Conns []*nats.Conn // of the clients that can be cut off

	random *rand.Rand
}

// StartFaults starts a cluster of three nodes whose links can be cut.
func StartFaults(t testing.TB, opts ...qlocktest.Option) *Faults {
	t.Helper()
	t.Logf("-faults.seed=%d", *seed)
	c := qlocktest.StartCluster(t, 3, append([]qlocktest.Option{qlocktest.WithLinks()}, opts...)...)
	return &Faults{Cluster: c, random: Rand(0)}
}

// Client makes a connection that Rounds cuts off, among others. Every other one stays with
// its server, so that the clients are on both sides of a link that is cut.
func (f *Faults) Client(t testing.TB) *nats.Conn {
	t.Helper()
	var nc *nats.Conn
	if i := len(f.Conns); i%2 == 0 {
		nc = f.Connect(t)
	} else {
		nc = f.ConnectTo(t, f.Names()[(i/2+1)%3])
	}
	f.Conns = append(f.Conns, nc)
	return nc
}

// RoundsFor is Rounds, and then waits until enough was done for a test, which takes a loaded
// machine longer.
func (f *Faults) RoundsFor(t testing.TB, enough func() bool) {
	t.Helper()
	f.Rounds(t)
	for end := time.Now().Add(2 * time.Minute); !enough(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Error("too little was done for a test")
			return
		}
	}
}

// Rounds does as often as -faults.rounds says, one after the other: a node crashes, a client
// is cut off for longer than the lease, a link between two servers is cut, a server is
// isolated, which may be longer than the lease, and a node is stopped. When it returns, all
// links are whole and all nodes run, and soon vote.
func (f *Faults) Rounds(t testing.TB) {
	t.Helper()
	r, lease := f.random, f.Lease()
	for range *rounds {
		order := r.Perm(3)
		one, other := f.Names()[order[0]], f.Names()[order[1]]
		f.Crash(t, one)
		time.Sleep(lease / 5)
		f.Restart(t, one)
		nc := f.Conns[r.IntN(len(f.Conns))]
		f.Disconnect(t, nc)
		f.WaitVotes(t) // longer than the lease
		f.Reconnect(t, nc)
		f.Cut(t, one, other)
		time.Sleep(upTo(r, lease/2))
		f.Isolate(t, other)
		time.Sleep(lease/4 + upTo(r, 3*lease/2))
		f.Mend(t)
		f.Stop(t, one)
		time.Sleep(upTo(r, lease/5))
		f.Restart(t, one)
		time.Sleep(lease / 5)
	}
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

// Hold holds what ctx stands for, mostly a few milliseconds, and at times until it is lost
// perhaps. It returns a time, since began, in which it was held for certain: at its end the lock
// stood by the lease clock, which qlock.Held reads. The context alone does not tell: after a pause
// of the process, others may be granted the lock before the end of the context is noticed. ok is
// false if the lock was lost before Hold could look.
func Hold(ctx context.Context, began time.Time, r *rand.Rand) (from, to time.Duration, ok bool) {
	from = time.Since(began)
	end := time.After(time.Duration(r.IntN(20)) * time.Millisecond)
	if r.IntN(30) == 0 {
		end = time.After(1500 * time.Millisecond)
	}
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for now := from; ; now = time.Since(began) {
		if qlock.Held(ctx) != nil {
			return from, to, ok
		}
		to, ok = now, true
		select {
		case <-ctx.Done():
			return from, to, ok
		case <-end:
			return from, to, ok
		case <-look.C:
		}
	}
}
