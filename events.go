package qlock

import (
	"fmt"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// EventKind is what became of a lock.
type EventKind string

const (
	EventAcquired EventKind = subject.Acquired
	EventReleased EventKind = subject.Released
	EventLost     EventKind = subject.Lost
)

// Event is what a Locker publishes for observers on
// lock.<cluster>.event.<acquired|released|lost>.<client>.<resource>. The protocol
// does not read events, and nothing waits for them: they may be lost, or come
// late. A lock that is passed on within a Locker is acquired once, by its first
// holder, and released once, by its last. Subscribe to EventSubject, and read what
// comes with ParseEvent.
type Event struct {
	// From the subject.
	Cluster string    `json:"-"`
	Kind    EventKind `json:"-"`
	Client  string    `json:"-"`
	Name    string    `json:"-"`

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
	b, err := wire.DecodeEvent(body)
	if err != nil {
		return nil, fmt.Errorf("qlock: event on %s: %w", quote(subject), err)
	}
	return &Event{
		Cluster: s.Cluster, Kind: EventKind(s.Verb), Client: s.Client, Name: s.Name, Mode: b.Mode, Token: b.Token, Votes: b.Votes, Nodes: b.Nodes,
		Waited: b.WaitedMS, Held: b.HeldMS, Note: b.Note, EvictedBy: b.EvictedBy,
	}, nil
}
