package subject

import "strings"

// IsPattern reports whether s can be matched with names: tokens as names have them
// in subjects, of which * stands for any one, and > at the end for one or more.
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

// Matches reports whether a name matches a pattern, as NATS matches subjects.
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
