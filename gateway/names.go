package gateway

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The name of a lock may be any 1 to 1024 bytes. In answers and subjects it stands
// encoded, in exactly one way (docs/wire.md). A test compares this with the library's own
// encoding, which is not exported.

const maxName = 1024

func isPlain(c byte) bool {
	return '!' <= c && c <= '~' && !strings.ContainsRune(".*>%\"'`\\", rune(c))
}

// encodeName is the name as it stands in subjects.
func encodeName(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("the name of the lock is empty: give 1 to 1024 bytes")
	case len(name) > maxName:
		return "", fmt.Errorf("the name of the lock has %d bytes, the limit is %d: shorten it, or lock a hash of it", len(name), maxName)
	}
	var b strings.Builder
	for i, token := range strings.Split(name, ".") {
		if i > 0 {
			b.WriteByte('.')
		}
		if token == "" {
			b.WriteByte('%')
		}
		for _, c := range []byte(token) {
			if isPlain(c) {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	return b.String(), nil
}

// decodeName accepts only what encodeName writes: two spellings of one name could get by
// permissions that were written for one of them.
func decodeName(s string) (string, error) {
	bad := errors.New("the encoded name is not one: docs/wire.md describes the encoding, and answers have it in the field encoded")
	if len(s) > 3*maxName {
		return "", bad
	}
	var b []byte
	for i, token := range strings.Split(s, ".") {
		if i > 0 {
			b = append(b, '.')
		}
		if token == "%" {
			continue
		}
		for j := 0; j < len(token); j++ {
			if token[j] != '%' {
				b = append(b, token[j])
				continue
			}
			if len(token)-j < 3 {
				return "", bad
			}
			hi, lo := unhex(token[j+1]), unhex(token[j+2])
			if hi < 0 || lo < 0 {
				return "", bad
			}
			b = append(b, byte(hi<<4|lo))
			j += 2
		}
	}
	if again, err := encodeName(string(b)); err != nil || again != s {
		return "", bad
	}
	return string(b), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// shown is the name for a JSON string, empty if it is not valid UTF-8: encoding/json would
// put another name in its place.
func shown(name string) string {
	if !utf8.ValidString(name) {
		return ""
	}
	return name
}

// nameOf is the one name that a request gives, plain or encoded.
func nameOf(name, encoded string) (string, string, *Problem) {
	switch {
	case name != "" && encoded != "":
		return "", "", invalid("give either name or encoded, not both")
	case encoded != "":
		decoded, err := decodeName(encoded)
		if err != nil {
			return "", "", invalid(err.Error())
		}
		return decoded, encoded, nil
	}
	e, err := encodeName(name)
	if err != nil {
		return "", "", invalid(err.Error())
	}
	return name, e, nil
}
