package printable

import (
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for s, want := range map[string]string{
		"":                    "",
		"release 4.2":         "release 4.2",
		"Größe 注文":            "Größe 注文",
		`a\tb "c" 'd'`:        `a\tb "c" 'd'`,
		"a\tb\r\n":            `a\tb\r\n`,
		"\x1b[31mred\x00\x7f": `\x1b[31mred\x00\x7f`,
		"\u202etxet\u200b":    `\u202etxet\u200b`,
		"nb\u00a0sp\u2028":    `nb\u00a0sp\u2028`,
		"\xff \xe2\x82":       `\xff \xe2\x82`,
		"\ufffd":              "\ufffd",
		"\U000e0001":          `\U000e0001`,
	} {
		if got := Text(s); got != want {
			t.Errorf("Text(%q) = %q, want %q", s, got, want)
		}
	}
	if got, want := Escape(`it's \ "so"`, `\'`), `it\'s \\ "so"`; got != want {
		t.Errorf("Escape = %q, want %q", got, want)
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\tb")
	f.Add("\xff\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		got := Text(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Fatalf("Text(%q) = %q", s, got)
		}
		if again := Text(got); again != got {
			t.Fatalf("Text(%q) = %q, and of that %q", s, got, again)
		}
	})
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"":                       `""`,
		"a\x1bb":                 `"a\x1bb"`,
		strings.Repeat("x", 128): `"` + strings.Repeat("x", 128) + `"`,
		strings.Repeat("x", 129): `"` + strings.Repeat("x", 128) + `"...`,
	} {
		if got := Quote(s); got != want {
			t.Errorf("Quote of %d bytes = %s, want %s", len(s), got, want)
		}
	}
}
