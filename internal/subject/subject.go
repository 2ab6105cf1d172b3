// Package subject builds and parses every NATS subject that belongs to qlock. No other code
// spells one; a test checks that.
//
//	lock.<cluster>.node.<verb>.<client>[.<resource>]     requests about the client's own claims
//	lock.<cluster>.node.<client>                         several of them in one message
//	lock.<cluster>.admin.<verb>.<client>[.<resource>]    requests about the claims of others
//	lock.<cluster>.event.<kind>.<client>.<resource>      events for observers
//	lock.<cluster>.api.<verb>[.<caller>[.<resource>]]    for programs that do not speak the protocol
//	lock.<cluster>.gw.…                                  among the servers of these programs
//
// The verb, the client and the resource are in the subject so that NATS permissions can
// refer to them, and so that people can read them with "nats sub". The resource is last
// because only it may have several tokens. Nodes take the resource of a claim from the
// subject, so two resources must never share a subject, and no resource may have two
// subjects. Therefore the encoding is one to one, and decoding rejects everything that the
// encoder would not have written.
//
// The third token, the family, separates what permissions must separate: no pattern for one
// family matches a subject of another. The last two families are reserved. Nodes and
// clients neither publish nor subscribe there.
//
// docs/wire.md describes the subjects for authors of clients in other languages.
//
// All functions are safe for concurrent use.
package subject

import (
	"errors"
	"fmt"
	"strings"

	"github.com/qlock/qlock/internal/printable"
)

const root = "lock."

// The families of subjects.
const (
	FamilyNode    = "node"
	FamilyAdmin   = "admin"
	FamilyEvent   = "event"
	FamilyAPI     = "api"
	FamilyGateway = "gw"
)

// The verbs of requests.
const (
	Acquire = "acquire"
	Release = "release"
	Yield   = "yield"
	Refresh = "refresh"
	Info    = "info"
	List    = "list"
	Inspect = "inspect"
	Evict   = "evict"
	Config  = "config"
)

// BatchVerb is the verb that a batch is reported with. The subject of a batch has no verb.
const BatchVerb = ""

// The kinds of events.
const (
	Acquired = "acquired"
	Released = "released"
	Lost     = "lost"
)

// The wildcards of NATS. The builders below accept Any for each of their arguments, and
// Rest for the last one only.
const (
	Any  = "*"
	Rest = ">"
)

// lookUp returns the family of a verb's subjects, and whether they name a resource. The
// family of an unknown verb is empty. This is a switch and not a map because it runs for
// every message.
func lookUp(verb string) (family string, resource bool) {
	switch verb {
	case Acquire, Release, Yield:
		return FamilyNode, true
	case Refresh, Info:
		return FamilyNode, false
	case Inspect, Evict:
		return FamilyAdmin, true
	case List, Config:
		return FamilyAdmin, false
	}
	return "", false
}

// FamilyOf returns the family of a verb's requests. Verbs that inspect or end the claims of
// others are in another family than those for a client's own claims: a permission for
// lock.prod.node.*.svc-a.> allows none of the former.
func FamilyOf(verb string) string {
	if family, _ := lookUp(verb); family != "" {
		return family
	}
	return FamilyNode
}

// HasResource reports whether a verb's requests concern a single resource.
func HasResource(verb string) bool {
	_, resource := lookUp(verb)
	return resource
}

// The builders below validate nothing: they run often, and their callers have validated the
// names once. A resource must be encoded already, or be a pattern of resources.

// Request returns the subject of a client's request. The resource is empty for verbs that
// concern no single resource.
func Request(cluster, verb, client, resource string) string {
	return string(AppendRequest(nil, cluster, verb, client, resource))
}

// AppendRequest appends the subject that Request returns to b.
func AppendRequest(b []byte, cluster, verb, client, resource string) []byte {
	b = append(append(b, root...), cluster...)
	switch verb {
	case List, Inspect, Evict, Config: // As FamilyOf has it.
		b = append(b, "."+FamilyAdmin+"."...)
	default:
		b = append(b, "."+FamilyNode+"."...)
	}
	b = append(append(append(b, verb...), '.'), client...)
	if resource != "" {
		b = append(append(b, '.'), resource...)
	}
	return b
}

