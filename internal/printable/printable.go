// Package printable makes text from others harmless: names of locks, which may be any
// bytes, notes, reasons and errors. Some characters are commands to a terminal, or disguise
// the text in a terminal or a log: escape sequences, carriage returns, and letters that run
// from right to left. All functions are safe for concurrent use.
package printable

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Text returns s with all characters that are not displayed as they are escaped as in Go.
// It does not change its own results, so it may be applied again.
func Text(s string) string { return Escape(s, "") }

// Escape does what Text does, and also puts a backslash before each of the characters in
// also, which must be ASCII.
func Escape(s, also string) string {
	if isPlain(s, also) {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			b = fmt.Appendf(b, `\x%02x`, s[i])
		case strings.ContainsRune(also, r):
			b = append(b, '\\', byte(r))
		case strconv.IsPrint(r):
			b = utf8.AppendRune(b, r)
		default:
			b = append(b, strings.Trim(strconv.QuoteRune(r), "'")...)
		}
	}
	return string(b)
}

func isPlain(s, also string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || strings.IndexByte(also, s[i]) >= 0 {
			return false
		}
	}
	return true
}

// Quote returns s quoted and shortened for an error message, because the fault of a name
// may be its length.
func Quote(s string) string {
	const most = 128
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
