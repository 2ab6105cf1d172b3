//go:build unix

package recipes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/integration/internal/child"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/partition"
	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/queue"
)

// judge starts processes, does harm to them, and writes down what they say.
type judge struct {
	t       *testing.T
	cluster *qlocktest.Cluster
	recipe  string
	store   string
	dir     string
	seats   []*seat
	began   int64

	mu      sync.Mutex        // guards what follows
	spans   map[string]*span  // by process and id of the claim
	last    map[string]uint64 // the id of the last claim of each process
	broken  []string
	counts  map[string]int // of lines by kind
	lines   []line         // of the kinds working and effect
	changed chan struct{}  // closed at each line but still
}

// seat is a place for one process after the other.
type seat struct {
	id    string
	role  role
	count uint64
	proc  *child.Process
}

// newJudge starts a lock cluster, and n processes with a recipe. ids are those of their
// seats; two seats may have the same.
func newJudge(t *testing.T, recipe, store string, ids ...string) *judge {
	t.Helper()
	t.Logf("again: go test ./integration/recipes -run '^%s$' -recipes.for=%v -recipes.seed=%d -v", t.Name(), *runFor, *seed)
	j := &judge{
		t: t, cluster: qlocktest.StartCluster(t, 3, qlocktest.WithLease(lease)), recipe: recipe, store: store, dir: t.TempDir(), began: now(),
		spans: map[string]*span{}, last: map[string]uint64{}, counts: map[string]int{}, changed: make(chan struct{}),
	}
	t.Cleanup(func() {
		for _, s := range j.seats {
			s.proc.Kill()
		}
		if t.Failed() {
			for _, s := range j.seats {
				t.Logf("standard error of %s: %s", s.proc.Name, s.proc.LastWords())
			}
		}
	})
	for i, id := range ids {
		s := &seat{id: id, role: role{
			Recipe: recipe, ID: id, URLs: j.cluster.URL(), Store: store, Lease: j.cluster.Lease(), Seed: *seed + uint64(i)<<32,
		}}
		j.start(i, s)
		j.seats = append(j.seats, s)
	}
	return j
}

func (j *judge) start(i int, s *seat) {
	j.t.Helper()
	s.count++
	s.role.Sequence, s.role.Process = s.count, fmt.Sprintf("p%d-%d", i+1, s.count)
	name := s.role.Process
	p, err := launch(j.dir, s.role, func(l line) { j.hear(name, l) })
	if err != nil {
		j.t.Fatal(err)
	}
	s.proc = p
}

// lease is one that processes on a busy machine keep, as a rule.
const lease = 2 * time.Second

// key is the key of a claim in judge.spans.
func key(process string, id uint64) string { return fmt.Sprint(process, "/", id) }

func (j *judge) hear(process string, l line) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[l.Kind]++
	switch l.Kind {
	case claimed:
		j.last[process] = l.ID
		j.spans[key(process, l.ID)] = &span{l.Name, process, l.Token, l.At - j.began, l.At - j.began}
	case still:
		for _, id := range l.IDs {
			s := j.spans[key(process, id)]
			if s == nil {
				j.broken = append(j.broken, fmt.Sprintf("%s trusts the claim %d, which it has not made", process, id))
				continue
			}
			s.to = max(s.to, l.At-j.began)
		}
		return
	case broken:
		j.broken = append(j.broken, process+": "+l.Text)
	case working, effect:
		l.Text = process + " " + l.Text
		j.lines = append(j.lines, l)
	}
	close(j.changed)
	j.changed = make(chan struct{})
}

