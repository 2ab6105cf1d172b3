package qlock

import (
	"errors"
	"strings"
	"testing"
)

func TestEncodeResource(t *testing.T) {
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
		got, err := encodeResource(tt.name)
		if err != nil || got != tt.want {
			t.Errorf("encodeResource(%q) = %q, %v, want %q", tt.name, got, err, tt.want)
		}
		back, err := decodeResource(tt.want)
		if err != nil || back != tt.name {
			t.Errorf("decodeResource(%q) = %q, %v, want %q", tt.want, back, err, tt.name)
		}
	}
}

func TestEncodeResourceLength(t *testing.T) {
	for _, unit := range []string{"a", ".", "\xff", "a."} {
		longest := strings.Repeat(unit, maxNameBytes/len(unit))
		enc, err := encodeResource(longest)
		if err != nil {
			t.Errorf("%d bytes of %q: %v", len(longest), unit, err)
			continue
		}
		if back, err := decodeResource(enc); err != nil || back != longest {
			t.Errorf("%d bytes of %q do not come back: %v", len(longest), unit, err)
		}

		_, err = encodeResource(longest + "a")
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
	if _, err := encodeResource(""); !errors.Is(err, ErrInvalidName) {
		t.Errorf("empty name: %v, want ErrInvalidName", err)
	}
}

// TestWorstSubjectFits holds maxNameBytes to its reason: a publish of the worst
// name, with room for a reply inbox, is a protocol line that a server takes.
func TestWorstSubjectFits(t *testing.T) {
	token := strings.Repeat("t", maxTokenBytes)
	enc, err := encodeResource(strings.Repeat("\xff", maxNameBytes))
	if err != nil {
		t.Fatal(err)
	}
	const protocolLine, inbox = 4096, 512
	if n := len(requestSubject(token, "release", token, enc)); n > protocolLine-inbox {
		t.Errorf("the worst subject has %d bytes", n)
	}
}

func TestDecodeResourceRefuses(t *testing.T) {
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
		{"a name one byte too long", strings.Repeat("a", maxNameBytes+1)},
		{"escapes one byte too many", strings.Repeat("%FF", maxNameBytes) + "a"},
		{"escapes one name byte too many", "a" + strings.Repeat("%FF", maxNameBytes-1) + "a"},
		{"longer than any", strings.Repeat("%FF", 1<<16)},
	}
	for _, tt := range tests {
		name, err := decodeResource(tt.s)
		if !errors.Is(err, ErrInvalidName) || name != "" {
			t.Errorf("%s: decodeResource(%s) = %s, %v, want ErrInvalidName", tt.what, quote(tt.s), quote(name), err)
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

// checkName checks all that an encoding promises of one name, and gives it.
func checkName(t *testing.T, name string) string {
	t.Helper()
	enc, err := encodeResource(name)
	if err != nil {
		t.Fatalf("encodeResource(%q): %v", name, err)
	}
	for token := range strings.SplitSeq(enc, ".") {
		if token == "" || strings.ContainsAny(token, "*> \t\r\n\x00\"'`\\") {
			t.Fatalf("encodeResource(%q) = %q: token %q", name, enc, token)
		}
	}
	for i := range len(enc) {
		if enc[i] <= ' ' || enc[i] > '~' {
			t.Fatalf("encodeResource(%q) = %q: byte %#x", name, enc, enc[i])
		}
	}
	if back, err := decodeResource(enc); err != nil || back != name {
		t.Fatalf("decodeResource(%q) = %q, %v, want %q", enc, back, err, name)
	}
	return enc
}

func TestEncodeResourceIsInjective(t *testing.T) {
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

func TestDecodeResourceIsInjective(t *testing.T) {
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
	name, err := decodeResource(s)
	if err != nil {
		if !errors.Is(err, ErrInvalidName) || name != "" {
			t.Fatalf("decodeResource(%q) = %q, %v", s, name, err)
		}
		return false
	}
	if enc, err := encodeResource(name); err != nil || enc != s {
		t.Fatalf("decodeResource(%q) = %q, which is encoded as %q, %v", s, name, enc, err)
	}
	return true
}

func FuzzResourceName(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", ".", "a..b", "%", "%41", "a b*>\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if name == "" || len(name) > maxNameBytes {
			if _, err := encodeResource(name); !errors.Is(err, ErrInvalidName) {
				t.Fatalf("%d bytes: %v, want ErrInvalidName", len(name), err)
			}
			return
		}
		checkName(t, name)
	})
}

func FuzzDecodeResource(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "%", "%.%", "%20", "%2a", "%61", "a%2Eb", "*", "a..b", "%C3%BC"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkEncoding(t, s) })
}

