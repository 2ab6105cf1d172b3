package subject

import (
	"errors"
	"strings"
	"testing"
)

// TestWorstSubjectFits checks the reason for MaxName: a publish of the longest subject,
// with room for a reply inbox, is a protocol line that a server accepts.
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

// natsMatches is how a NATS server compares a subscription or a permission with a subject.
func natsMatches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i := range p {
		switch {
		case p[i] == ">":
			return len(s) > i
		case i >= len(s) || p[i] != "*" && p[i] != s[i]:
			return false
		}
	}
	return len(p) == len(s)
}

// everySubject calls yield with every subject that the builders make of names that are as
// easy as possible to mistake for something else.
func everySubject(yield func(built string, want Subject, resource string)) {
	words := append(append(append([]string{"lock", "a", "-", "prod"}, families...), verbs...), kinds...)
	resources := []string{"a", "a.b", ".", "*", ">", "%", "lock.prod.node.acquire", "api", "node.>", "é ", strings.Repeat("\xff", MaxName)}
	encode := func(resource string) string {
		if resource == "" {
			return ""
		}
		encoded, err := EncodeName(resource)
		if err != nil {
			panic(err)
		}
		return encoded
	}
	for _, cluster := range []string{"prod", "lock", FamilyNode, FamilyAPI, Acquire} {
		for _, client := range words {
			yield(Batch(cluster, client), Subject{cluster, FamilyNode, BatchVerb, client, ""}, "")
			for _, verb := range verbs {
				if !HasResource(verb) {
					yield(Request(cluster, verb, client, ""), Subject{cluster, FamilyOf(verb), verb, client, ""}, "")
					continue
				}
				for _, r := range resources {
					yield(Request(cluster, verb, client, encode(r)), Subject{cluster, FamilyOf(verb), verb, client, encode(r)}, r)
				}
			}
			for _, r := range resources {
				for _, kind := range kinds {
					yield(Event(cluster, kind, client, encode(r)), Subject{cluster, FamilyEvent, kind, client, encode(r)}, r)
				}
			}
			for _, verb := range words {
				for _, r := range append([]string{""}, resources[:5]...) {
					yield(Call(cluster, verb, client, encode(r)), Subject{cluster, FamilyAPI, verb, client, encode(r)}, r)
				}
			}
		}
		for _, verb := range words {
			yield(Call(cluster, verb, "", ""), Subject{cluster, FamilyAPI, verb, "", ""}, "")
		}
	}
}

// TestEverySubject checks what permissions rely on. Each subject is read as the parts that
// it was built of, and no two subjects are the same. The wildcard of a family matches its
// own subjects and no others, so that no traffic of a cluster reaches the servers of the
// API.
func TestEverySubject(t *testing.T) {
	seen := map[string]bool{}
	everySubject(func(built string, want Subject, resource string) {
		if seen[built] {
			t.Fatalf("%q is built of different parts", built)
		}
		seen[built] = true
		p, name, err := Parse(built)
		if err != nil || p != want || name != resource {
			t.Fatalf("%q is read as %+v of %q (%v), and was built of %+v of %q", built, p, name, err, want, resource)
		}
		if p.String() != built {
			t.Fatalf("%q is written as %q", built, p)
		}
		if s, ok := Split(built); !ok || s != want {
			t.Fatalf("%q is taken apart as %+v, %v", built, s, ok)
		}
		if !natsMatches(Cluster(want.Cluster), built) || !IsReserved(built) {
			t.Fatalf("%q is not of cluster %s", built, want.Cluster)
		}
		for _, family := range families {
			if natsMatches(Family(want.Cluster, family), built) != (family == want.Family) {
				t.Fatalf("%q and the wildcard of %s", built, family)
			}
		}
		verb, client, name, err := ParseRequest(want.Cluster, built)
		if request := want.Family == FamilyNode || want.Family == FamilyAdmin; request != (err == nil) {
			t.Fatalf("%q as a request: %v", built, err)
		} else if request && (verb != want.Verb || client != want.Client || name != resource) {
			t.Fatalf("%q as a request: %s, %s, %q", built, verb, client, name)
		}
		if _, _, _, err := ParseRequest(want.Cluster+"x", built); err == nil {
			t.Fatalf("%q is taken for a request of another cluster", built)
		}
	})
	if len(seen) < 10_000 {
		t.Errorf("only %d subjects", len(seen))
	}
}

