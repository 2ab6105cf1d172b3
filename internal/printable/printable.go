// Package printable makes text harmless that others wrote: names of locks, which may
// be any bytes, notes, reasons and errors. To a terminal or a log some of that is an
// order or a disguise: an escape sequence, a carriage return, letters that run the
// other way.
package printable

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Text is s with everything escaped, as in Go, that is not shown as it is. What it
// returns it leaves alone the next time: readers may apply it again.
func Text(s string) string { return Escape(s, "") }

// Escape is Text that puts a backslash before each of the characters in also, which
// are ASCII.
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

// Quote quotes s for an error, cut short: what is wrong with a name may be that it
// fills a page.
func Quote(s string) string {
	const most = 128
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