func TestCheckToken(t *testing.T) {
	for _, s := range []string{"a", "svc-a", "Node_1", "-", "_", "0", strings.Repeat("x", maxTokenBytes)} {
		if err := checkToken("node", s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "a.b", "a b", "*", ">", "%", "gr\u00fcn", "a\x00", "a\n", "a/b", strings.Repeat("x", maxTokenBytes+1)} {
		err := checkToken("cluster", s)
		if !errors.Is(err, ErrInvalidName) {
			t.Errorf("%q: %v, want ErrInvalidName", s, err)
			continue
		}
		for _, part := range []string{"cluster", quote(s), "A-Z a-z 0-9 _ -", "64"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error does not say %s: %v", part, err)
			}
		}
	}
}

func TestTokenFrom(t *testing.T) {
	tests := []struct{ s, want string }{
		{"svc-a", "svc-a"},
		{"web-1.example.org", "web-1-example-org"},
		{"my program (2)", "my-program-2"},
		{"grün", "gr-n"},
		{"...a...b...", "a-b"},
		{"", "client"},
		{"-", "client"},
		{"\x00\xff*>", "client"},
		{strings.Repeat("x", 100), strings.Repeat("x", maxTokenBytes)},
		{strings.Repeat("x", 63) + ".y", strings.Repeat("x", 63)},
		{strings.Repeat(".", 100) + "y", "y"},
	}
	for _, tt := range tests {
		if got := tokenFrom(tt.s); got != tt.want {
			t.Errorf("tokenFrom(%q) = %q, want %q", tt.s, got, tt.want)
		}
	}
}

func FuzzTokenFrom(f *testing.F) {
	for _, s := range []string{"", "a", "-", "a.b", strings.Repeat("x", 63) + ".y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token := tokenFrom(s)
		if err := checkToken("client", token); err != nil {
			t.Fatalf("tokenFrom(%q): %v", s, err)
		}
		if again := tokenFrom(token); again != token {
			t.Fatalf("tokenFrom(%q) = %q, and of that %q", s, token, again)
		}
	})
}

