package subject

import (
	"errors"
	"strings"
	"testing"
)

// TestWorstSubjectFits holds MaxName to its reason: a publish of the worst
// name, with room for a reply inbox, is a protocol line that a server takes.
func TestWorstSubjectFits(t *testing.T) {
	token := strings.Repeat("t", MaxToken)
	enc, err := EncodeName(strings.Repeat("\xff", MaxName))
	if err != nil {
		t.Fatal(err)
	}
	const protocolLine, inbox = 4096, 512
	if n := len(Request(token, "release", token, enc)); n > protocolLine-inbox {
		t.Errorf("the worst subject has %d bytes", n)
	}
}

func TestSubjects(t *testing.T) {
	tests := []struct{ got, want string }{
		{Request("prod", "acquire", "svc-a", "orders.42"), "lock.prod.node.acquire.svc-a.orders.42"},
		{Request("prod", "refresh", "svc-a", ""), "lock.prod.node.refresh.svc-a"},
		{Family("prod", FamilyNode), "lock.prod.node.>"},
		{Event("prod", "lost", "svc-a", "a%20b"), "lock.prod.event.lost.svc-a.a%20b"},
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
			enc, err := EncodeName(name)
			if err != nil {
				t.Fatal(err)
			}
			subject := Request("prod", verb, "svc-a", enc)
			v, c, r, err := ParseRequest("prod", subject)
			if err != nil || v != verb || c != "svc-a" || r != name {
				t.Errorf("%s: %q, %q, %q, %v", subject, v, c, r, err)
			}
		}
	}
	for _, verb := range []string{"refresh", "info", "list"} {
		subject := Request("prod", verb, "svc-a", "")
		v, c, r, err := ParseRequest("prod", subject)
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
			{"lock.prod.node.steal.svc-a.x", ErrUnknownVerb},
			{"lock.prod.node.evict.svc-a.x", ErrUnknownVerb}, // in the wrong place: a permission may allow it
			{"lock.prod.node.list.svc-a", ErrUnknownVerb},
			{"lock.prod.admin.acquire.svc-a.x", ErrUnknownVerb},
			{"lock.prod.admin.", ErrInvalidName},
			{"lock.prod.admin.svc-a", ErrUnknownVerb},
			{"lock.prod.admin.steal.svc-a.x", ErrUnknownVerb},
			{"lock.prod.node.ACQUIRE.svc-a.x", ErrUnknownVerb},
			{"lock.prod.node..svc-a.x", ErrInvalidName},
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
		v, c, r, err := ParseRequest("prod", tt.subject)
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
		verb, client, resource, err := ParseRequest("prod", subject)
		if err != nil {
			return
		}
		var enc string
		if resource != "" {
			if enc, err = EncodeName(resource); err != nil {
				t.Fatalf("%q: %v", subject, err)
			}
		}
		again := Request("prod", verb, client, enc)
		if verb == BatchVerb {
			again = Batch("prod", client)
		}
		if again != subject {
			t.Fatalf("%q is taken apart as %q, %q, %q, which makes %q", subject, verb, client, resource, again)
		}
	})
}

func TestPlainNamesDoNotAllocate(t *testing.T) {
	const name = "orders.eu-west.42"
	subject := Request("prod", "acquire", "svc-a", name)
	n := testing.AllocsPerRun(100, func() {
		if _, err := EncodeName(name); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := ParseRequest("prod", subject); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