// TestEveryWord reads every subject of up to six tokens out of a few, most of which make no
// sense. What is accepted must be written again unchanged.
func TestEveryWord(t *testing.T) {
	tokens := []string{"", "c", "node", "admin", "event", "api", "acquire", "list", "lost", "*", "%2A"}
	read := 0
	var extend func(s string, left int)
	extend = func(s string, left int) {
		p, name, err := Parse(s)
		if err == nil {
			read++
			if p.String() != s {
				t.Fatalf("%q is read as %+v, which is written %q", s, p, p)
			}
			if enc := p.Resource; enc != "" {
				if again, err := EncodeName(name); err != nil || again != enc {
					t.Fatalf("%q has the resource %q, which is written %q, %v", s, name, again, err)
				}
			}
		} else if p != (Subject{}) || name != "" {
			t.Fatalf("%q: %+v, %q beside the error", s, p, name)
		}
		if q, ok := Split(s); ok && q.String() != s {
			t.Fatalf("%q is taken apart as %+v, which is written %q", s, q, q)
		} else if !ok && err == nil {
			t.Fatalf("%q is read, but not taken apart", s)
		}
		for _, token := range tokens {
			if left > 0 {
				extend(s+"."+token, left-1)
			}
		}
	}
	extend("lock", 5)
	if read < 100 {
		t.Errorf("only %d were read", read)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "lock", "lock.", "lock.c", "lock.c.", "lock.c.node", "lock..node.a", "lock.c..a", "lock.c.gw.where", "lock.c.other.a.b.c",
		"lock.c%20.node.a", "lock.c.event.lost", "lock.c.event.lost.a", "lock.c.event.stolen.a.b", "lock.c.event.lost.a%20.b", "lock.c.event.lost.a.b.",
		"lock.c.api.", "lock.c.api.a b", "lock.c.api.a.b c", "lock.c.api.a.b.%61", "lock.c.api.a..b", "$KV.b.k", "lock.c.node.acquire.a\x1b.b",
	} {
		if p, name, err := Parse(s); err == nil {
			t.Errorf("%q is read as %+v of %q", s, p, name)
		} else if strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("%q: the error is %q", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"lock.prod.node.acquire.svc-a.a%20b", "lock.c.event.lost.a.b", "lock.c.api.acquire", "lock.c.api.acquire.a.b.c", "lock.c.node.a", "lock.c.gw.to.g.poll"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, ok := Split(s)
		if ok && q.String() != s {
			t.Fatalf("%q is taken apart as %+v, which is written %q", s, q, q)
		}
		p, name, err := Parse(s)
		if err != nil {
			return
		}
		if !ok || p != q || p.String() != s {
			t.Fatalf("%q is read as %+v, taken apart as %+v", s, p, q)
		}
		if p.Resource != "" {
			if enc, err := EncodeName(name); err != nil || enc != p.Resource {
				t.Fatalf("%q has the resource %q, which is written %q, %v", s, name, enc, err)
			}
		}
	})
}

func TestIsReserved(t *testing.T) {
	for s, want := range map[string]bool{
		"": false, "_INBOX.a.b": false, "_R_.x.y": false, "lock": false, "locks.a": false, "reply.lock.a": false,
		"lock.c.node.a": true, "lock.": true, "$JS.API.STREAM.LIST": true, "$SRV.PING": true,
	} {
		if IsReserved(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
	for _, s := range []string{InboxPrefix("svc-a") + ".x"} {
		if IsReserved(s) || !natsMatches(AllInboxes, s) {
			t.Errorf("%s is no inbox", s)
		}
	}
}

func BenchmarkAppendRequest(b *testing.B) {
	b.ReportAllocs()
	buf := make([]byte, 0, 128)
	for b.Loop() {
		buf = AppendRequest(buf[:0], "default", Acquire, "host-program", "orders.eu-west.42")
	}
}

func BenchmarkAppendEvent(b *testing.B) {
	b.ReportAllocs()
	buf := make([]byte, 0, 128)
	for b.Loop() {
		buf = AppendEvent(buf[:0], "default", Acquired, "host-program", "orders.eu-west.42")
	}
}

func BenchmarkParseRequest(b *testing.B) {
	for _, bench := range []struct{ what, subject string }{
		{"acquire", Request("default", Acquire, "host-program", "orders.eu-west.42")},
		{"refresh", Request("default", Refresh, "host-program", "")},
		{"batch", Batch("default", "host-program")},
	} {
		b.Run(bench.what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, _, err := ParseRequest("default", bench.subject); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParseEvent(b *testing.B) {
	s := Event("default", Acquired, "host-program", "orders.eu-west.42")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse(s); err != nil {
			b.Fatal(err)
		}
	}
}
