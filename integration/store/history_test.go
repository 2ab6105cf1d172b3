package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/store"
)

// A register, a counter, and requests that are done once.
type input struct {
	kind  string // put, get, request
	value string
	id    int
}

type output struct {
	unknown bool // it may have been done, or be done later
	value   string
	number  int64
}

type state struct {
	value  string
	number int64
	done   map[int]int64 // the answer to each request
}

var model = porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{}} },
	Step: func(st, in, out any) []any {
		s, i, o := st.(state), in.(input), out.(output)
		switch i.kind {
		case "put":
			next := state{i.value, s.number, s.done}
			if o.unknown {
				return []any{s, next}
			}
			return []any{next}
		case "get":
			if o.unknown || o.value == s.value && o.number == s.number {
				return []any{s}
			}
			return nil
		}
		if answer, ok := s.done[i.id]; ok {
			if o.unknown || o.number == answer {
				return []any{s}
			}
			return nil
		}
		next := state{s.value, s.number + 1, maps.Clone(s.done)}
		if next.done == nil {
			next.done = map[int]int64{}
		}
		next.done[i.id] = next.number
		switch {
		case o.unknown:
			return []any{s, next}
		case o.number == next.number:
			return []any{next}
		}
		return nil
	},
	Equal: func(a, b any) bool {
		x, y := a.(state), b.(state)
		return x.value == y.value && x.number == y.number && maps.Equal(x.done, y.done)
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
}

// history lets clients put, request and read, under locks that end while others still hold
// them and without locks, and judges what they saw.
func history(t *testing.T, replicas int, storage jetstream.StorageType, disturb time.Duration, during time.Duration) {
	urls := testworld.StartJetStream(t, replicas)
	nc, js := connect(t, urls[0])
	s := create(t, js, jetstream.KeyValueConfig{Bucket: "b", Replicas: replicas, Storage: storage})
	var (
		mu     sync.Mutex
		ops    []porcupine.Operation
		wg     sync.WaitGroup
		tokens atomic.Uint64
		start  = time.Now()
		seen   = map[string]int{}
		over   atomic.Bool
	)
	for client := range 6 {
		_, js := connect(t, urls[client%replicas])
		own := open(t, js, s.Bucket(), store.WithAnswerTimeout(300*time.Millisecond), store.WithTimeout(10*time.Second))
		wg.Go(func() {
			token := tokens.Add(1)
			for n := 0; !over.Load(); n++ {
				if rand.IntN(20) == 0 {
					token = tokens.Add(1)
				}
				v := own.With(lock{"l", token})
				var in input
				var out output
				var err error
				call := time.Since(start)
				switch rand.IntN(4) {
				case 0:
					in = input{kind: "put", value: fmt.Sprint(client, "/", n)}
					_, err = v.Put(context.Background(), "k", []byte(in.value))
				case 1:
					in = input{kind: "get"}
					var res store.Result
					res, err = own.Do(context.Background(), store.Get("k"), store.Get("n"))
					if e, absent := res.Get("k"); err == nil && absent == nil {
						out.value = string(e.Value())
					}
					if e, absent := res.Get("n"); err == nil && absent == nil {
						if _, err := fmt.Sscan(string(e.Value()), &out.number); err != nil {
							t.Error(err)
						}
					}
				default:
					// Each request comes from several clients, in any order.
					in = input{kind: "request", id: int(time.Since(start)/(20*time.Millisecond)) + rand.IntN(4)}
					do := own.Do
					if rand.IntN(2) == 0 {
						do = v.Do
					}
					var res store.Result
					res, err = do(context.Background(), store.Once(fmt.Sprint(in.id), time.Hour), store.Add("n", 1))
					out.number = res.Number("n")
				}
				end := time.Since(start)
				mu.Lock()
				result := "done"
				switch {
				case err == nil:
				case errors.Is(err, store.ErrDuplicate):
					result = "duplicate"
				case errors.Is(err, store.ErrUnknown):
					result, out = "unknown", output{unknown: true}
					end = math.MaxInt64 // it may still come
				case errors.Is(err, store.ErrFenced):
					result = "fenced"
				case errors.Is(err, context.DeadlineExceeded):
					result = "late" // nothing was done
				default:
					t.Errorf("%+v: %v", in, err)
				}
				seen[result]++
				if result != "fenced" && result != "late" {
					ops = append(ops, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(call), Return: int64(end)})
				}
				mu.Unlock()
				if errors.Is(err, store.ErrFenced) {
					token = tokens.Add(1)
				}
			}
		})
	}
	// On a slow machine it goes on until it has seen enough.
	few := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return seen["fenced"] == 0 || seen["duplicate"] == 0 || seen["done"] < 50
	}
	for time.Since(start) < during || few() && time.Since(start) < patience {
		time.Sleep(disturb)
		if replicas > 1 {
			stepDown(nc, s.Bucket())
		}
	}
	over.Store(true)
	wg.Wait()
	t.Logf("%d operations: %v", len(ops), seen)
	if few() {
		t.Error("this tests nothing")
	}
	switch porcupine.CheckOperationsTimeout(model.ToModel(), ops, time.Minute) {
	case porcupine.Illegal:
		t.Errorf("the history cannot be: no order of the operations explains the answers")
	case porcupine.Unknown:
		t.Log("not judged within a minute")
	}
}

func TestHistory(t *testing.T) {
	t.Run("one server, memory", func(t *testing.T) { history(t, 1, jetstream.MemoryStorage, 100*time.Millisecond, 2*time.Second) })
	t.Run("one server, file", func(t *testing.T) { history(t, 1, jetstream.FileStorage, 100*time.Millisecond, 2*time.Second) })
	t.Run("three servers, memory", func(t *testing.T) { history(t, 3, jetstream.MemoryStorage, 400*time.Millisecond, 3*time.Second) })
	t.Run("three servers, file", func(t *testing.T) { history(t, 3, jetstream.FileStorage, 400*time.Millisecond, 3*time.Second) })
}

// The judge finds what must not be.
func TestJudge(t *testing.T) {
	op := func(at int64, in input, out output) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: at, Return: at + 1}
	}
	for name, ops := range map[string][]porcupine.Operation{
		"a stale read":       {op(1, input{kind: "put", value: "a"}, output{}), op(3, input{kind: "get"}, output{})},
		"a lost increment":   {op(1, input{kind: "request", id: 1}, output{number: 1}), op(3, input{kind: "request", id: 2}, output{number: 1})},
		"done twice":         {op(1, input{kind: "request", id: 1}, output{number: 1}), op(3, input{kind: "get"}, output{number: 2})},
		"a repeat's answer":  {op(1, input{kind: "request", id: 1}, output{number: 1}), op(3, input{kind: "request", id: 1}, output{number: 2})},
		"done, and not done": {op(1, input{kind: "request", id: 1}, output{unknown: true}), op(3, input{kind: "get"}, output{number: 1}), op(5, input{kind: "get"}, output{})},
	} {
		if porcupine.CheckOperations(model.ToModel(), ops) {
			t.Errorf("%s is not found", name)
		}
	}
}
