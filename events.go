package qlock

import (
	"fmt"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// EventKind tells what happened to a lock.
type EventKind string

const (
	EventAcquired EventKind = subject.Acquired // the lock was granted
	EventReleased EventKind = subject.Released // the lock was released
	EventLost     EventKind = subject.Lost     // the lock was lost or evicted
)

// Event is a message that a Locker publishes for observers on
// lock.<cluster>.event.<acquired|released|lost>.<client>.<resource>. The protocol does not use
// events and does not wait for them: they may be lost or arrive late. If a Locker passes a lock on
// among its goroutines, its first holder publishes one acquired event, and its last holder one
// released event. Subscribe to EventSubject, and decode the messages with ParseEvent.
type Event struct {
	// The subject carries these.
	Cluster string    `json:"-"`
	Kind    EventKind `json:"-"`
	Client  string    `json:"-"`
	Name    string    `json:"-"`

	Mode      string  `json:"mode"` // "exclusive" or "shared"
	Token     uint64  `json:"token"`
	Votes     int     `json:"votes,omitempty"` // EventAcquired: number of votes for the lock
	Nodes     int     `json:"nodes,omitempty"`
	Waited    float64 `json:"waited_ms"`            // milliseconds from the request to the grant
	Held      float64 `json:"held_ms,omitempty"`    // EventReleased, EventLost: milliseconds held
	Note      string  `json:"note,omitempty"`       // EventAcquired: see WithNote
	EvictedBy string  `json:"evicted_by,omitempty"` // EventLost: the client that evicted it
}

// ParseEvent decodes a message that was received on an EventSubject. Any client that may publish
// there can send such a message, so ParseEvent returns an error if it is not an event.
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
