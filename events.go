package qlock

import (
	"fmt"
	"strconv"
	"time"

	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/subject"
)

// Event is what a Locker publishes for observers on
// lock.<cluster>.event.<acquired|released|lost>.<client>.<resource>. The protocol
// does not read events, and nothing waits for them: they may be lost, or come
// late. A lock that is passed on within a Locker is acquired once, by its first
// holder, and released once, by its last. Subscribe to EventSubject, and read what
// comes with ParseEvent.
type Event struct {
	// From the subject; Kind is "acquired", "released" or "lost".
	Cluster, Kind, Client, Name string `json:"-"`

	Mode      string  `json:"mode"` // "exclusive" or "shared"
	Token     uint64  `json:"token"`
	Votes     int     `json:"votes,omitempty"` // acquired: that it was held by
	Nodes     int     `json:"nodes,omitempty"`
	Waited    float64 `json:"waited_ms"`            // from asking to holding
	Held      float64 `json:"held_ms,omitempty"`    // released, lost
	Note      string  `json:"note,omitempty"`       // acquired
	EvictedBy string  `json:"evicted_by,omitempty"` // lost: the client that asked for it
}

// ParseEvent reads a message that came for an EventSubject. Events may come from
// anybody who may publish there; what is no event is an error.
func ParseEvent(subject string, body []byte) (*Event, error) {
	s, err := ParseSubject(subject)
	if err != nil {
		return nil, err
	}
	if !s.isEvent() {
		return nil, fmt.Errorf("qlock: subject %s is not the subject of an event", quote(subject))
	}
	b, err := proto.DecodeEvent(body)
	if err != nil {
		return nil, fmt.Errorf("qlock: event on %s: %w", quote(subject), err)
	}
	return &Event{
		Cluster: s.Cluster, Kind: s.Verb, Client: s.Client, Name: s.Name, Mode: b.Mode, Token: b.Token, Votes: b.Votes, Nodes: b.Nodes,
		Waited: b.WaitedMS, Held: b.HeldMS, Note: b.Note, EvictedBy: b.EvictedBy,
	}, nil
}

func (l *Locker) event(kind string, k *Lock) {
	if !l.opt.events {
		return
	}
	e := Event{Mode: k.mode.String(), Token: k.token, Waited: ms(k.since.Sub(k.asked))}
	if kind == subject.Acquired {
		e.Votes, e.Nodes, e.Note = k.votes, k.nodes, k.note
	} else {
		e.Held = ms(time.Since(k.since))
	}
	if by, ok := k.lost.(*evictedError); ok {
		e.EvictedBy = by.By
	}
	l.out.event(l.opt.cluster, kind, l.opt.name, k.resource, &e)
}

// appendJSON does what encoding/json does, for two events with each lock.
func (e *Event) appendJSON(b []byte) []byte {
	b = append(append(append(b, `{"mode":"`...), e.Mode...), `","token":`...)
	b = strconv.AppendUint(b, e.Token, 10)
	if e.Votes != 0 {
		b = strconv.AppendInt(append(b, `,"votes":`...), int64(e.Votes), 10)
	}
	if e.Nodes != 0 {
		b = strconv.AppendInt(append(b, `,"nodes":`...), int64(e.Nodes), 10)
	}
	b = strconv.AppendFloat(append(b, `,"waited_ms":`...), e.Waited, 'f', -1, 64)
	if e.Held != 0 {
		b = strconv.AppendFloat(append(b, `,"held_ms":`...), e.Held, 'f', -1, 64)
	}
	if e.Note != "" {
		b = proto.AppendQuoted(append(b, `,"note":`...), e.Note)
	}
	if e.EvictedBy != "" {
		b = proto.AppendQuoted(append(b, `,"evicted_by":`...), e.EvictedBy)
	}
	return append(b, '}')
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
