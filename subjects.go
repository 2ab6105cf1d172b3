package qlock

import (
	"errors"
	"fmt"
	"strings"

	"github.com/qlock/qlock/internal/proto"
)

// A request's subject carries the verb, the client and the resource, so that
// NATS permissions can be written in terms of them and a person with
// "nats sub" can read them:
//
//	lock.<cluster>.node.<verb>.<client>.<resource>
//	lock.<cluster>.admin.<verb>.<client>.<resource>
//	lock.<cluster>.event.<kind>.<client>.<resource>
//
// The resource stands last because it is the only part that may have several
// tokens. Nodes take a claim's resource from this subject, so two names must
// never share a subject and no name may have two: the encoding below is one to
// one, and decoding refuses whatever the encoder would not have written.

// maxTokenBytes bounds the names of clients, clusters and nodes.
const maxTokenBytes = 64

// errUnknownVerb is wrapped by parseRequestSubject. It has a name of its own
// because it alone may come from an honest client: a newer one.
var errUnknownVerb = errors.New("unknown verb")

// checkToken checks the name of a client, a cluster or a node; kind says which.
// These are chosen by an operator and written into permissions and
// configuration files, so they are held to what needs no encoding anywhere.
func checkToken(kind, s string) error {
	var wrong string
	switch {
	case s == "":
		wrong = "is empty"
	case len(s) > maxTokenBytes:
		wrong = fmt.Sprintf("has %d bytes", len(s))
	default:
		for i := range len(s) {
			if !isTokenByte(s[i]) {
				wrong = "has a character that is not allowed"
				break
			}
		}
	}
	if wrong == "" {
		return nil
	}
	return fmt.Errorf("%w: the %s name %s %s: use 1 to %d of the characters A-Z a-z 0-9 _ -",
		ErrInvalidName, kind, quote(s), wrong, maxTokenBytes)
}

func isTokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// tokenFrom makes a name that passes checkToken out of any string, for the name
// of a client that was given none: a host's name may have dots, a program's
// name spaces. Different strings may give the same token, which does no harm: a
// client's name may be shared.
func tokenFrom(s string) string {
	var b []byte
	for i := range len(s) {
		switch {
		case isTokenByte(s[i]):
			b = append(b, s[i])
		case i == 0 || isTokenByte(s[i-1]):
			b = append(b, '-')
		}
	}
	token := strings.Trim(string(b), "-")
	if len(token) > maxTokenBytes {
		token = strings.TrimRight(token[:maxTokenBytes], "-")
	}
	if token == "" {
		return "client"
	}
	return token
}

// requestSubject is where a client publishes a request. The resource is encoded
// already: a claim encodes it once and publishes it often. It is "" for the
// verbs that concern no single resource.
func requestSubject(cluster, verb, client, encodedResource string) string {
	return string(appendRequestSubject(nil, cluster, verb, client, encodedResource))
}

func appendRequestSubject(b []byte, cluster, verb, client, encodedResource string) []byte {
	b = append(append(b, "lock."...), cluster...)
	b = append(append(b, familyOf(verb)...), verb...)
	b = append(append(b, '.'), client...)
	if encodedResource != "" {
		b = append(append(b, '.'), encodedResource...)
	}
	return b
}

// familyOf is where in the tree of subjects a verb stands. Those that look at the
// claims of others, or end them, are apart from those that make one's own: whoever
// is permitted lock.prod.node.*.svc-a.>, or watches that, is none of the former.
func familyOf(verb string) string {
	switch verb {
	case "list", "inspect", "evict":
		return ".admin."
	}
	return ".node."
}

// batchVerb stands for what has no verb of its own in the subject: several requests in
// one message. Its subject is shorter than all others, so that no permission for them
// that ends in a client's name, or has wildcards behind it, includes it: a batch names
// its resources in the body, where NATS does not look.
const batchVerb = ""

func batchSubject(cluster, client string) string {
	return "lock." + cluster + ".node." + client
}

// nodeSubject is what a node subscribes to for claims. It is one wildcard, not one
// subscription for each verb, because order is kept only within a subscription.
func nodeSubject(cluster string) string {
	return "lock." + cluster + ".node.>"
}

// adminSubject is the other that it subscribes to.
func adminSubject(cluster string) string {
	return "lock." + cluster + ".admin.>"
}

// appendEventSubject gives where a client tells observers what became of a lock.
func appendEventSubject(b []byte, cluster, kind, client, encodedResource string) []byte {
	b = append(append(b, "lock."...), cluster...)
	b = append(append(b, ".event."...), kind...)
	b = append(append(b, '.'), client...)
	return append(append(b, '.'), encodedResource...)
}

// parseRequestSubject takes a request's subject apart, with the resource
// decoded. It is a node's first look at what may be anybody's message, so it
// trusts nothing; that the client is who it says is for the NATS permissions to
// enforce, on this very token.
func parseRequestSubject(cluster, subject string) (verb, client, resource string, err error) {
	// In pieces, since a joined prefix would be an allocation for every message.
	rest, ok := strings.CutPrefix(subject, "lock.")
	if ok {
		rest, ok = strings.CutPrefix(rest, cluster)
	}
	family := ".node."
	if ok && strings.HasPrefix(rest, ".admin.") {
		family = ".admin."
	}
	if ok {
		rest, ok = strings.CutPrefix(rest, family)
	}
	if !ok {
		return "", "", "", fmt.Errorf("subject %s: neither under lock.%s.node nor lock.%[2]s.admin", quote(subject), cluster)
	}

	verb, rest, more := strings.Cut(rest, ".")
	if !more && family == ".node." {
		if err := checkToken("client", verb); err != nil {
			return "", "", "", fmt.Errorf("subject %s: %w", quote(subject), err)
		}
		return batchVerb, verb, "", nil
	}
	if familyOf(verb) != family {
		return "", "", "", fmt.Errorf("subject %s: %w %s there", quote(subject), errUnknownVerb, quote(verb))
	}
	client, encoded, hasResource := strings.Cut(rest, ".")
	var wantsResource bool
	switch verb {
	case "acquire", "release", "yield", "inspect", "evict":
		wantsResource = true
	case "refresh", "info", "list":
	default:
		return "", "", "", fmt.Errorf("subject %s: %w %s", quote(subject), errUnknownVerb, quote(verb))
	}
	if err := checkToken("client", client); err != nil {
		return "", "", "", fmt.Errorf("subject %s: %w", quote(subject), err)
	}
	if hasResource != wantsResource {
		if wantsResource {
			return "", "", "", fmt.Errorf("subject %s: %s needs a resource after the client", quote(subject), verb)
		}
		return "", "", "", fmt.Errorf("subject %s: %s has no resource, but something follows the client", quote(subject), verb)
	}
	if wantsResource {
		if resource, err = proto.DecodeName(encoded); err != nil {
			return "", "", "", fmt.Errorf("subject %s: %w", quote(subject), err)
		}
	}
	return verb, client, resource, nil
}

func quote(s string) string { return proto.Quote(s) }
