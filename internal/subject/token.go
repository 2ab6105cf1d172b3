package subject

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/qlock/qlock/internal/printable"
)

// MaxToken is the longest name of a cluster, client or node, in bytes.
const MaxToken = 64

// TokenRule describes to people which names IsToken accepts.
const TokenRule = "use 1 to 64 of the characters A-Z a-z 0-9 _ -"

// IsToken reports whether s is valid as the name of a cluster, a client or a node.
// Operators choose these names and write them into permissions and configuration files, so
// they are limited to characters that need no encoding anywhere.
func IsToken(s string) bool {
	if s == "" || len(s) > MaxToken {
		return false
	}
	for i := range len(s) {
		if !tokenBytes[s[i]] {
			return false
		}
	}
	return true
}

// tokenBytes is a table because every message contains names that must be checked.
var tokenBytes = func() (is [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") {
		is[c] = true
	}
	return is
}()

// CheckToken returns nil if IsToken accepts s, and else an error that says why not. The
// error calls the name by its kind, such as "cluster".
func CheckToken(kind, s string) error {
	var wrong string
	switch {
	case IsToken(s):
		return nil
	case s == "":
		wrong = "is empty"
	case len(s) > MaxToken:
		wrong = fmt.Sprintf("has %d bytes", len(s))
	default:
		wrong = "has a character that is not allowed"
	}
	return fmt.Errorf("%w: the %s name %s %s: %s", ErrInvalidName, kind, printable.Quote(s), wrong, TokenRule)
}

// TokenFrom makes a token out of any string: the name of a host may have dots, and that of
// a program spaces. Different strings may give the same token. That does no harm, since
// clients may share a name.
func TokenFrom(s string) string {
	var b []byte
	for i := range len(s) {
		switch {
		case tokenBytes[s[i]]:
			b = append(b, s[i])
		case i == 0 || tokenBytes[s[i-1]]:
			b = append(b, '-')
		}
	}
	token := strings.Trim(string(b), "-")
	if len(token) > MaxToken {
		token = strings.TrimRight(token[:MaxToken], "-")
	}
	if token == "" {
		return "client"
	}
	return token
}

// ClientName returns the default name of a client. host is the result of os.Hostname, or
// empty if that failed, and program is os.Args[0].
func ClientName(host, program string) string {
	if host == "" {
		host = "host"
	}
	return TokenFrom(host + "-" + filepath.Base(program))
}