// await waits until ok, which is called with j.mu held whenever a process says something,
// and now and then.
func (j *judge) await(what string, ok func() bool) {
	j.t.Helper()
	limit := time.Now().Add(patience)
	for {
		j.mu.Lock()
		done, changed := ok(), j.changed
		j.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(limit) {
			j.t.Fatalf("not within %v: %s", patience, what)
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// faults kills and stops processes, and crashes nodes, for as long as the flag says, and
// then until there were enough claims, and some that were lost. All processes run and all
// nodes vote when it returns.
func (j *judge) faults(enough int) {
	j.t.Helper()
	h := fnv.New64a()
	_, _ = h.Write([]byte(j.recipe)) // a hash does not fail
	r := rand.New(rand.NewPCG(*seed, h.Sum64()))
	began := time.Now()
	enoughSeen := func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(j.spans) >= enough && j.counts[ended] >= 1
	}
	type track struct{ killed, stopped int }
	tracks := make([]track, len(j.seats))
	over := func() bool {
		return time.Since(began) > *runFor && (enoughSeen() || time.Since(began) > *runFor+patience)
	}
	var all sync.WaitGroup
	for i, s := range j.seats {
		r := rand.New(rand.NewPCG(r.Uint64(), 0))
		all.Go(func() {
			for {
				time.Sleep(between(r, lease/10, 2*lease))
				if over() {
					return
				}
				action := r.IntN(5)
				// A fault that hits a holder says more. On a slow machine it is waited for, and it takes longer
				// to hear of one.
				limit, late := time.Now().Add(lease), 2*beat
				if time.Since(began) > *runFor {
					limit, late = limit.Add(patience), lease/4
				}
				for action < 4 && !j.holds(s.proc.Name, late) && !over() && time.Now().Before(limit) {
					time.Sleep(time.Millisecond)
				}
				switch action {
				case 0, 1:
					s.proc.Kill()
					tracks[i].killed++
					j.start(i, s)
				case 2, 3:
					stop(s.proc)
					time.Sleep(lease + lease/4) // others have its locks, and it goes on
					resume(s.proc)
					tracks[i].stopped++
				default:
					stop(s.proc)
					time.Sleep(lease / 4) // and keeps its locks, as a rule
					resume(s.proc)
				}
			}
		})
	}
	nodes := j.cluster.Names()
	for time.Since(began) < *runFor {
		time.Sleep(between(r, lease/2, 2*lease))
		n := nodes[r.IntN(len(nodes))]
		j.cluster.Crash(j.t, n)
		time.Sleep(100 * time.Millisecond)
		j.cluster.Restart(j.t, n)
		j.cluster.WaitVotes(j.t)
	}
	all.Wait()
	var sum track
	for _, k := range tracks {
		sum.killed += k.killed
		sum.stopped += k.stopped
	}
	j.t.Logf("%d processes were killed and %d stopped for longer than the lease", sum.killed, sum.stopped)
	if !enoughSeen() {
		j.t.Error("too little happened for a test")
	}
}

// holds reports whether a process said just now, or not long ago, that it trusts that it has something.
func (j *judge) holds(process string, ago time.Duration) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id := j.last[process]; id > 0 && id+8 > j.last[process]; id-- {
		if s := j.spans[key(process, id)]; s != nil && now()-j.began-s.to < int64(ago) {
			return true
		}
	}
	return false
}

// progress waits until each process claims something more.
func (j *judge) progress() {
	j.t.Helper()
	j.mu.Lock()
	before := maps.Clone(j.last)
	j.mu.Unlock()
	j.await("every process gets something after the last fault", func() bool {
		return !slices.ContainsFunc(j.seats, func(s *seat) bool { return j.last[s.proc.Name] <= before[s.proc.Name] })
	})
}

// end ends the processes, and checks what they have said.
func (j *judge) end(limit int) {
	j.t.Helper()
	var all sync.WaitGroup
	errs := make([]error, len(j.seats))
	for i, s := range j.seats {
		all.Go(func() { errs[i] = s.proc.End("", patience) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		j.t.Error(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, b := range j.broken {
		j.t.Error(b)
	}
	spans := make([]span, 0, len(j.spans))
	for _, s := range j.spans {
		spans = append(spans, *s)
	}
	for _, f := range check(spans, limit) {
		j.t.Error(f)
	}
	j.t.Logf("%d claims, %d of them ended by themselves, %d calls failed", len(spans), j.counts[ended], j.counts[failed])
}

// Processes that use a recipe are killed, and stopped for longer than the lease, and nodes
// crash. What the recipe promises holds at all times, and in the end all goes on.
func TestProcesses(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{{"semaphore", testSemaphore}, {"lockall", testLockAll}, {"election", testElection}, {"members", testMembers}, {"partition", testPartition}, {"queue", testQueue}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t)
		})
	}
}

// At no moment do more processes trust that they have a permit than there are permits.
func testSemaphore(t *testing.T) {
	j := newJudge(t, "semaphore", "", "", "", "", "")
	j.faults(20)
	j.progress()
	j.end(permits)
}

// No two processes trust that they have a lock of the same name.
func testLockAll(t *testing.T) {
	j := newJudge(t, "lockall", "", "", "", "", "")
	j.faults(20)
	j.progress()
	j.end(0)
}

// No two processes trust that they lead. What a leader writes that was stopped for longer than the
// lease, and has not looked at its context since, is refused: the term of the next is higher.
func testElection(t *testing.T) {
	j := newJudge(t, "election", "", "", "", "", "")
	st := newStore(t, j.cluster.Connect(t))
	j.faults(8)
	j.progress()

	last := func(process, kinds, text string) (l line) { // with j.mu held
		for _, l := range slices.Backward(j.lines) {
			if strings.Contains(kinds, l.Kind) && strings.HasPrefix(l.Text, process+" "+text) {
				return l
			}
		}
		return line{}
	}
	for stopped := false; !stopped; {
		var s *seat
		j.await("a leader is about to write", func() bool {
			i := slices.IndexFunc(j.seats, func(s *seat) bool {
				l := last(s.proc.Name, working+effect, "")
				return l.Kind == working && now()-l.At < int64(lease/4)
			})
			if i >= 0 {
				s = j.seats[i]
			}
			return i >= 0
		})
		stop(s.proc)
		var before line
		j.await("another leads, and writes", func() bool {
			before = last(s.proc.Name, working+effect, "")
			return st.token(leader) > before.Token
		})
		// It may have been stopped after it had written, and before it had said so.
		item := strings.TrimPrefix(before.Text, s.proc.Name+" ")
		stopped = before.Kind == working && !st.has(item)
		resume(s.proc)
		if stopped {
			var after line
			j.await("the leader that was stopped writes", func() bool {
				after = last(s.proc.Name, effect, item+" ")
				return after.Text != ""
			})
			if !strings.HasSuffix(after.Text, " "+fenced) {
				t.Errorf("the store took the write of a leader that was stopped: %+v", after)
			}
		}
	}
	j.progress()
	j.end(0)
	st.mu.Lock()
	defer st.mu.Unlock()
	t.Logf("%d writes, and %d refused", len(st.taken), st.fenced)
	if st.fenced == 0 {
		t.Error("nothing was refused")
	}
	for i := 1; i < len(st.taken); i++ {
		if st.taken[i].Token < st.taken[i-1].Token {
			t.Errorf("the store took %+v after %+v", st.taken[i], st.taken[i-1])
		}
	}
}

// An id has one member at a time, though two processes want it. Who watches sees all that
// come and go: a member that is killed is gone when its lease is.
func testMembers(t *testing.T) {
	j := newJudge(t, "members", "", "a", "a", "b", "c")
	nc := j.cluster.Connect(t)
	g, err := members.New(j.cluster.LockerOn(t, nc), "g", members.WithEvents(nc))
	if err != nil {
		t.Fatal(err)
	}
	type change struct {
		members.Change
		at int64
	}
	var mu sync.Mutex // guards what follows
	var changes []change
	var present []members.Info
	ctx, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		for u, err := range g.Watch(ctx) {
			if err != nil {
				continue // no quorum for a while: Watch goes on
			}
			mu.Lock()
			for _, c := range u.Changes {
				changes = append(changes, change{c, now()})
			}
			present = u.Members
			mu.Unlock()
		}
	})
	defer watch.Wait()
	defer stop()
	seen := func(ids ...string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.EqualFunc(present, ids, func(m members.Info, id string) bool { return m.ID == id })
		}
	}

	j.faults(10)
	j.await("all ids are seen", seen("a", "b", "c"))

	// A death. What is reported in time is so by a clock that a busy machine stops for all:
	// the nodes and the watcher are in this process, which measures how much it does not run.
	c := j.seats[3]
	var token uint64
	j.await("c is a member, and seen as one", func() bool {
		mu.Lock()
		defer mu.Unlock()
		i := slices.IndexFunc(present, func(m members.Info) bool { return m.ID == "c" })
		s := j.spans[key(c.proc.Name, j.last[c.proc.Name])]
		if i < 0 || s == nil || s.token != present[i].Token || now()-j.began-s.to > int64(lease/4) {
			return false
		}
		token = s.token
		return true
	})
	late := lateness(ctx, &watch)
	c.proc.Kill()
	killed := now()
	gone := func(token uint64) (at int64) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range changes {
			if c.Member.Token == token && (c.Kind == members.Lost || c.Kind == members.Left) {
				return c.at
			}
		}
		return 0
	}
	j.await("the death is seen", func() bool { return gone(token) != 0 })
	took := time.Duration(gone(token) - killed)
	// That it is the lease and a round trip is for TestDeathIsNoticed of members, in virtual time.
	if slack := 2*j.cluster.Lease() + 4*late(); took > j.cluster.Lease()+slack {
		t.Errorf("a death was seen after %v, the lease is %v", took, j.cluster.Lease())
	}
	t.Logf("a death was seen after %v, the lease is %v", took, j.cluster.Lease())
	j.await("c is gone", seen("a", "b"))
	j.start(3, c)
	j.await("c is back", seen("a", "b", "c"))
	j.end(0)
	j.await("all are gone", seen())

	// Every membership that was seen ended once, and tokens rise.
	mu.Lock()
	defer mu.Unlock()
	last, here := map[string]uint64{}, map[string]bool{}
	for _, c := range changes {
		id, token := c.Member.ID, c.Member.Token
		switch c.Kind {
		case members.Joined:
			if here[id] || token <= last[id] {
				t.Errorf("%s joined with token %d after %d, present: %v", id, token, last[id], here[id])
			}
			here[id], last[id] = true, token
		case members.Left, members.Lost:
			if !here[id] || token != last[id] {
				t.Errorf("%s %s with token %d, present with %d: %v", id, c.Kind, token, last[id], here[id])
			}
			here[id] = false
		}
	}
	t.Logf("%d changes were seen", len(changes))
}

