package store

import (
	"fmt"
	"regexp"
	"strings"
)

// The subjects of a bucket B. A bucket named B-qlock cannot be made as long as these exist.
//
//	$KV.B.<key>                              a value
//	$KV.B-qlock.fence.<cluster>.<lock>       the token of the last holder
//	$KV.B-qlock.once.<id>                    that a transaction was done, and its answer
//	$KV.B-qlock.guard                        carries conditions that no other message can carry

type names struct{ bucket string }

func (n names) stream() string { return "KV_" + n.bucket }

func (n names) keys() string { return "$KV." + n.bucket + "." }

func (n names) key(k string) string { return n.keys() + k }

func (n names) own() string { return "$KV." + n.bucket + "-qlock." }

func (n names) guard() string { return n.own() + "guard" }

func (n names) fences() string { return n.own() + "fence." }

const (
	maxName = 1024 // bytes of a lock's name or an id, before it is encoded
	// maxKey is the longest key. A server closes the connection of a client whose subject does
	// not fit into a line of 4,096 bytes, and with it all locks of that client are lost.
	maxKey = 2048
	hexes  = "0123456789ABCDEF"
)

// encode turns any name into tokens of a subject, as docs/wire.md describes for the names
// of locks: bytes that NATS or a shell gives a meaning to become %XX, and an empty token
// becomes %.
func encode(what, name string) (string, error) {
	if name == "" || len(name) > maxName {
		return "", fmt.Errorf("%w: %s has %d bytes: give 1 to %d", ErrInvalid, what, len(name), maxName)
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
			if c <= ' ' || c > '~' || strings.IndexByte("*>%\"'`\\", c) >= 0 {
				b.Write([]byte{'%', hexes[c>>4], hexes[c&0xf]})
			} else {
				b.WriteByte(c)
			}
		}
	}
	return b.String(), nil
}

var (
	searchPattern = regexp.MustCompile(`^(([-/_=a-zA-Z0-9]+|\*)\.)*([-/_=a-zA-Z0-9]+|\*|>)$`)
	tokenPattern  = regexp.MustCompile(`^[-_a-zA-Z0-9]{1,64}$`)
)

// isKey reports whether a bucket may have such a key: tokens of letters, digits and -/_=,
// with single dots between them. Each call asks it, so it is not a regular expression.
func isKey(key string) bool {
	dot := true // a token must begin here
	for i := range len(key) {
		switch c := key[i]; {
		case c == '.':
			if dot {
				return false
			}
			dot = true
			continue
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '/', c == '_', c == '=':
		default:
			return false
		}
		dot = false
	}
	return !dot
}

func checkKey(key string) error {
	if len(key) > maxKey {
		return fmt.Errorf("%w: key %.40q…: it has %d bytes, and the limit is %d", ErrInvalid, key, len(key), maxKey)
	}
	if !isKey(key) {
		return fmt.Errorf("%w: key %q: use letters, digits and -/_= in tokens that are separated by single dots", ErrInvalid, key)
	}
	return nil
}

// matches reports whether a key matches a pattern of Watch.
func matches(pattern, key string) bool {
	for {
		p, restP, moreP := strings.Cut(pattern, ".")
		k, restK, moreK := strings.Cut(key, ".")
		switch {
		case p == ">":
			return true
		case p != "*" && p != k, moreP != moreK:
			return false
		case !moreP:
			return true
		}
		pattern, key = restP, restK
	}
}
