package qlock

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"
)

// Events are written by hand, and read as what encoding/json would have written.
func TestEventsAreJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() float64 { return ms(time.Duration(r.Int64N(1 << (1 + r.IntN(60))))) }
	for range 10_000 {
		e := Event{Mode: exclusive.String(), Token: r.Uint64N(1 << 53), Votes: r.IntN(3), Nodes: r.IntN(4), Waited: random(), Held: random()}
		if r.IntN(4) == 0 {
			e.Note, e.EvictedBy = "a \"note\"\u2028 of größe", "ops"
		}
		if r.IntN(4) == 0 {
			e.Held = 0
		}
		want, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(e.appendJSON(nil)); got != string(want) {
			t.Fatalf("%s, encoding/json writes %s", got, want)
		}
	}
}
