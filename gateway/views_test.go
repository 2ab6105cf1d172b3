package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/nodes"
	"github.com/qlock/qlock/semaphore"
)

// Who waits for a change of a list is told soon after it, and nobody else costs the nodes
// anything.
func TestWatch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		other := w.locker("other")
		for _, path := range []string{"/v1/locks", "/v1/locks?pattern=a%2520b.*", "/v1/locks/a%20b.c", "/v1/lock?encoded=a%2520b.c"} {
			first := ask(t, g, "GET", path, "", "Prefer", "wait=30").want(t, 200, "")
			tag := first.header.Get("ETag")
			ask(t, g, "GET", path, "", "If-None-Match", tag).want(t, 304, "")
			ask(t, g, "GET", path, "", "If-None-Match", "W/"+tag).want(t, 304, "")
			ask(t, g, "GET", path, "", "If-None-Match", `"of-another-gateway"`, "Prefer", "wait=30").want(t, 200, "")
			var waits []chan *reply
			for range 5 {
				waits = append(waits, later(t, g, "GET", path, "", "If-None-Match", tag, "Prefer", "wait=30"))
			}
			if n := len(g.watchers); n != 1 {
				t.Errorf("%d watchers", n)
			}
			time.Sleep(10 * time.Second)
			start := time.Now()
			k, err := other.Lock(t.Context(), "a b.c")
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range waits {
				r := (<-c).want(t, 200, "")
				if time.Since(start) > 500*time.Millisecond || r.header.Get("ETag") == tag {
					t.Errorf("%s: %s after %v", path, r, time.Since(start))
				}
			}
			time.Sleep(time.Second) // all nodes have voted
			tag = ask(t, g, "GET", path, "").want(t, 200, "").header.Get("ETag")
			// Times alone are no change.
			start = time.Now()
			ask(t, g, "GET", path, "", "If-None-Match", tag, "Prefer", "wait=7").want(t, 304, "")
			if time.Since(start) != 7*time.Second {
				t.Errorf("after %v", time.Since(start))
			}
			if err := k.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
			settle()
			if n := len(g.watchers); n != 0 || g.only.streams != 0 {
				t.Errorf("%d watchers are left, %d streams", n, g.only.streams)
			}
		}
		nodes := ask(t, g, "GET", "/v1/nodes", "").want(t, 200, "")
		c := later(t, g, "GET", "/v1/nodes", "", "If-None-Match", nodes.header.Get("ETag"), "Prefer", "wait=30")
		start := time.Now()
		_ = w.nodes[0].Close()
		if (<-c).want(t, 200, ""); time.Since(start) > 5*time.Second {
			t.Errorf("after %v", time.Since(start))
		}
		// A gateway that stops sends them away.
		locks := ask(t, g, "GET", "/v1/locks", "").want(t, 200, "")
		c = later(t, g, "GET", "/v1/locks", "", "If-None-Match", locks.header.Get("ETag"), "Prefer", "wait=30")
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		(<-c).want(t, 503, "draining")
	})
}

// Lists cost the nodes and the gateway memory, so only few are made at once.
func TestFewListsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway()
		var now, most atomic.Int64
		v := &view{key: "x", look: locksView("").look}
		look := v.look
		v.look = func(ctx context.Context, l *qlock.Locker) (any, *Problem) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			time.Sleep(time.Second)
			return look(ctx, l)
		}
		done := make(chan *Problem, 100)
		for range cap(done) {
			go func() {
				_, p := g.see(t.Context(), g.only, v)
				done <- p
			}()
		}
		for range cap(done) {
			if p := <-done; p != nil {
				t.Error(p)
			}
		}
		if most.Load() > looksAtOnce {
			t.Errorf("%d at once", most.Load())
		}
	})
}