// lateness measures how late a timer of this process is, all in all.
func lateness(ctx context.Context, all *sync.WaitGroup) (sum func() time.Duration) {
	var mu sync.Mutex // guards late
	var late time.Duration
	all.Go(func() {
		for ctx.Err() == nil {
			at := time.Now()
			rest(ctx, beat)
			mu.Lock()
			late += max(0, time.Since(at)-2*beat)
			mu.Unlock()
		}
	})
	return func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return late
	}
}

// No two processes trust that they own a partition. In the end each has the owner that it
// should have.
func testPartition(t *testing.T) {
	j := newJudge(t, "partition", "", "a", "b", "c", "d")
	j.faults(20)
	g, err := partition.New(j.cluster.Locker(t), "g", partitions)
	if err != nil {
		t.Fatal(err)
	}
	want := partition.Assign([]string{"a", "b", "c", "d"}, partitions)
	last := time.Now()
	j.await("each partition has its owner", func() bool {
		owners, err := g.Owners(t.Context())
		if err != nil {
			return false
		}
		for p, o := range owners {
			if o.ID != want[p] {
				return false
			}
		}
		return true
	})
	t.Logf("each of %d partitions had its owner %v after the last fault, the lease is %v", partitions, time.Since(last).Round(time.Millisecond), j.cluster.Lease())
	j.end(0)
}

