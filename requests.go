package qlock

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// RequestKind is what a Request asks for.
type RequestKind string

const (
	RequestAcquire RequestKind = subject.Acquire // a lock
	RequestRelease RequestKind = subject.Release // nothing any more: the lock or its place is given back
	RequestYield   RequestKind = subject.Yield   // nothing: a vote is given back to a node that wants it for an older request
)

// Request is what a client asks of the nodes, as somebody hears it who listens beside them.
// Subscribe to the RequestSubjects, and read what comes with ParseRequests. Clients repeat
// requests: those of one Claim are one wish for a lock. Events (ParseEvent) say what became
// of it.
type Request struct {
	Cluster string
	Kind    RequestKind
	Client  string
	Name    string // of the lock
	Encoded string // the same as it is in subjects

	Claim string // names the wish, as ClaimInfo.ID does

	// Of RequestAcquire.
	Shared bool
	Held   bool      // the client holds the lock already, and asks a node that may not know
	Since  time.Time // since when it waits, by the client's clock
	Note   string

	Node string // of RequestYield, and of a RequestAcquire that is for one node only: that node
}

// RequestSubjects are the NATS subjects of a cluster's requests for locks whose names match
// the pattern, as in EventSubject. The last one is that of messages that hold several
// requests, whose names are inside: of what ParseRequests returns for those, the caller takes
// what MatchName says.
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

// MatchName reports whether the name of a lock (Request.Name) matches a pattern, as its
// encoded form would in NATS subjects.
func MatchName(pattern, name string) bool {
	return pattern == "" || subject.Matches(pattern, name)
}

// ParseRequests reads a message that came for RequestSubjects. Messages may come from anybody
// who may publish there, so what cannot be read is an error, or is left out of a message that
// has several requests. Requests that are for no single lock are left out as well.
func ParseRequests(on string, body []byte) ([]Request, error) {
	p, ok := subject.Split(on)
	if !ok || p.Family != subject.FamilyNode {
		return nil, fmt.Errorf("qlock: subject %s is not the subject of a request", quote(on))
	}
	if p.IsBatch() {
		list, err := wire.DecodeBatch(nil, p.Client, body)
		out := make([]Request, 0, len(list))
		for _, r := range list {
			encoded, _ := subject.EncodeName(r.Resource) // it is one: the decoder has looked
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
	if name, err := subject.DecodeName(p.Resource); err == nil { // else it is none of this package's, and stays as it is
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
