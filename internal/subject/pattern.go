package subject

import "strings"

// IsPattern reports whether s is a pattern for names. A pattern consists of tokens as
// encoded names have them. The token * matches any one token, and > as the last token
// matches one or more.
func IsPattern(s string) bool {
	if s == "" || len(s) > 3*MaxName {
		return false
	}
	for more := true; more; {
		var token string
		token, s, more = strings.Cut(s, ".")
		switch token {
		case "", ">":
			if token == "" || more {
				return false
			}
		case "*":
		default:
			if strings.ContainsAny(token, "*>") {
				return false
			}
			for i := range len(token) {
				if c := token[i]; !isPlain(c) && c != '%' {
					return false
				}
			}
		}
	}
	return true
}

// Matches reports whether pattern, which IsPattern accepts, matches a name that is not
// encoded. The rules are those by which NATS matches subjects.
func Matches(pattern, name string) bool {
	encoded, err := EncodeName(name)
	if err != nil {
		return false
	}
	for {
		p, restP, moreP := strings.Cut(pattern, ".")
		t, restT, moreT := strings.Cut(encoded, ".")
		switch {
		case p == ">":
			return true
		case p != "*" && p != t:
			return false
		case !moreP || !moreT:
			return moreP == moreT
		}
		pattern, encoded = restP, restT
	}
}
