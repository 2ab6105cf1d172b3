package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/store"
)

// transfer is a transaction: it reads keys and writes one.
type transfer struct {
	reads        []string
	write, value string
}

// serial judges whole transactions: each took effect at one moment between call and return, so
// that it has read what those before it have written.
var serial = porcupine.Model{
	Init: func() any { return map[string]string{} },
	Step: func(st, in, out any) (bool, any) {
		s, i, got := st.(map[string]string), in.(transfer), out.(map[string]string)
		for _, k := range i.reads {
			if s[k] != got[k] {
				return false, s
			}
		}
		next := maps.Clone(s)
		next[i.write] = i.value
		return true, next
	},
	Equal:             func(a, b any) bool { return maps.Equal(a.(map[string]string), b.(map[string]string)) },
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
}

// Transactions under two locks and transactions without a lock read what the others write. They
// are serializable if those under a lock use Unchanged for all but the keys that are written
// under that lock alone.
func TestTransactionsOfAllKindsAreSerializable(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) {
			urls := testworld.StartJetStream(t, replicas)
			_, js := connect(t, urls[0])
			s := create(t, js, jetstream.KeyValueConfig{Bucket: "b", Replicas: replicas, Storage: jetstream.MemoryStorage})
			const each = 60
			var (
				mu    sync.Mutex
				ops   []porcupine.Operation
				wg    sync.WaitGroup
				start = time.Now()
			)
			for client, own := range []string{"a", "b", "", ""} {
				_, js := connect(t, urls[client%replicas])
				// What has become of a write without an answer may remain unknown.
				mine := open(t, js, s.Bucket(), store.WithAnswerTimeout(patience/4))
				wg.Go(func() {
					for n := range each {
						write := own
						if own == "" {
							write = []string{"c", "d"}[rand.IntN(2)]
						}
						i := transfer{write: write, value: fmt.Sprint(client, "/", n)}
						var todo []store.Op
						for _, k := range []string{"a", "b", "c", "d"} {
							if rand.IntN(2) == 0 {
								continue
							}
							i.reads = append(i.reads, k)
							if own == "" || k == own {
								todo = append(todo, store.Get(k))
							} else {
								todo = append(todo, store.Unchanged(k))
							}
						}
						do := mine.Do
						if own != "" {
							do = mine.With(lock{own, 1}).Do
						}
						call := time.Since(start)
						ctx, cancel := context.WithTimeout(context.Background(), patience)
						res, err := do(ctx, append(todo, store.Put(write, []byte(i.value)))...)
						cancel()
						if err != nil {
							t.Error(err)
							return
						}
						out := map[string]string{}
						for _, k := range i.reads {
							if e, err := res.Get(k); err == nil {
								out[k] = string(e.Value())
							} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
								t.Error(err)
							}
						}
						end := time.Since(start)
						mu.Lock()
						ops = append(ops, porcupine.Operation{ClientId: client, Input: i, Output: out, Call: int64(call), Return: int64(end)})
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			switch porcupine.CheckOperationsTimeout(serial, ops, time.Minute) {
			case porcupine.Illegal:
				var all strings.Builder
				for _, o := range ops {
					fmt.Fprintf(&all, "%d to %d: %s\n", o.Call, o.Return, serial.DescribeOperation(o.Input, o.Output))
				}
				t.Errorf("no order of the transactions explains what they have read:\n%s", all.String())
			case porcupine.Unknown:
				t.Log("not judged within a minute")
			}
		})
	}
}