// Batch returns the subject on which a client publishes several requests in one message. It
// is shorter than all other subjects. So it is not included in a permission for them that
// ends in a client's name or has wildcards after it. That matters because a batch names its
// resources in the body, which NATS does not check.
func Batch(cluster, client string) string {
	return string(append(appendFamily(nil, cluster, FamilyNode), client...))
}

// Event returns the subject on which a client reports an event of a lock to observers.
func Event(cluster, kind, client, resource string) string {
	return string(AppendEvent(nil, cluster, kind, client, resource))
}

// AppendEvent appends the subject that Event returns to b.
func AppendEvent(b []byte, cluster, kind, client, resource string) []byte {
	b = appendFamily(b, cluster, FamilyEvent)
	b = append(append(append(b, kind...), '.'), client...)
	return append(append(b, '.'), resource...)
}

// Call returns the subject of a call to the servers of a cluster's API. The resource may be
// empty, or both the caller and the resource. What is empty is in the body instead, where
// NATS permissions do not guard it.
func Call(cluster, verb, caller, resource string) string {
	b := append(appendFamily(nil, cluster, FamilyAPI), verb...)
	if caller != "" {
		b = append(append(b, '.'), caller...)
		if resource != "" {
			b = append(append(b, '.'), resource...)
		}
	}
	return string(b)
}

// Family returns the wildcard that matches all subjects of one family. Nodes subscribe to
// two of these. A node has one subscription for a family and not one for each verb because
// NATS keeps the order of messages only within a subscription.
func Family(cluster, family string) string {
	return string(append(appendFamily(nil, cluster, family), Rest...))
}

// Cluster returns the wildcard that matches all subjects of a cluster.
func Cluster(cluster string) string { return root + cluster + "." + Rest }

func appendFamily(b []byte, cluster, family string) []byte {
	b = append(append(b, root...), cluster...)
	b = append(append(b, '.'), family...)
	return append(b, '.')
}

// AllInboxes is the wildcard that matches all inboxes, where answers arrive.
const AllInboxes = inboxes + Rest

const inboxes = "_INBOX."

// InboxPrefix returns the prefix of the only inboxes that a client with limited permissions
// may subscribe to.
func InboxPrefix(client string) string { return inboxes + client }

// IsReserved reports whether a subject belongs to qlock or NATS, so that it is no inbox.
// Nodes do not answer a request whose reply subject is reserved: the answer would be a
// request, or a call of NATS's own API, in the name of the node.
func IsReserved(s string) bool {
	return strings.HasPrefix(s, root) || strings.HasPrefix(s, "$")
}

// Subject holds the parts of a subject, encoded as in the subject.
type Subject struct {
	Cluster  string
	Family   string
	Verb     string // kind of an event; empty for a batch
	Client   string // empty if the subject has none, as under api
	Resource string // encoded; empty if the subject has none
}

// String returns the subject that has these parts.
func (s Subject) String() string {
	b := appendFamily(nil, s.Cluster, s.Family)
	dot := false
	for _, part := range []string{s.Verb, s.Client, s.Resource} {
		if part == "" {
			continue
		}
		if dot {
			b = append(b, '.')
		}
		b = append(b, part...)
		dot = true
	}
	return string(b)
}

// Split takes apart a subject that has the form of a qlock subject, without validating its
// parts. It is for programs that display what they receive; Parse validates.
func Split(s string) (p Subject, ok bool) {
	if !p.split(s) {
		return Subject{}, false
	}
	return p, true
}

func (s *Subject) split(text string) bool {
	rest, ok := strings.CutPrefix(text, root)
	if !ok {
		return false
	}
	s.Cluster, rest, _ = strings.Cut(rest, ".")
	s.Family, rest, _ = strings.Cut(rest, ".")
	return s.Cluster != "" && s.Family != "" && s.splitAfterFamily(rest)
}

func (s *Subject) splitAfterFamily(rest string) bool {
	i := strings.IndexByte(rest, '.')
	switch {
	case rest == "" || i == 0:
		return false
	case i < 0 && s.Family == FamilyNode:
		s.Client = rest
		return true
	case i < 0:
		s.Verb = rest
		return true
	}
	s.Verb, rest = rest[:i], rest[i+1:]
	if i = strings.IndexByte(rest, '.'); i < 0 {
		s.Client = rest
		return rest != ""
	}
	s.Client, s.Resource = rest[:i], rest[i+1:]
	return s.Client != "" && s.Resource != ""
}

