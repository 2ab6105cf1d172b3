package subject

import (
	"errors"
	"fmt"
	"strings"

	"github.com/qlock/qlock/internal/printable"
)

// The name of a resource stands in subjects, and in bodies as it does there. Two
// names must never share a subject and no name may have two: the encoding below is
// one to one, and decoding refuses whatever the encoder would not have written.

// MaxName bounds a resource's name, in bytes, before it is encoded. At its worst it
// triples, and a publish must still fit, with its reply inbox, into the 4096 bytes
// that a NATS server allows for a protocol line.
const MaxName = 1024

// ErrInvalidName is what errors of names are.
var ErrInvalidName = errors.New("qlock: invalid name")

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

// EncodeName turns a resource name, any 1 to 1024 bytes, into subject
// tokens. Dots separate tokens in both. A byte that is not plain becomes %XX,
// and a token without bytes, which NATS does not allow, becomes a lone %, which
// no escape can be mistaken for. Most names are returned as they are.
func EncodeName(name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("%w: the resource name is empty: give 1 to %d bytes", ErrInvalidName, MaxName)
	}
	if len(name) > MaxName {
		return "", fmt.Errorf("%w: the resource name %s has %d bytes, the limit is %d: shorten it, or lock a hash of it",
			ErrInvalidName, printable.Quote(name), len(name), MaxName)
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

// DecodeName is the inverse of EncodeName and accepts nothing but its
// results. Were "%61" taken for "a", a permission written for one subject could
// be passed by under another that names the same lock.
func DecodeName(s string) (string, error) {
	// Before anything is built: s may come from anyone.
	if len(s) > 3*MaxName {
		return "", fmt.Errorf("%w: the encoded resource %s has %d bytes, more than any name of at most %d bytes can have",
			ErrInvalidName, printable.Quote(s), len(s), MaxName)
	}
	name := s
	if !isVerbatim(s) {
		b, err := unescape(s)
		if err != nil {
			return "", fmt.Errorf("%w: the encoded resource %s: %w", ErrInvalidName, printable.Quote(s), err)
		}
		name = string(b)
	}
	if name == "" {
		return "", fmt.Errorf("%w: the encoded resource %s stands for the empty name", ErrInvalidName, printable.Quote(s))
	}
	if len(name) > MaxName {
		return "", fmt.Errorf("%w: the encoded resource %s stands for %d bytes, the limit is %d",
			ErrInvalidName, printable.Quote(s), len(name), MaxName)
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

// EncodedSize is how many bytes EncodeName makes of name, or a few more.
func EncodedSize(name string) int {
	n := len(name)
	for i := range len(name) {
		if !isPlain(name[i]) {
			n += 2 // as %XX
		}
	}
	return n
}
