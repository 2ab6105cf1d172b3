package qlock

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/proto"
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

// EventSubject is the NATS subject of a cluster's events of locks whose names match
// the pattern: names as they stand in subjects (docs/wire.md), * for one token, and
// > at the end for all that follow. An empty pattern is all.
func EventSubject(cluster, pattern string) (string, error) {
	if err := checkToken("cluster", cluster); err != nil {
		return "", err
	}
	if pattern == "" {
		pattern = ">"
	}
	if !proto.IsPattern(pattern) {
		return "", fmt.Errorf("%w: the pattern %s", ErrInvalidName, quote(pattern))
	}
	return "lock." + cluster + ".event.*.*." + pattern, nil
}

// ParseEvent reads a message that came for an EventSubject. Events may come from
// anybody who may publish there; what is no event is an error.
func ParseEvent(subject string, body []byte) (*Event, error) {
	part := strings.SplitN(subject, ".", 6)
	if len(part) < 6 || part[0] != "lock" || part[2] != "event" {
		return nil, fmt.Errorf("qlock: %s is no subject of an event", quote(subject))
	}
	b, err := proto.DecodeEvent(body)
	if err != nil {
		return nil, fmt.Errorf("qlock: event on %s: %w", quote(subject), err)
	}
	e := &Event{
		Cluster: part[1], Kind: part[3], Client: part[4], Mode: b.Mode, Token: b.Token, Votes: b.Votes, Nodes: b.Nodes,
		Waited: b.WaitedMS, Held: b.HeldMS, Note: b.Note, EvictedBy: b.EvictedBy,
	}
	if err := errors.Join(checkToken("cluster", e.Cluster), checkToken("client", e.Client)); err != nil {
		return nil, fmt.Errorf("event on %s: %w", quote(subject), err)
	}
	if e.Name, err = proto.DecodeName(part[5]); err != nil {
		return nil, fmt.Errorf("event on %s: %w", quote(subject), err)
	}
	if e.Kind != "acquired" && e.Kind != "released" && e.Kind != "lost" {
		return nil, fmt.Errorf("qlock: event on %s: %s is none that is known", quote(subject), quote(e.Kind))
	}
	return e, nil
}

func (l *Locker) event(kind string, k *Lock) {
	if !l.opt.events {
		return
	}
	e := Event{Mode: k.mode.String(), Token: k.token, Waited: ms(k.since.Sub(k.asked))}
	if kind == "acquired" {
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
		b = appendJSONString(append(b, `,"note":`...), e.Note)
	}
	if e.EvictedBy != "" {
		b = appendJSONString(append(b, `,"evicted_by":`...), e.EvictedBy)
	}
	return append(b, '}')
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func appendJSONString(b []byte, s string) []byte {
	text, err := json.Marshal(s)
	if err != nil { // a string always marshals
		return append(b, `""`...)
	}
	return append(b, text...)
}
