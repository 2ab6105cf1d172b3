package subject

import (
	"errors"
	"strings"
	"testing"

	"github.com/qlock/qlock/internal/printable"
)

func TestEncodeName(t *testing.T) {
	tests := []struct{ name, want string }{
		{"orders", "orders"},
		{"orders.42", "orders.42"},
		{"Az09-_/:@+=,;~#!?&|^()[]{}<$", "Az09-_/:@+=,;~#!?&|^()[]{}<$"},
		{"a b", "a%20b"},
		{"100%", "100%25"},
		{"%", "%25"},
		{"*", "%2A"},
		{"orders.>", "orders.%3E"},
		{`it's`, "it%27s"},
		{"\"`\\", "%22%60%5C"},
		{"a\x00\x1f\x7f\xff", "a%00%1F%7F%FF"},
		{"a\r\nb", "a%0D%0Ab"},
		{"grün", "gr%C3%BCn"},
		{".", "%.%"},
		{"..", "%.%.%"},
		{".a", "%.a"},
		{"a.", "a.%"},
		{"a..b", "a.%.b"},
		{"a.%.b", "a.%25.b"},
		{"%41", "%2541"},
	}
	for _, tt := range tests {
		got, err := EncodeName(tt.name)
		if err != nil || got != tt.want {
			t.Errorf("EncodeName(%q) = %q, %v, want %q", tt.name, got, err, tt.want)
		}
		back, err := DecodeName(tt.want)
		if err != nil || back != tt.name {
			t.Errorf("DecodeName(%q) = %q, %v, want %q", tt.want, back, err, tt.name)
		}
	}
}

func TestEncodeNameLength(t *testing.T) {
	for _, unit := range []string{"a", ".", "\xff", "a."} {
		longest := strings.Repeat(unit, MaxName/len(unit))
		enc, err := EncodeName(longest)
		if err != nil {
			t.Errorf("%d bytes of %q: %v", len(longest), unit, err)
			continue
		}
		if back, err := DecodeName(enc); err != nil || back != longest {
			t.Errorf("%d bytes of %q do not come back: %v", len(longest), unit, err)
		}

		_, err = EncodeName(longest + "a")
		if !errors.Is(err, ErrInvalidName) {
			t.Errorf("%d bytes of %q: %v, want ErrInvalidName", len(longest)+1, unit, err)
			continue
		}
		for _, part := range []string{"1025", "1024"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error does not say %s: %v", part, err)
			}
		}
		if len(err.Error()) > 800 {
			t.Errorf("error repeats the whole name: %d bytes", len(err.Error()))
		}
	}
	if _, err := EncodeName(""); !errors.Is(err, ErrInvalidName) {
		t.Errorf("empty name: %v, want ErrInvalidName", err)
	}
}

func TestDecodeNameRefuses(t *testing.T) {
	tests := []struct{ what, s string }{
		{"nothing", ""},
		{"the empty name", "%"},
		{"leading dot", ".a"},
		{"trailing dot", "a."},
		{"doubled dot", "a..b"},
		{"only a dot", "."},
		{"escaped plain byte", "%61"},
		{"escaped dot", "a%2Eb"},
		{"lower-case digits", "%c3%bc"},
		{"mixed-case digits", "%C3%bC"},
		{"half an escape", "a%2"},
		{"percent at the end", "a%"},
		{"percent at the start", "%a"},
		{"two percents", "%%"},
		{"no digits", "%ZZ"},
		{"escape across a dot", "%2.0"},
		{"raw star", "*"},
		{"raw star within", "a*b"},
		{"raw wildcard", "a.>"},
		{"raw space", "a b"},
		{"raw quote", `a"b`},
		{"raw control", "a\x00"},
		{"raw non-ASCII", "gr\u00fcn"},
		{"a name one byte too long", strings.Repeat("a", MaxName+1)},
		{"escapes one byte too many", strings.Repeat("%FF", MaxName) + "a"},
		{"escapes one name byte too many", "a" + strings.Repeat("%FF", MaxName-1) + "a"},
		{"longer than any", strings.Repeat("%FF", 1<<16)},
	}
	for _, tt := range tests {
		name, err := DecodeName(tt.s)
		if !errors.Is(err, ErrInvalidName) || name != "" {
			t.Errorf("%s: DecodeName(%s) = %s, %v, want ErrInvalidName", tt.what, printable.Quote(tt.s), printable.Quote(name), err)
		}
	}
}