// store takes writes, unless it has seen a higher token of the key.
type store struct {
	mu     sync.Mutex // guards what follows
	tokens map[string]uint64
	taken  []write
	fenced int
}

// newStore answers on a connection.
func newStore(t *testing.T, nc *nats.Conn) *store {
	t.Helper()
	st := &store{tokens: map[string]uint64{}}
	if _, err := nc.Subscribe(effects, func(m *nats.Msg) {
		var w write
		if err := json.Unmarshal(m.Data, &w); err != nil {
			t.Errorf("the store got %q: %v", m.Data, err)
		}
		_ = m.Respond([]byte(st.take(w))) // or the process asks in vain, and tries again
	}); err != nil {
		t.Fatal(err)
	}
	return st
}

// token is the highest that the store has seen.
func (s *store) token(key string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[key]
}

// took reports whether it has taken a write with this token.
func (s *store) took(w write) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.taken, w)
}

// has reports whether it has taken a write of an item.
func (s *store) has(item string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.taken, func(w write) bool { return w.Item == item })
}

func (s *store) take(w write) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.Token < s.tokens[w.Key] {
		s.fenced++
		return fenced
	}
	s.tokens[w.Key] = w.Token
	s.taken = append(s.taken, w)
	return written
}

// The items of a key are done in their order, all of them, and only by who has the key's
// lock: the effect of a process that was stopped for longer than the lease is refused, as
// the store has seen the token of the next.
func testQueue(t *testing.T) {
	servers := startServers(t, 1)
	nc, js := servers.connect(t)
	st := newStore(t, nc)
	j := newJudge(t, "queue", servers.urls(), "", "", "")
	q, err := queue.Open(t.Context(), js, queueConfig(j.cluster.Lease()))
	if err != nil {
		t.Fatal(err)
	}

	var order []write
	enqueue := func(key, item string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := q.Enqueue(ctx, key, []byte(item), queue.WithID(key+"/"+item)); err != nil {
			t.Fatal(err)
		}
		order = append(order, write{Key: key, Item: item})
	}
	keys := []string{"a", "b", "c", "d", "e", "f"}
	over := make(chan struct{})
	var producer sync.WaitGroup
	producer.Go(func() {
		r := rand.New(rand.NewPCG(*seed, 99))
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			case <-time.After(between(r, 5*time.Millisecond, 40*time.Millisecond)):
			}
			st.mu.Lock()
			behind := len(order) - len(st.taken)
			st.mu.Unlock()
			if behind > 60 {
				continue // the workers are dead or stopped: what they leave must be done in the end
			}
			enqueue(keys[r.IntN(len(keys))], fmt.Sprint(i))
		}
	})
	j.faults(20)
	close(over)
	producer.Wait()

	// A handler that does not look at its context is stopped before its effect, and goes on
	// when another has done the item. On a slow machine it may be stopped too late: then the next
	// one waits for longer.
	for pause, stopped := 300*time.Millisecond, false; !stopped; pause *= 2 {
		item := fmt.Sprint(slow, " ", pause)
		enqueue(item, item)
		find := func(kind string, ok func(line) bool) (l line) { // with j.mu held
			if i := slices.IndexFunc(j.lines, func(l line) bool { return l.Kind == kind && l.Name == item && ok(l) }); i >= 0 {
				l = j.lines[i]
			}
			return l
		}
		var first line
		j.await("a handler has the item", func() bool {
			first = find(working, func(line) bool { return true })
			return first.Text != ""
		})
		name, _, _ := strings.Cut(first.Text, " ")
		i := slices.IndexFunc(j.seats, func(s *seat) bool { return s.proc.Name == name })
		if i < 0 {
			t.Fatalf("the handler of the process %q has the item", name)
		}
		stop(j.seats[i].proc)
		j.await("the item is done, by another process if not by this one", func() bool {
			return find(effect, func(l line) bool { return strings.HasSuffix(l.Text, " "+written) }).Text != ""
		})
		stopped = !st.took(write{item, item, first.Token})
		resume(j.seats[i].proc)
		if !stopped {
			continue
		}
		var after line
		j.await("the one that was stopped comes to its effect", func() bool {
			after = find(effect, func(l line) bool { return l.Token == first.Token && strings.HasPrefix(l.Text, name+" ") })
			return after.Text != ""
		})
		if !strings.HasSuffix(after.Text, " "+fenced) {
			t.Errorf("the store took the effect of a process that was stopped: %+v", after)
		}
	}

	j.await("all items are done", func() bool {
		s, err := q.Stats(t.Context())
		return err == nil && s.Items == 0
	})
	if s, err := q.Stats(t.Context()); err != nil || s.Dead != 0 {
		t.Errorf("%+v dead letters: %v", s, err)
	}
	j.end(0)
	st.mu.Lock()
	defer st.mu.Unlock()
	again := checkOrder(t, order, st.taken)
	t.Logf("%d items, %d effects more than that, %d refused", len(order), again, st.fenced)
}

