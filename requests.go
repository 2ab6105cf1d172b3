package qlock

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// RequestKind tells what a Request asks for.
type RequestKind string

const (
	RequestAcquire RequestKind = subject.Acquire // asks for a lock
	RequestRelease RequestKind = subject.Release // releases a lock, or a place in the queue
	RequestYield   RequestKind = subject.Yield   // returns a vote to a node, for an older request
)

// Request is a request of a client to the nodes, as an observer receives it. Subscribe to the
// RequestSubjects, and decode the messages with ParseRequests. Clients repeat requests: all
// requests with the same Claim belong to one attempt to acquire a lock. Events (ParseEvent) tell
// the outcome of the attempt.
type Request struct {
	Cluster string
	Kind    RequestKind
	Client  string
	Name    string // of the lock
	Encoded string // Name in the form that it has in subjects

	Claim string // identifies the attempt, as ClaimInfo.ID does

	// RequestAcquire has these.
	Shared bool
	Held   bool      // the client already holds the lock, and asks a node that may not know
	Since  time.Time // start of the wait, by the client's clock
	Note   string

	Node string // RequestYield, or RequestAcquire for one node only: the name of that node
}

// RequestSubjects returns the NATS subjects of a cluster's requests for locks whose names match the
// pattern, which has the form of the pattern of EventSubject. The last subject is that of messages
// with several requests, which have the names in their bodies. So filter the requests that
// ParseRequests returns for that subject with MatchName. Errors are those of EventSubject.
func RequestSubjects(cluster, pattern string) ([]string, error) {
	if _, err := EventSubject(cluster, pattern); err != nil {
		return nil, err
	}
	if pattern == "" {
		pattern = subject.Rest
	}
	var all []string
	for _, verb := range []string{subject.Acquire, subject.Release, subject.Yield} {
		all = append(all, subject.Request(cluster, verb, subject.Any, pattern))
	}
	return append(all, subject.Batch(cluster, subject.Any)), nil
}

// MatchName reports whether the name of a lock (Request.Name) matches a pattern. It compares as
// NATS would with the name in the form that it has in subjects. An empty pattern matches all names.
func MatchName(pattern, name string) bool {
	return pattern == "" || subject.Matches(pattern, name)
}

// ParseRequests decodes a message that was received on one of the RequestSubjects. Any client that
// may publish there can send such a message. If it cannot be decoded, ParseRequests returns an
// error; in a message with several requests, it leaves out those that cannot be decoded. It also
// leaves out requests that are not about a single lock.
func ParseRequests(on string, body []byte) ([]Request, error) {
	p, ok := subject.Split(on)
	if !ok || p.Family != subject.FamilyNode {
		return nil, fmt.Errorf("qlock: subject %s is not the subject of a request", quote(on))
	}
	if p.IsBatch() {
		list, err := wire.DecodeBatch(nil, p.Client, body)
		out := make([]Request, 0, len(list))
		for _, r := range list {
			encoded, _ := subject.EncodeName(r.Resource) // the decoder has checked the name
			out = appendRequest(out, p.Cluster, encoded, &r)
		}
		if len(out) == 0 && err != nil {
			return nil, fmt.Errorf("qlock: requests on %s: %w", quote(on), err)
		}
		return out, nil
	}
	r, err := wire.DecodeRequest(wire.Verb(p.Verb), p.Client, p.Resource, body)
	if err != nil {
		return nil, fmt.Errorf("qlock: request on %s: %w", quote(on), err)
	}
	// If this fails, no client of this package sent the request, and the name stays encoded.
	if name, err := subject.DecodeName(p.Resource); err == nil {
		r.Resource = name
	}
	return appendRequest(nil, p.Cluster, p.Resource, r), nil
}

func appendRequest(out []Request, cluster, encoded string, r *wire.Request) []Request {
	switch r.Verb {
	case wire.Acquire, wire.Release, wire.Yield:
	default:
		return out
	}
	q := Request{
		Cluster: cluster, Kind: RequestKind(r.Verb), Client: r.Client, Name: r.Resource, Encoded: encoded, Claim: r.Claim.Text(), Node: r.Node,
	}
	if r.Verb == wire.Acquire {
		q.Shared, q.Held, q.Since, q.Note = r.Mode == shared, r.Held, time.UnixMicro(r.At), r.Note
	}
	return append(out, q)
}