// words calls yield with every word over the alphabet of 1 to most letters.
func words(alphabet string, most int, yield func(string)) {
	var extend func(string)
	extend = func(w string) {
		for i := range len(alphabet) {
			next := w + alphabet[i:i+1]
			yield(next)
			if len(next) < most {
				extend(next)
			}
		}
	}
	extend("")
}

// checkName checks all guarantees of the encoding for one name, and returns the encoding.
func checkName(t *testing.T, name string) string {
	t.Helper()
	enc, err := EncodeName(name)
	if err != nil {
		t.Fatalf("EncodeName(%q): %v", name, err)
	}
	for token := range strings.SplitSeq(enc, ".") {
		if token == "" || strings.ContainsAny(token, "*> \t\r\n\x00\"'`\\") {
			t.Fatalf("EncodeName(%q) = %q: token %q", name, enc, token)
		}
	}
	for i := range len(enc) {
		if enc[i] <= ' ' || enc[i] > '~' {
			t.Fatalf("EncodeName(%q) = %q: byte %#x", name, enc, enc[i])
		}
	}
	if back, err := DecodeName(enc); err != nil || back != name {
		t.Fatalf("DecodeName(%q) = %q, %v, want %q", enc, back, err, name)
	}
	return enc
}

func TestEncodeNameIsInjective(t *testing.T) {
	var all strings.Builder
	for c := range 256 {
		all.WriteByte(byte(c))
	}
	for _, tt := range []struct {
		alphabet string
		most     int
	}{
		{all.String(), 2},
		{".a%*\x00\xff", 5},
		{".%2A", 6}, // names that look like encodings
	} {
		names := make(map[string]string) // by encoding
		words(tt.alphabet, tt.most, func(name string) {
			enc := checkName(t, name)
			if other, taken := names[enc]; taken {
				t.Fatalf("%q and %q are both encoded as %q", name, other, enc)
			}
			names[enc] = name
		})
	}
}

func TestDecodeNameIsInjective(t *testing.T) {
	accepted := 0
	words(".a%26*1AFf", 5, func(s string) {
		if checkEncoding(t, s) {
			accepted++
		}
	})
	if accepted == 0 {
		t.Fatal("no word was accepted")
	}
}

// checkEncoding checks that s, if it decodes, is what its name is encoded as.
func checkEncoding(t *testing.T, s string) bool {
	t.Helper()
	name, err := DecodeName(s)
	if err != nil {
		if !errors.Is(err, ErrInvalidName) || name != "" {
			t.Fatalf("DecodeName(%q) = %q, %v", s, name, err)
		}
		return false
	}
	if enc, err := EncodeName(name); err != nil || enc != s {
		t.Fatalf("DecodeName(%q) = %q, which is encoded as %q, %v", s, name, enc, err)
	}
	return true
}

func FuzzResourceName(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", ".", "a..b", "%", "%41", "a b*>\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if name == "" || len(name) > MaxName {
			if _, err := EncodeName(name); !errors.Is(err, ErrInvalidName) {
				t.Fatalf("%d bytes: %v, want ErrInvalidName", len(name), err)
			}
			return
		}
		checkName(t, name)
	})
}

func FuzzDecodeName(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "%", "%.%", "%20", "%2a", "%61", "a%2Eb", "*", "a..b", "%C3%BC"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkEncoding(t, s) })
}

func BenchmarkEncodeName(b *testing.B) {
	for _, bench := range []struct{ what, name string }{
		{"plain", "orders.eu-west.42"},
		{"escaped", "orders.eu west.42"},
	} {
		b.Run(bench.what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := EncodeName(bench.name); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
