// Package subject builds and parses every NATS subject of qlock's own. Nothing else
// spells one: a test looks for that.
//
//	lock.<cluster>.node.<verb>.<client>[.<resource>]     requests for one's own claims
//	lock.<cluster>.node.<client>                         several of them in one message
//	lock.<cluster>.admin.<verb>.<client>[.<resource>]    requests about the claims of others
//	lock.<cluster>.event.<kind>.<client>.<resource>      what observers hear
//	lock.<cluster>.api.<verb>[.<caller>[.<resource>]]    for those who do not speak the protocol
//	lock.<cluster>.gw.…                                  among those who serve them
//
// The verb, the client and the resource are in the subject so that NATS permissions
// can be written in terms of them, and so that people can read them with "nats sub".
// The resource is last because it alone may have several tokens. Nodes take the
// resource of a claim from the subject, so two resources must never share a subject
// and no resource may have two: the encoding is one to one, and decoding refuses
// whatever the encoder would not have written.
//
// The family, which is the third token, keeps apart what permissions keep apart: no
// pattern for one family matches a subject of another. The last two families are
// reserved. Nodes and clients neither publish nor subscribe there.
//
// docs/wire.md has the same for those who write a client in another language.
package subject

import (
	"errors"
	"fmt"
	"strings"

	"github.com/qlock/qlock/internal/printable"
)

const root = "lock."

// Families of subjects.
const (
	FamilyNode    = "node"
	FamilyAdmin   = "admin"
	FamilyEvent   = "event"
	FamilyAPI     = "api"
	FamilyGateway = "gw"
)

// Verbs of requests.
const (
	Acquire = "acquire"
	Release = "release"
	Yield   = "yield"
	Refresh = "refresh"
	Info    = "info"
	List    = "list"
	Inspect = "inspect"
	Evict   = "evict"
)

// BatchVerb stands for the verb that the subject of a batch does not have.
const BatchVerb = ""

// Kinds of events.
const (
	Acquired = "acquired"
	Released = "released"
	Lost     = "lost"
)

// Wildcards of NATS. They may stand for any part that the builders below are given;
// Rest is for the last alone.
const (
	Any  = "*"
	Rest = ">"
)

// lookUp gives what a verb's subjects look like; the family of no verb is empty. It is a
// switch, and not a map, since it is asked for every message.
func lookUp(verb string) (family string, resource bool) {
	switch verb {
	case Acquire, Release, Yield:
		return FamilyNode, true
	case Refresh, Info:
		return FamilyNode, false
	case Inspect, Evict:
		return FamilyAdmin, true
	case List:
		return FamilyAdmin, false
	}
	return "", false
}

// FamilyOf is the family of a verb's requests. Verbs that look at the claims of others,
// or end them, are apart from those for one's own claims: a permission for
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

// The builders below check nothing: whoever calls them has checked the names, once,
// and calls them often. A resource is encoded already, or a pattern of resources.

// Request is where a client publishes a request. The resource is empty for verbs that
// concern none.
func Request(cluster, verb, client, resource string) string {
	return string(AppendRequest(nil, cluster, verb, client, resource))
}

// AppendRequest appends what Request returns.
func AppendRequest(b []byte, cluster, verb, client, resource string) []byte {
	b = append(append(b, root...), cluster...)
	switch verb {
	case List, Inspect, Evict: // as FamilyOf has it
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

// Batch is where a client publishes several requests in one message. It is shorter than
// all other subjects, so that no permission for them that ends in a client's name, or
// has wildcards after it, includes it: a batch names its resources in the body, where
// NATS does not look.
func Batch(cluster, client string) string {
	return string(append(appendFamily(nil, cluster, FamilyNode), client...))
}

// Event is where a client tells observers what became of a lock.
func Event(cluster, kind, client, resource string) string {
	return string(AppendEvent(nil, cluster, kind, client, resource))
}

// AppendEvent appends what Event returns.
func AppendEvent(b []byte, cluster, kind, client, resource string) []byte {
	b = appendFamily(b, cluster, FamilyEvent)
	b = append(append(append(b, kind...), '.'), client...)
	return append(append(b, '.'), resource...)
}

// Call is where somebody asks whoever serves the API of a cluster. The caller and the
// resource may be empty, the resource alone too: then the body has them, and NATS does
// not guard them.
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

// Family is everything of one family. Nodes subscribe to two of these. Each is one
// wildcard and not one subscription for each verb, because order is kept only within a
// subscription.
func Family(cluster, family string) string {
	return string(append(appendFamily(nil, cluster, family), Rest...))
}

// Cluster is everything of a cluster.
func Cluster(cluster string) string { return root + cluster + "." + Rest }

func appendFamily(b []byte, cluster, family string) []byte {
	b = append(append(b, root...), cluster...)
	b = append(append(b, '.'), family...)
	return append(b, '.')
}

// AllInboxes is where all answers arrive.
const AllInboxes = inboxes + Rest

const inboxes = "_INBOX."

// InboxPrefix is what the inboxes of a client begin with whose permissions let it
// listen on no others.
func InboxPrefix(client string) string { return inboxes + client }

// IsReserved reports whether a subject belongs to qlock or NATS, and is no inbox. A
// reply subject that is one is not answered: the answer would be a request, or a call
// of NATS's own API, in the name of whoever answers.
func IsReserved(s string) bool {
	return strings.HasPrefix(s, root) || strings.HasPrefix(s, "$")
}

// Subject is a subject's parts as they stand there.
type Subject struct {
	Cluster  string
	Family   string
	Verb     string // of an event its kind; empty in a batch
	Client   string // empty where there is none, under api
	Resource string // encoded; empty where there is none
}

// String is the subject.
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

// Split takes apart what has the form of a subject of qlock, whatever it says. For
// those who show what they hear: Parse refuses what is none.
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

// IsBatch reports whether it is the subject of several requests in one message.
func (s Subject) IsBatch() bool { return s.Family == FamilyNode && s.Verb == BatchVerb }

// Parse takes a subject apart, with the resource decoded beside it, and accepts nothing
// but what the builders make of names that are ones.
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

// ParseRequest takes a request's subject apart, with the resource decoded; the verb of a
// batch is BatchVerb. It is a node's first look at what may be anybody's message, so it
// trusts nothing. That the client is who it says is for the NATS permissions to
// enforce, on this very token.
func ParseRequest(cluster, s string) (verb, client, resource string, err error) {
	var p Subject
	// In pieces, since a joined prefix would be an allocation for every message.
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

// errForm is what NATS does not deliver, but who knows what others make of it.
var errForm = fmt.Errorf("%w: it is none of qlock's, or has an empty token", ErrInvalidName)

// ErrUnknownVerb has a name of its own because it alone may come from somebody honest:
// a newer one.
var ErrUnknownVerb = errors.New("unknown verb")

// check decodes the resource of a subject all of whose parts are what they must be but
// for the cluster's name.
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
