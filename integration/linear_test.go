package integration

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

const recordedClients = 8 // at most, in a history

// deed is what was done to a lock by one of its holders, who are numbered.
type deed struct {
	kind   deedKind
	name   string
	client int
	holder int
}

type deedKind uint8

const (
	locking deedKind = iota
	rlocking
	ending // by unlocking, loss or death
)

// outcome of locking; ending has none, its time says it all.
type outcome struct {
	granted bool
	token   uint64
}

// locked is the state of the model: who holds, and what tokens there were.
type locked struct {
	writer    int // 0: nobody
	readers   [recordedClients]int
	exclusive uint64 // highest token of a writer
	any       uint64 // highest token of anybody
}

// model is a lock for many readers or one writer, with tokens: a writer's is
// above all before it, a reader's not below those of the writers before it.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byName := map[string][]porcupine.Operation{}
		for _, op := range history {
			name := op.Input.(deed).name
			byName[name] = append(byName[name], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range byName {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return locked{} },
	Step: func(state, input, output any) (bool, any) {
		s, d := state.(locked), input.(deed)
		if d.kind == ending {
			switch d.holder {
			case s.writer:
				s.writer = 0
			case s.readers[d.client]:
				s.readers[d.client] = 0
			default:
				return false, s
			}
			return true, s
		}
		o := output.(outcome)
		if !o.granted {
			return true, s
		}
		if s.writer != 0 {
			return false, s
		}
		if d.kind == rlocking {
			if s.readers[d.client] != 0 || o.token < s.exclusive {
				return false, s
			}
			s.readers[d.client] = d.holder
			s.any = max(s.any, o.token)
			return true, s
		}
		if s.readers != [recordedClients]int{} || o.token <= s.any {
			return false, s
		}
		s.writer, s.exclusive, s.any = d.holder, o.token, o.token
		return true, s
	},
	DescribeOperation: func(input, output any) string {
		d := input.(deed)
		switch d.kind {
		case ending:
			return fmt.Sprintf("%d ends", d.holder)
		case rlocking:
			return fmt.Sprintf("%d reads %+v", d.holder, output)
		}
		return fmt.Sprintf("%d writes %+v", d.holder, output)
	},
	DescribeState: func(state any) string { return fmt.Sprintf("%+v", state) },
}

// history records what clients do and when.
type history struct {
	start time.Time

	mu      sync.Mutex
	ops     []porcupine.Operation
	holders int
}

func (h *history) now() int64 { return time.Since(h.start).Nanoseconds() }

func (h *history) holder() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holders++
	return h.holders
}

func (h *history) add(d deed, o outcome, call, ret int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: d.client, Input: d, Output: o, Call: call, Return: ret})
}

// wait until a history is checked; a linearizable one takes far less.
const checking = 2 * time.Minute

func TestLinearizable(t *testing.T) {
	t.Parallel()
	const lease = time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	all := urls(servers...) // a server that is down has no address
	h := &history{start: time.Now()}
	names := []string{"x", "y", "z"}
	stop := make(chan struct{})
	var work sync.WaitGroup
	var counts recorded
	var keep atomic.Bool // what is held now is kept until it is lost
	for i := range 6 {
		work.Go(func() { h.client(t, i, all, names, stop, &keep, &counts) })
	}
	halt := sync.OnceFunc(func() {
		close(stop)
		work.Wait()
	})
	defer halt()

	r := rand.New(rand.NewPCG(*seed, 3))
	some := func() { // goes on until some locks more are granted
		n := counts.get("granted") + 50
		await(t, "locks are granted", func() bool { return counts.get("granted") >= n })
	}
	some()
	for range *rounds {
		order := r.Perm(3)
		for _, i := range order[:2] {
			qlocktest.CrashServer(t, servers[i])
			some()
			restart(t, servers[i])
			c.WaitVotes(t)
			some()
		}
		// Two at once: what is held is lost.
		kept := counts.get("kept")
		keep.Store(true)
		await(t, "a lock is kept", func() bool { return counts.get("kept") > kept })
		for _, i := range order[1:] {
			qlocktest.CrashServer(t, servers[i])
		}
		await(t, "what was kept is lost", func() bool { return counts.get("let go") == counts.get("kept") })
		keep.Store(false)
		for _, i := range order[1:] {
			restart(t, servers[i])
		}
		c.WaitVotes(t)
		some()
	}
	halt()

	began := time.Now()
	result, info := porcupine.CheckOperationsVerbose(model, h.ops, checking)
	t.Logf("%d operations: %v, checked in %v", len(h.ops), &counts, time.Since(began))
	if result != porcupine.Ok {
		file := filepath.Join(t.ArtifactDir(), "history.html")
		f, err := os.Create(file)
		must(t, err)
		defer func() { _ = f.Close() }()
		must(t, porcupine.Visualize(model, info, f))
		t.Errorf("the history is not linearizable: %s; see %s", result, file)
	}

	// The checker would have seen it: with the tokens of two writers exchanged the
	// same history is none.
	bad := append([]porcupine.Operation(nil), h.ops...)
	var writers []int
	for i, op := range bad {
		if d := op.Input.(deed); d.name == "x" && d.kind == locking && op.Output.(outcome).granted {
			writers = append(writers, i)
		}
	}
	i, j := writers[len(writers)/3], writers[2*len(writers)/3]
	bad[i].Output, bad[j].Output = bad[j].Output, bad[i].Output
	if result := porcupine.CheckOperationsTimeout(model, bad, checking); result != porcupine.Illegal {
		t.Errorf("with two tokens exchanged the history is %s", result)
	}
}

