package qlock

import (
	"errors"
	"fmt"
	"strings"
)

// A request's subject carries the verb, the client and the resource, so that
// NATS permissions can be written in terms of them and a person with
// "nats sub" can read them:
//
//	lock.<cluster>.node.<verb>.<client>.<resource>
//	lock.<cluster>.event.<kind>.<client>.<resource>
//
// The resource stands last because it is the only part that may have several
// tokens. Nodes take a claim's resource from this subject, so two names must
// never share a subject and no name may have two: the encoding below is one to
// one, and decoding refuses whatever the encoder would not have written.

const (
	// maxNameBytes bounds a resource name before it is encoded. At its worst
	// it triples, and a publish must still fit, with its reply inbox, into the
	// 4096 bytes that a NATS server allows for a protocol line.
	maxNameBytes = 1024

	// maxTokenBytes bounds the names of clients, clusters and nodes.
	maxTokenBytes = 64
)

// errUnknownVerb is wrapped by parseRequestSubject. It has a name of its own
// because it alone may come from an honest client: a newer one.
var errUnknownVerb = errors.New("unknown verb")

// isPlain reports whether c stands for itself inside a token. Beside what NATS
// gives a meaning to (the dot, wildcards, white space) and our escape, quotes
// and the backslash are out: an encoded name between single quotes is then one
// word to any shell, and Go, JSON and logfmt quote it without escapes.
func isPlain(c byte) bool {
	switch c {
	case '.', '*', '>', '%', '"', '\'', '`', '\\':
		return false
	}
	return '!' <= c && c <= '~'
}

// isVerbatim reports whether name is its own encoding: plain bytes in tokens
// of which none is empty.
func isVerbatim(name string) bool {
	empty := true // the token so far
	for i := range len(name) {
		switch c := name[i]; {
		case isPlain(c):
			empty = false
		case c == '.' && !empty:
			empty = true
		default:
			return false
		}
	}
	return !empty
}

// encodeResource turns a resource name, any 1 to 1024 bytes, into subject
// tokens. Dots separate tokens in both. A byte that is not plain becomes %XX,
// and a token without bytes, which NATS does not allow, becomes a lone %, which
// no escape can be mistaken for. Most names are returned as they are.
func encodeResource(name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("%w: the resource name is empty: give 1 to %d bytes", ErrInvalidName, maxNameBytes)
	}
	if len(name) > maxNameBytes {
		return "", fmt.Errorf("%w: the resource name %s has %d bytes, the limit is %d: shorten it, or lock a hash of it",
			ErrInvalidName, quote(name), len(name), maxNameBytes)
	}
	if isVerbatim(name) {
		return name, nil
	}

	const hex = "0123456789ABCDEF"
	var b []byte
	for i, token := range strings.Split(name, ".") {
		if i > 0 {
			b = append(b, '.')
		}
		if token == "" {
			b = append(b, '%')
		}
		for _, c := range []byte(token) {
			if isPlain(c) {
				b = append(b, c)
			} else {
				b = append(b, '%', hex[c>>4], hex[c&0xf])
			}
		}
	}
	return string(b), nil
}

// decodeResource is the inverse of encodeResource and accepts nothing but its
// results. Were "%61" taken for "a", a permission written for one subject could
// be passed by under another that names the same lock.
func decodeResource(s string) (string, error) {
	// Before anything is built: s may come from anyone.
	if len(s) > 3*maxNameBytes {
		return "", fmt.Errorf("%w: the encoded resource %s has %d bytes, more than any name of at most %d bytes can have",
			ErrInvalidName, quote(s), len(s), maxNameBytes)
	}
	name := s
	if !isVerbatim(s) {
		b, err := unescape(s)
		if err != nil {
			return "", fmt.Errorf("%w: the encoded resource %s: %w", ErrInvalidName, quote(s), err)
		}
		name = string(b)
	}
	if name == "" {
		return "", fmt.Errorf("%w: the encoded resource %s stands for the empty name", ErrInvalidName, quote(s))
	}
	if len(name) > maxNameBytes {
		return "", fmt.Errorf("%w: the encoded resource %s stands for %d bytes, the limit is %d",
			ErrInvalidName, quote(s), len(name), maxNameBytes)
	}
	return name, nil
}

func unescape(s string) ([]byte, error) {
	b := make([]byte, 0, len(s))
	for i, token := range strings.Split(s, ".") {
		if i > 0 {
			b = append(b, '.')
		}
		switch token {
		case "":
			return nil, fmt.Errorf("token %d is empty: an empty token is written %%", i+1)
		case "%":
			continue
		}
		for j := 0; j < len(token); j++ {
			c := token[j]
			if isPlain(c) {
				b = append(b, c)
				continue
			}
			if c != '%' {
				return nil, fmt.Errorf("token %d has the byte %q as it is: it is written %%%02X", i+1, []byte{c}, c)
			}
			if len(token)-j < 3 || !isHex(token[j+1]) || !isHex(token[j+2]) {
				return nil, fmt.Errorf("token %d has a %% without two upper-case hexadecimal digits after it", i+1)
			}
			v := unhex(token[j+1])<<4 | unhex(token[j+2])
			// A dot in a name separates tokens, so none is ever escaped.
			if isPlain(v) || v == '.' {
				return nil, fmt.Errorf("token %d has %s, which is written %c", i+1, token[j:j+3], v)
			}
			b = append(b, v)
			j += 2
		}
	}
	return b, nil
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }

// unhex gives the value of a digit that isHex.
func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c - 'A' + 10
}

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
	if encodedResource == "" {
		return "lock." + cluster + ".node." + verb + "." + client
	}
	return "lock." + cluster + ".node." + verb + "." + client + "." + encodedResource
}

// nodeSubject is what a node subscribes to. It is one wildcard, not one
// subscription for each verb, because order is kept only within a subscription.
func nodeSubject(cluster string) string {
	return "lock." + cluster + ".node.>"
}

// eventSubject is where a client tells observers what became of a lock.
func eventSubject(cluster, kind, client, encodedResource string) string {
	return "lock." + cluster + ".event." + kind + "." + client + "." + encodedResource
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
	if ok {
		rest, ok = strings.CutPrefix(rest, ".node.")
	}
	if !ok {
		return "", "", "", fmt.Errorf("subject %s: not under lock.%s.node", quote(subject), cluster)
	}

	verb, rest, _ = strings.Cut(rest, ".")
	client, encoded, hasResource := strings.Cut(rest, ".")
	var wantsResource bool
	switch verb {
	case "acquire", "release", "yield":
		wantsResource = true
	case "refresh", "info":
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
		if resource, err = decodeResource(encoded); err != nil {
			return "", "", "", fmt.Errorf("subject %s: %w", quote(subject), err)
		}
	}
	return verb, client, resource, nil
}

// quote quotes s for an error, cut short: what is wrong with a name may be that
// it fills a page.
func quote(s string) string {
	const most = 128
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
