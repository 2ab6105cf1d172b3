package qlock

import (
	"encoding/json"
	"time"
)

// Event is what a Locker publishes for observers on
// lock.<cluster>.event.<acquired|released|lost>.<client>.<resource>. The protocol
// does not read events, and nothing waits for them: they may be lost, or come
// late.
type Event struct {
	Mode   string  `json:"mode"` // "exclusive" or "shared"
	Token  uint64  `json:"token"`
	Votes  int     `json:"votes,omitempty"` // acquired: that it was held by
	Nodes  int     `json:"nodes,omitempty"`
	Waited float64 `json:"waited_ms"`         // from asking to holding
	Held   float64 `json:"held_ms,omitempty"` // released, lost
}

func (l *Locker) event(kind string, k *Lock) {
	if !l.opt.events {
		return
	}
	e := Event{Mode: k.mode.String(), Token: k.token, Waited: ms(k.since.Sub(k.asked))}
	if kind == "acquired" {
		e.Votes, e.Nodes = k.votes, k.nodes
	} else {
		e.Held = ms(time.Since(k.since))
	}
	body, err := json.Marshal(e)
	if err != nil {
		return // numbers and a constant always marshal
	}
	l.out.message(eventSubject(l.opt.cluster, kind, l.opt.name, k.resource), body)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
