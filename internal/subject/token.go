package subject

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/qlock/qlock/internal/printable"
)

// MaxToken bounds the names of clusters, clients and nodes, in bytes.
const MaxToken = 64

// TokenRule says to people what IsToken checks.
const TokenRule = "use 1 to 64 of the characters A-Z a-z 0-9 _ -"

// IsToken reports whether s can be the name of a cluster, a client or a node. An
// operator chooses these and writes them into permissions and configuration files, so
// they are held to what needs no encoding anywhere.
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

// tokenBytes is a table since every message has names to be checked.
var tokenBytes = func() (is [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") {
		is[c] = true
	}
	return is
}()

// CheckToken says what keeps IsToken from being true. kind says what the name is of.
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

// TokenFrom makes a token out of any string: a host's name may have dots, a program's
// name spaces. Different strings may give the same token, which does no harm: clients
// may share a name.
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

// ClientName is the name of a client that was given none, made from what os.Hostname
// returned, which is empty if it failed, and os.Args[0].
func ClientName(host, program string) string {
	if host == "" {
		host = "host"
	}
	return TokenFrom(host + "-" + filepath.Base(program))
}