// checkOrder compares what a store took with the items in their order: the first effect of
// each item of a key comes after those of all items before it, and none is missing. An item
// may be done again, before the next one of its key is.
func checkOrder(t *testing.T, order, taken []write) (again int) {
	t.Helper()
	want, got := map[string][]string{}, map[string][]string{}
	for _, w := range order {
		want[w.Key] = append(want[w.Key], w.Item)
	}
	for _, w := range taken {
		done := got[w.Key]
		if len(done) > 0 && done[len(done)-1] == w.Item {
			again++
			continue
		}
		got[w.Key] = append(done, w.Item)
	}
	for key, items := range want {
		if !slices.Equal(items, got[key]) {
			t.Errorf("items of %s were enqueued as\n%v and done as\n%v", key, items, got[key])
		}
	}
	for key := range got {
		if want[key] == nil {
			t.Errorf("items of %s were done, and never enqueued", key)
		}
	}
	return again
}

// The checks find what they are for.
func TestChecksFail(t *testing.T) {
	for _, spans := range [][]span{
		{{"a", "p", 1, 0, 10}, {"a", "q", 2, 10, 20}},
		{{"a", "p", 1, 0, 10}, {"b", "q", 2, 0, 10}, {"c", "r", 1, 5, 6}},
		{{"a", "p", 2, 0, 10}, {"a", "q", 1, 11, 20}},
		{{"a", "p", 1, 0, 10}, {"a", "q", 1, 11, 20}},
	} {
		if len(check(spans, 2)) == 0 {
			t.Errorf("nothing is found in %v", spans)
		}
	}
	if found := check([]span{{"a", "p", 1, 0, 10}, {"b", "p", 1, 0, 20}, {"a", "q", 2, 11, 20}}, 2); found != nil {
		t.Errorf("found what is not there: %v", found)
	}
	order := []write{{"a", "1", 0}, {"a", "2", 0}}
	for _, taken := range [][]write{
		{{"a", "2", 1}, {"a", "1", 1}},
		{{"a", "1", 1}},
		{{"a", "1", 1}, {"a", "2", 1}, {"a", "1", 2}},
		{{"a", "1", 1}, {"a", "2", 1}, {"b", "1", 2}},
	} {
		var found testing.T
		checkOrder(&found, order, taken)
		if !found.Failed() {
			t.Errorf("nothing is found in %v", taken)
		}
	}
	if again := checkOrder(t, order, []write{{"a", "1", 1}, {"a", "1", 2}, {"a", "2", 2}}); again != 1 {
		t.Errorf("%d were done again", again)
	}
	s := store{tokens: map[string]uint64{}}
	if s.take(write{"a", "1", 2}) != written || s.take(write{"a", "1", 1}) != fenced || s.take(write{"b", "1", 1}) != written || len(s.taken) != 2 {
		t.Errorf("the store took %+v", s.taken)
	}
}
