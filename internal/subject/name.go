package subject

import (
	"errors"
	"fmt"
	"strings"

	"github.com/qlock/qlock/internal/printable"
)

// The name of a resource is part of subjects, and message bodies have it in the same
// encoding. Two names must never share a subject, and no name may have two subjects. So the
// encoding below is one to one, and decoding rejects everything that the encoder would not
// have written.

// MaxName is the longest name of a resource, in bytes, before it is encoded. Encoding makes
// a name up to three times as long. A publish must still fit, with its reply inbox, into
// the 4096 bytes that a NATS server allows for a protocol line.
const MaxName = 1024

// ErrInvalidName is wrapped by every error about a name or a subject.
var ErrInvalidName = errors.New("qlock: invalid name")

// isPlain reports whether c represents itself inside a token. Excluded are the bytes that
// NATS gives a meaning to (the dot, wildcards, white space), our escape character, quotes
// and the backslash. So an encoded name between single quotes is one word to any shell, and
// Go, JSON and logfmt quote it without escapes.
func isPlain(c byte) bool {
	switch c {
	case '.', '*', '>', '%', '"', '\'', '`', '\\':
		return false
	}
	return '!' <= c && c <= '~'
}

// isVerbatim reports whether name is its own encoding: it has only plain bytes and no empty
// token.
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

// EncodeName encodes a resource name, which is any 1 to MaxName bytes, as subject tokens.
// Dots separate tokens both in the name and in its encoding. A byte that is not plain
// becomes %XX. NATS does not allow an empty token, so an empty token becomes a single %,
// which cannot be mistaken for an escape. Most names need no encoding and are returned
// unchanged. The error for any other length wraps ErrInvalidName.
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

// DecodeName is the inverse of EncodeName and accepts only its results. If it accepted
// "%61" for "a", a client could evade a permission for one subject by using another subject
// that names the same lock. Its errors wrap ErrInvalidName.
func DecodeName(s string) (string, error) {
	// Checked before anything is allocated: s may come from anyone.
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
			// Dots separate tokens in a name, so the encoder never escapes a dot.
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

// unhex returns the value of c, for which isHex must be true.
func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c - 'A' + 10
}

// EncodedSize returns an upper bound of the length of EncodeName's result, in bytes, without
// encoding the name.
func EncodedSize(name string) int {
	n := len(name)
	for i := range len(name) {
		if !isPlain(name[i]) {
			n += 2 // as %XX
		}
	}
	return n
}