// IsBatch reports whether s is the subject of several requests in one message.
func (s Subject) IsBatch() bool { return s.Family == FamilyNode && s.Verb == BatchVerb }

// Parse takes a subject apart and also returns its resource, decoded. It accepts only what
// the builders make of valid names.
func Parse(s string) (p Subject, resource string, err error) {
	if !p.split(s) {
		return Subject{}, "", fmt.Errorf("subject %s: %w", printable.Quote(s), errForm)
	}
	if err = CheckToken("cluster", p.Cluster); err == nil {
		resource, err = p.check()
	}
	if err != nil {
		return Subject{}, "", fmt.Errorf("subject %s: %w", printable.Quote(s), err)
	}
	return p, resource, nil
}

// ParseRequest takes a request's subject apart. The resource is decoded, and the verb of a
// batch is BatchVerb. The node calls it first for each message, and anyone may have sent
// the message, so it trusts nothing. It cannot check that the client is who it claims to
// be: the NATS permissions must enforce that, for this very token. The error of a verb that
// is not known wraps ErrUnknownVerb.
func ParseRequest(cluster, s string) (verb, client, resource string, err error) {
	var p Subject
	// In steps, because joining the prefix would allocate for every message.
	rest, ok := strings.CutPrefix(s, root)
	if ok {
		rest, ok = strings.CutPrefix(rest, cluster)
	}
	switch {
	case ok && strings.HasPrefix(rest, "."+FamilyNode+"."):
		p.Family, rest = FamilyNode, rest[len("."+FamilyNode+"."):]
	case ok && strings.HasPrefix(rest, "."+FamilyAdmin+"."):
		p.Family, rest = FamilyAdmin, rest[len("."+FamilyAdmin+"."):]
	default:
		return "", "", "", fmt.Errorf("subject %s: neither under %s%s.%s nor %[2]s%[3]s.%[5]s", printable.Quote(s), root, cluster, FamilyNode, FamilyAdmin)
	}
	if !p.splitAfterFamily(rest) {
		err = errForm
	} else {
		resource, err = p.check()
	}
	if err != nil {
		return "", "", "", fmt.Errorf("subject %s: %w", printable.Quote(s), err)
	}
	return p.Verb, p.Client, resource, nil
}

// errForm is for subjects that NATS does not deliver; another program may pass one all the
// same.
var errForm = fmt.Errorf("%w: it is none of qlock's, or has an empty token", ErrInvalidName)

// ErrUnknownVerb is separate from the other errors because it may have an innocent cause:
// the sender runs a newer version.
var ErrUnknownVerb = errors.New("unknown verb")

// check validates the parts of the subject, except for the cluster's name, and decodes the
// resource.
func (s *Subject) check() (string, error) {
	hasResource := s.Resource != ""
	switch s.Family {
	case FamilyNode, FamilyAdmin:
		if s.IsBatch() {
			return "", CheckToken("client", s.Client)
		}
		family, wantsResource := lookUp(s.Verb)
		if family != s.Family {
			return "", fmt.Errorf("%w %s there", ErrUnknownVerb, printable.Quote(s.Verb))
		}
		if err := CheckToken("client", s.Client); err != nil {
			return "", err
		}
		switch {
		case wantsResource && !hasResource:
			return "", fmt.Errorf("%s needs a resource after the client", s.Verb)
		case !wantsResource && hasResource:
			return "", fmt.Errorf("%s has no resource, but something follows the client", s.Verb)
		}
	case FamilyEvent:
		if s.Verb != Acquired && s.Verb != Released && s.Verb != Lost {
			return "", fmt.Errorf("%w: %s is no event that is known", ErrUnknownVerb, printable.Quote(s.Verb))
		}
		if err := CheckToken("client", s.Client); err != nil {
			return "", err
		}
		if !hasResource {
			return "", errors.New("an event needs a resource after the client")
		}
	case FamilyAPI:
		if err := CheckToken("verb", s.Verb); err != nil {
			return "", err
		}
		if s.Client == "" {
			return "", nil
		}
		if err := CheckToken("caller", s.Client); err != nil {
			return "", err
		}
	default:
		return "", fmt.Errorf("%w: %s is none of the families of subjects", ErrUnknownVerb, printable.Quote(s.Family))
	}
	if !hasResource {
		return "", nil
	}
	return DecodeName(s.Resource)
}