// recorded counts what clients met with.
type recorded struct {
	mu sync.Mutex
	of map[string]int
}

func (c *recorded) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]int{}
	}
	c.of[what]++
}

func (c *recorded) get(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[what]
}

func (c *recorded) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.of)
}

// client takes locks and gives them back, and dies now and then with one in its
// hands, to begin anew.
func (h *history) client(t *testing.T, id int, urls string, names []string, stop chan struct{}, keep *atomic.Bool, counts *recorded) {
	r := rand.New(rand.NewPCG(*seed, uint64(100+id)))
	var nc *nats.Conn
	var l *qlock.Locker
	end := func() {
		if nc != nil {
			nc.Close() // first: a death releases nothing
			_ = l.Close()
			nc, l = nil, nil
		}
	}
	defer end()
	for {
		select {
		case <-stop:
			return
		default:
		}
		if l == nil {
			var err error
			// One server is always up, but each may be down when its turn comes.
			for deadline := time.Now().Add(patience); nc == nil; {
				nc, err = nats.Connect(urls, nats.Timeout(patience), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0), quiet)
				if err != nil && time.Now().After(deadline) {
					t.Error(err)
					return
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			l, err = qlock.New(ctx, nc, qlock.WithName(fmt.Sprintf("client-%d", id)))
			cancel()
			if err != nil {
				nc.Close()
				nc = nil
				t.Error(err)
				return
			}
		}
		d := deed{kind: locking, name: names[r.IntN(len(names))], client: id, holder: h.holder()}
		call := l.Lock
		switch r.IntN(8) {
		case 0:
			call = l.TryLock
		case 1:
			d.kind, call = rlocking, l.TryRLock
		case 2, 3:
			d.kind, call = rlocking, l.RLock
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		called := h.now()
		k, err := call(ctx, d.name)
		returned := h.now()
		cancel()
		if err != nil {
			h.add(d, outcome{}, called, returned)
			counts.add("not granted")
			if !errors.Is(err, qlock.ErrHeld) && !errors.Is(err, qlock.ErrNoQuorum) {
				t.Errorf("client %d: %v", id, err)
			}
			continue
		}
		h.add(d, outcome{true, k.Token()}, called, returned)
		counts.add("granted")
		select {
		case <-time.After(time.Duration(r.IntN(10)) * time.Millisecond):
		case <-k.Context().Done():
		}
		kept := keep.Load()
		if kept {
			counts.add("kept")
			select {
			case <-k.Context().Done():
			case <-time.After(patience):
				t.Errorf("client %d: lock %s is never lost", id, d.name)
			}
			counts.add("let go")
		}
		d.kind = ending
		called = h.now()
		if !kept && r.IntN(100) == 0 {
			end()
			h.add(d, outcome{}, called, math.MaxInt64) // when its lease is over, whenever that is
			counts.add("died")
			continue
		}
		if err := k.Unlock(t.Context()); err != nil {
			called = returned // it was lost some time after it was granted
			counts.add("lost")
		}
		h.add(d, outcome{}, called, h.now())
	}
}

// The model takes what a lock may do and rejects what it must not.
func TestModel(t *testing.T) {
	t.Parallel()
	type ops = []porcupine.Operation
	op := func(kind deedKind, holder int, token uint64, call, ret int64) porcupine.Operation {
		return porcupine.Operation{
			ClientId: holder, Input: deed{kind, "x", holder, holder}, Output: outcome{kind != ending, token}, Call: call, Return: ret,
		}
	}
	write := func(holder int, token uint64, call, ret int64) porcupine.Operation {
		return op(locking, holder, token, call, ret)
	}
	read := func(holder int, token uint64, call, ret int64) porcupine.Operation {
		return op(rlocking, holder, token, call, ret)
	}
	unlock := func(holder int, call, ret int64) porcupine.Operation { return op(ending, holder, 0, call, ret) }
	other := func(o porcupine.Operation) porcupine.Operation {
		d := o.Input.(deed)
		d.name = "y"
		o.Input = d
		return o
	}
	refused := write(3, 0, 12, 13)
	refused.Output = outcome{}

	for name, c := range map[string]struct {
		history ops
		want    porcupine.CheckResult
	}{
		"one after the other":         {ops{write(1, 10, 0, 1), unlock(1, 10, 11), write(2, 20, 5, 20), unlock(2, 30, 31)}, porcupine.Ok},
		"on two names":                {ops{write(1, 10, 0, 1), other(write(2, 5, 2, 3)), unlock(1, 10, 11), other(unlock(2, 12, 13))}, porcupine.Ok},
		"readers together":            {ops{read(1, 10, 0, 1), read(2, 9, 2, 3), unlock(1, 10, 11), unlock(2, 12, 13), write(3, 11, 5, 20)}, porcupine.Ok},
		"refused while held":          {ops{write(1, 10, 0, 1), refused, unlock(1, 20, 21)}, porcupine.Ok},
		"lost, and then another's":    {ops{write(1, 10, 0, 1), write(2, 20, 5, 15), unlock(1, 1, 20), unlock(2, 30, 31)}, porcupine.Ok},
		"died, and then another's":    {ops{write(1, 10, 0, 1), unlock(1, 5, math.MaxInt64), write(2, 20, 10, 15), unlock(2, 30, 31)}, porcupine.Ok},
		"two writers":                 {ops{write(1, 10, 0, 1), write(2, 20, 2, 5), unlock(1, 10, 11), unlock(2, 30, 31)}, porcupine.Illegal},
		"two writers on another name": {ops{write(3, 1, 0, 1), unlock(3, 2, 3), other(write(1, 10, 0, 1)), other(write(2, 20, 2, 5)), other(unlock(1, 10, 11)), other(unlock(2, 30, 31))}, porcupine.Illegal},
		"a writer beside a reader":    {ops{read(1, 10, 0, 1), write(2, 20, 2, 5), unlock(1, 10, 11), unlock(2, 30, 31)}, porcupine.Illegal},
		"a reader beside a writer":    {ops{write(1, 10, 0, 1), read(2, 20, 2, 5), unlock(1, 10, 11), unlock(2, 30, 31)}, porcupine.Illegal},
		"another's before the death":  {ops{write(1, 10, 0, 1), write(2, 20, 2, 4), unlock(1, 5, math.MaxInt64), unlock(2, 30, 31)}, porcupine.Illegal},
		"the same token":              {ops{write(1, 10, 0, 1), unlock(1, 2, 3), write(2, 10, 4, 5), unlock(2, 6, 7)}, porcupine.Illegal},
		"a falling token":             {ops{write(1, 10, 0, 1), unlock(1, 2, 3), write(2, 9, 4, 5), unlock(2, 6, 7)}, porcupine.Illegal},
		"a reader's falling token":    {ops{write(1, 10, 0, 1), unlock(1, 2, 3), read(2, 9, 4, 5), unlock(2, 6, 7)}, porcupine.Illegal},
		"a writer's, as a reader's":   {ops{read(1, 10, 0, 1), unlock(1, 2, 3), write(2, 10, 4, 5), unlock(2, 6, 7)}, porcupine.Illegal},
		"an end without a beginning":  {ops{unlock(1, 2, 3)}, porcupine.Illegal},
	} {
		t.Run(name, func(t *testing.T) {
			if got := porcupine.CheckOperationsTimeout(model, c.history, checking); got != c.want {
				t.Errorf("the history is %s, want %s", got, c.want)
			}
		})
	}
}
