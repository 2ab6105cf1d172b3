package qlock

import (
	"errors"
	"strings"
	"testing"

	"github.com/qlock/qlock/internal/proto"
)

// TestWorstSubjectFits holds proto.MaxName to its reason: a publish of the worst
// name, with room for a reply inbox, is a protocol line that a server takes.
func TestWorstSubjectFits(t *testing.T) {
	token := strings.Repeat("t", maxTokenBytes)
	enc, err := proto.EncodeName(strings.Repeat("\xff", proto.MaxName))
	if err != nil {
		t.Fatal(err)
	}
	const protocolLine, inbox = 4096, 512
	if n := len(requestSubject(token, "release", token, enc)); n > protocolLine-inbox {
		t.Errorf("the worst subject has %d bytes", n)
	}
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
		{string(appendEventSubject(nil, "prod", "lost", "svc-a", "a%20b")), "lock.prod.event.lost.svc-a.a%20b"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestParseRequestSubject(t *testing.T) {
	for _, verb := range []string{"acquire", "release", "yield", "inspect", "evict"} {
		for _, name := range []string{"orders", "orders.42", "a b", ".", "*", "refresh"} {
			enc, err := proto.EncodeName(name)
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
	for _, verb := range []string{"refresh", "info", "list"} {
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
			{"lock.prod.node.", ErrInvalidName},
			{"lock.prod.node.svc%20a", ErrInvalidName},
			{"lock.prod.node.steal.svc-a.x", errUnknownVerb},
			{"lock.prod.node.evict.svc-a.x", errUnknownVerb}, // in the wrong place: a permission may allow it
			{"lock.prod.node.list.svc-a", errUnknownVerb},
			{"lock.prod.admin.acquire.svc-a.x", errUnknownVerb},
			{"lock.prod.admin.", errUnknownVerb},
			{"lock.prod.admin.svc-a", errUnknownVerb},
			{"lock.prod.admin.steal.svc-a.x", errUnknownVerb},
			{"lock.prod.node.ACQUIRE.svc-a.x", errUnknownVerb},
			{"lock.prod.node..svc-a.x", errUnknownVerb},
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
	f.Add("lock.prod.node.svc-a")
	f.Fuzz(func(t *testing.T, subject string) {
		verb, client, resource, err := parseRequestSubject("prod", subject)
		if err != nil {
			return
		}
		var enc string
		if resource != "" {
			if enc, err = proto.EncodeName(resource); err != nil {
				t.Fatalf("%q: %v", subject, err)
			}
		}
		again := requestSubject("prod", verb, client, enc)
		if verb == batchVerb {
			again = batchSubject("prod", client)
		}
		if again != subject {
			t.Fatalf("%q is taken apart as %q, %q, %q, which makes %q", subject, verb, client, resource, again)
		}
	})
}

func TestPlainNamesDoNotAllocate(t *testing.T) {
	const name = "orders.eu-west.42"
	subject := requestSubject("prod", "acquire", "svc-a", name)
	n := testing.AllocsPerRun(100, func() {
		if _, err := proto.EncodeName(name); err != nil {
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