// Members, elections and semaphores are shown as the packages of the library have them.
func TestRecipes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		a, b := w.locker("a"), w.locker("b")
		group, err := members.New(a, "workers")
		if err != nil {
			t.Fatal(err)
		}
		read := func(path string, into any) *reply {
			t.Helper()
			r := ask(t, g, "GET", path, "").want(t, 200, "")
			if err := json.Unmarshal(r.body, into); err != nil {
				t.Error(err)
			}
			return r
		}
		var list MemberList
		r := read("/v1/members/workers", &list)
		if len(list.Members) != 0 {
			t.Errorf("%+v", list)
		}
		c := later(t, g, "GET", "/v1/members/workers", "", "If-None-Match", r.header.Get("ETag"), "Prefer", "wait=30")
		m, err := group.Join(t.Context(), "7", "addr=7")
		if err != nil {
			t.Fatal(err)
		}
		(<-c).want(t, 200, "")
		read("/v1/members/workers", &list)
		if len(list.Members) != 1 || list.Members[0].ID != "7" || list.Members[0].Meta != "addr=7" || list.Members[0].Token != m.Token() || list.Members[0].Client != "a" {
			t.Errorf("%+v", list)
		}
		ask(t, g, "GET", "/v1/members/a.b", "").want(t, 422, "invalid")

		var report ElectionReport
		read("/v1/elections/primary", &report)
		if report.Leader != nil || len(report.Candidates) != 0 {
			t.Errorf("%+v", report)
		}
		one, err := election.New(a, "primary")
		if err != nil {
			t.Fatal(err)
		}
		two, err := election.New(b, "primary")
		if err != nil {
			t.Fatal(err)
		}
		leads, err := one.Campaign(t.Context(), "at a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = two.Campaign(ctx, "at b")
		}()
		settle()
		read("/v1/elections/primary", &report)
		if report.Leader == nil || report.Leader.Value != "at a" || report.Leader.Term != leads.Token() || len(report.Candidates) != 1 || report.Candidates[0].Client != "b" {
			t.Errorf("%+v", report)
		}
		cancel()
		<-gone

		sem, err := semaphore.New(b, "renders", 3)
		if err != nil {
			t.Fatal(err)
		}
		permits, err := sem.Acquire(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		settle()
		var held SemaphoreReport
		read("/v1/semaphores/renders", &held)
		if len(held.Permits) != 2 || held.Permits[0].Client != "b" || held.Permits[0].Token != permits.Token(held.Permits[0].Number) || held.Waiting != 0 {
			t.Errorf("%+v", held)
		}
		for _, err := range []error{permits.Release(t.Context()), leads.Resign(t.Context()), m.Leave(t.Context())} {
			if err != nil {
				t.Error(fmt.Errorf("at the end: %w", err))
			}
		}
	})
}

// The list of nodes tells of a change that is under way, as qlock nodes does.
func TestNodesWhileTheListChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		look := func(header ...string) (*NodeList, string) {
			t.Helper()
			r := ask(t, g, "GET", "/v1/nodes", "", header...).want(t, 200, "")
			return read[NodeList](t, r), r.header.Get("ETag")
		}
		old, etag := look()
		if old.Epoch != 0 || old.Change != nil {
			t.Errorf("%+v", old)
		}
		nc := w.connect().Conn
		if err := nodes.Change(t.Context(), nc, []string{"n1", "n2"}, nodes.MaxLease(20*time.Second), nodes.StayJoint()); err != nil {
			t.Fatal(err)
		}
		during, tag := look("If-None-Match", etag)
		c := during.Change
		if during.Epoch != 2 || len(during.NodeNames) != 3 || c == nil {
			t.Fatalf("%+v", during)
		}
		if !slices.Equal(c.NodeNames, []string{"n1", "n2"}) || c.MaxLeaseMS != 20_000 || c.WaitMS <= 0 {
			t.Errorf("%+v", c)
		}
		time.Sleep(time.Second)
		ask(t, g, "GET", "/v1/nodes", "", "If-None-Match", tag).want(t, 304, "")
		if err := nodes.Finish(t.Context(), nc); err != nil {
			t.Fatal(err)
		}
		if after, _ := look("If-None-Match", tag); after.Epoch != 3 || len(after.NodeNames) != 2 || after.MaxLeaseMS != 20_000 || after.Change != nil {
			t.Errorf("%+v", after)
		}
	})
}