func TestSubjects(t *testing.T) {
	tests := []struct{ got, want string }{
		{requestSubject("prod", "acquire", "svc-a", "orders.42"), "lock.prod.node.acquire.svc-a.orders.42"},
		{requestSubject("prod", "refresh", "svc-a", ""), "lock.prod.node.refresh.svc-a"},
		{nodeSubject("prod"), "lock.prod.node.>"},
		{eventSubject("prod", "lost", "svc-a", "a%20b"), "lock.prod.event.lost.svc-a.a%20b"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestParseRequestSubject(t *testing.T) {
	for _, verb := range []string{"acquire", "release", "yield"} {
		for _, name := range []string{"orders", "orders.42", "a b", ".", "*", "refresh"} {
			enc, err := encodeResource(name)
			if err != nil {
				t.Fatal(err)
			}
			subject := requestSubject("prod", verb, "svc-a", enc)
			v, c, r, err := parseRequestSubject("prod", subject)
			if err != nil || v != verb || c != "svc-a" || r != name {
				t.Errorf("%s: %q, %q, %q, %v", subject, v, c, r, err)
			}
		}
	}
	for _, verb := range []string{"refresh", "info"} {
		subject := requestSubject("prod", verb, "svc-a", "")
		v, c, r, err := parseRequestSubject("prod", subject)
		if err != nil || v != verb || c != "svc-a" || r != "" {
			t.Errorf("%s: %q, %q, %q, %v", subject, v, c, r, err)
		}
	}
}

func TestParseRequestSubjectRefuses(t *testing.T) {
	var (
		anyError    = errors.New("any error")
		badSubjects = []struct {
			subject string
			want    error
		}{
			{"", anyError},
			{"lock", anyError},
			{"lock.prod", anyError},
			{"lock.prod.node", anyError},
			{"lock.test.node.acquire.svc-a.x", anyError},
			{"lock.production.node.acquire.svc-a.x", anyError},
			{"lock.prod.event.acquire.svc-a.x", anyError},
			{"block.prod.node.acquire.svc-a.x", anyError},
			{"x.lock.prod.node.acquire.svc-a.x", anyError},
			{"lock.prod.node.", errUnknownVerb},
			{"lock.prod.node.steal.svc-a.x", errUnknownVerb},
			{"lock.prod.node.ACQUIRE.svc-a.x", errUnknownVerb},
			{"lock.prod.node..svc-a.x", errUnknownVerb},
			{"lock.prod.node.acquire", ErrInvalidName},
			{"lock.prod.node.acquire.", ErrInvalidName},
			{"lock.prod.node.acquire..x", ErrInvalidName},
			{"lock.prod.node.acquire.svc%20a.x", ErrInvalidName},
			{"lock.prod.node.info.>", ErrInvalidName},
			{"lock.prod.node.acquire.svc-a", anyError},
			{"lock.prod.node.acquire.svc-a.", ErrInvalidName},
			{"lock.prod.node.acquire.svc-a.%", ErrInvalidName},
			{"lock.prod.node.acquire.svc-a.%61", ErrInvalidName},
			{"lock.prod.node.acquire.svc-a.x.", ErrInvalidName},
			{"lock.prod.node.acquire.svc-a.*", ErrInvalidName},
			{"lock.prod.node.refresh.svc-a.x", anyError},
			{"lock.prod.node.refresh.svc-a.", anyError},
			{"lock.prod.node.info.svc-a.x", anyError},
		}
	)
	for _, tt := range badSubjects {
		v, c, r, err := parseRequestSubject("prod", tt.subject)
		if err == nil || tt.want != anyError && !errors.Is(err, tt.want) {
			t.Errorf("%q: error %v, want %v", tt.subject, err, tt.want)
		}
		if v != "" || c != "" || r != "" {
			t.Errorf("%q: %q, %q, %q beside the error", tt.subject, v, c, r)
		}
	}
}

func FuzzParseRequestSubject(f *testing.F) {
	f.Add("lock.prod.node.acquire.svc-a.a%20b")
	f.Add("lock.prod.node.refresh.svc-a")
	f.Add("lock.prod.node.info.svc-a.")
	f.Fuzz(func(t *testing.T, subject string) {
		verb, client, resource, err := parseRequestSubject("prod", subject)
		if err != nil {
			return
		}
		var enc string
		if resource != "" {
			enc = checkName(t, resource)
		}
		if again := requestSubject("prod", verb, client, enc); again != subject {
			t.Fatalf("%q is taken apart as %q, %q, %q, which makes %q", subject, verb, client, resource, again)
		}
	})
}

func TestPlainNamesDoNotAllocate(t *testing.T) {
	const name = "orders.eu-west.42"
	subject := requestSubject("prod", "acquire", "svc-a", name)
	n := testing.AllocsPerRun(100, func() {
		if _, err := encodeResource(name); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := parseRequestSubject("prod", subject); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEncodeResource(b *testing.B) {
	for _, bench := range []struct{ what, name string }{
		{"plain", "orders.eu-west.42"},
		{"escaped", "orders.eu west.42"},
	} {
		b.Run(bench.what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := encodeResource(bench.name); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
