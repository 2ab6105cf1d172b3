package wire

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"
)

// Events are written by hand, and read as what encoding/json would have written.
func TestEventsAreJSON(t *testing.T) {
	type event struct {
		Mode      string  `json:"mode"`
		Token     uint64  `json:"token"`
		Votes     int     `json:"votes,omitempty"`
		Nodes     int     `json:"nodes,omitempty"`
		Waited    float64 `json:"waited_ms"`
		Held      float64 `json:"held_ms,omitempty"`
		Note      string  `json:"note,omitempty"`
		EvictedBy string  `json:"evicted_by,omitempty"`
	}
	r := rand.New(rand.NewPCG(1, 2))
	random := func() float64 {
		return float64(time.Duration(r.Int64N(1<<(1+r.IntN(60)))).Microseconds()) / 1000
	}
	for range 10_000 {
		e := EventBody{Mode: "exclusive", Token: r.Uint64N(1 << 53), Votes: r.IntN(3), Nodes: r.IntN(4), WaitedMS: random(), HeldMS: random()}
		if r.IntN(4) == 0 {
			e.Note, e.EvictedBy = "a \"note\"\u2028 of größe", "ops"
		}
		if r.IntN(4) == 0 {
			e.HeldMS = 0
		}
		want, err := json.Marshal(event{e.Mode, e.Token, e.Votes, e.Nodes, e.WaitedMS, e.HeldMS, e.Note, e.EvictedBy})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(AppendEvent(nil, &e)); got != string(want) {
			t.Fatalf("%s, encoding/json writes %s", got, want)
		}
	}
}
