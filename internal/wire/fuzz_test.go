package wire

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/subject"
)

var verbs = []Verb{Acquire, Release, Yield, Refresh, Info, List, Inspect, Evict, Configure, "other"}

func addGolden(f *testing.F, add func(body []byte)) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "golden", "*.json"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no examples to start from: %v", err)
	}
	for _, file := range files {
		body := read(f, file)
		add(body)
		add(bytes.ReplaceAll(body, []byte("\n"), nil))
	}
	for _, body := range []string{`{}`, `null`, `{"live":[[1,2,3],[]],"lo":1,"hi":9}`, `{"SEQ":1,"seq":2}`, `{"nonce":"\ud800"}`, `{"nodes":null}`} {
		add([]byte(body))
	}
}

// For every body, the decoder does not panic and keeps its guarantees about what it
// accepts. What was decoded is the same after it is encoded and decoded again.
func FuzzDecodeRequest(f *testing.F) {
	addGolden(f, func(body []byte) {
		for i := range verbs {
			f.Add(uint8(i), body)
		}
	})
	f.Fuzz(func(t *testing.T, verb uint8, body []byte) {
		v := verbs[int(verb)%len(verbs)]
		r, err := DecodeRequest(v, "client", "resource", body)
		if err != nil {
			if r != nil || !errors.Is(err, ErrMalformed) || len(err.Error()) > 1000 {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		checkRequest(t, r)
		again := AppendRequest([]byte("x"), r)
		if again[0] != 'x' {
			t.Fatal("AppendRequest does not append")
		}
		back, err := DecodeRequest(v, "client", "resource", again[1:])
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%s\nis decoded as  %+v\nwhich became   %s\nand then       %+v, %v", body, r, again[1:], back, err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	addGolden(f, func(body []byte) { f.Add(body) })
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := DecodeAnswer(body)
		if err != nil {
			if a != nil || !errors.Is(err, ErrMalformed) || len(err.Error()) > 1000 {
				t.Fatalf("%+v, %v", a, err)
			}
			return
		}
		checkAnswer(t, a)
		again := AppendAnswer([]byte("x"), a)
		if again[0] != 'x' {
			t.Fatal("AppendAnswer does not append")
		}
		back, err := DecodeAnswer(again[1:])
		if err != nil || !reflect.DeepEqual(back, a) {
			t.Fatalf("%s\nis decoded as  %+v\nwhich became   %s\nand then       %+v, %v", body, a, again[1:], back, err)
		}
	})
}

type limits struct{ t *testing.T }

func (l limits) number(key string, v, least uint64) {
	if v < least || v > MaxInt {
		l.t.Errorf("%s is %d", key, v)
	}
}

func (l limits) micros(key string, v int64) {
	if v < 0 || v > MaxInt {
		l.t.Errorf("%s is %d", key, v)
	}
}

func (l limits) length(key, s string, limit int) {
	if len(s) > limit {
		l.t.Errorf("%s has %d bytes", key, len(s))
	}
}

func (l limits) duration(key string, d, least, most time.Duration) {
	if d < least || d > most {
		l.t.Errorf("%s is %v", key, d)
	}
	if d%time.Millisecond != 0 {
		l.t.Errorf("%s is %v, the wire has whole milliseconds", key, d)
	}
}

func (l limits) runs(key string, runs Runs, lo, hi uint64) {
	if len(runs) > MaxRuns {
		l.t.Errorf("%s has %d runs", key, len(runs))
	}
	for i, r := range runs {
		if r.Lo > r.Hi || r.Lo < lo || r.Hi > hi || i > 0 && r.Lo <= runs[i-1].Hi {
			l.t.Errorf("%s is %v within %d and %d", key, runs, lo, hi)
		}
	}
}

const longest = time.Duration(1<<40) * time.Millisecond

func checkRequest(t *testing.T, r *Request) {
	l := limits{t}
	if r.Verb != Info {
		l.number("beat", r.SentAt, 0)
	}
	switch r.Verb {
	case Acquire, Yield:
		l.number("seq", r.Claim.Seq, 1)
		l.number("beat", r.SentAt, 1)
	case Release:
		l.number("seq", r.Claim.Seq, 1)
	case Evict:
		l.number("seq", r.Claim.Seq, 1)
		if r.Holder == "" {
			t.Error("nobody is evicted")
		}
	case List:
		if r.Query != "" && !subject.IsPattern(r.Query) {
			t.Errorf("pattern %q", r.Query)
		}
	case Refresh:
		l.number("beat", r.SentAt, 1)
		l.number("lo", r.Lo, 1)
		l.number("hi", r.Hi, 0)
	}
	if r.Verb == Acquire {
		l.duration("ttl", r.TTL, MinLease, MaxLease)
	}
	l.micros("at", r.At)
	l.micros("now", r.Now)
	l.micros("started", r.Started)
	l.number("want", r.MinFence, 0)
	l.number("token", r.Token, 0)
	l.number("after", r.After, 0)
	l.length("note", r.Note, MaxNote)
	l.length("holder", r.Holder, MaxToken)
	l.length("node", r.Node, MaxToken)
	l.length("digest", r.Digest, MaxToken)
	l.length("nonce", r.Nonce, MaxText)
	l.runs("live", r.Live, r.Lo, r.Hi)
	l.number("config.epoch", r.Epoch, 0)
	if s := r.Step; s != nil {
		l.length("node", s.Node, MaxToken)
		l.number("config.epoch", s.Epoch, 1)
		switch s.Kind {
		case Prepare:
			l.ballot(s.Ballot)
			if !isDigest(s.Prev) {
				t.Errorf("digest %q", s.Prev)
			}
		case Accept:
			l.ballot(s.Ballot)
			l.record(s.Record)
		case Learn:
			l.record(s.Record)
			l.links(s.Links)
		default:
			t.Errorf("step %q", s.Kind)
		}
	} else if r.Verb == Configure {
		t.Error("config without a step")
	}
	l.over(append(r.Over[:len(r.Over):len(r.Over)], r.Recalled...))
}

func (l limits) over(over []ClaimOf) {
	if len(over) > MaxOver {
		l.t.Errorf("%d claims may be over", len(over))
	}
	for _, c := range over {
		l.length("over.client", c.Client, MaxToken)
		l.number("over.seq", c.Claim.Seq, 1)
	}
}

func (l limits) ballot(b Ballot) { l.number("ballot.n", b.N, 1) }

func (l limits) record(r *EpochRecord) {
	if err := r.Check(); err != nil {
		l.t.Error(err)
	}
}

func (l limits) links(links []Link) {
	if len(links) == 0 || len(links) > MaxLinks {
		l.t.Errorf("%d links", len(links))
	}
	for i, link := range links {
		l.number("links.epoch", link.Epoch, 0)
		if !isDigest(link.Digest) || i > 0 && links[i-1].Epoch >= link.Epoch {
			l.t.Errorf("links %v", links)
		}
	}
}

func checkAnswer(t *testing.T, a *Answer) {
	l := limits{t}
	l.length("node", a.Node, MaxToken)
	l.length("digest", a.Digest, MaxToken)
	l.length("client", a.Client, MaxToken)
	l.over(a.Over)
	for _, y := range a.Yielded {
		l.over([]ClaimOf{y.ClaimOf})
		l.number("yielded.beat", y.SentAt, 1)
	}
	if len(a.Yielded) > MaxOver {
		t.Errorf("%d claims yield", len(a.Yielded))
	}
	l.length("for", a.For, MaxToken)
	l.length("reason", string(a.Reason), MaxToken)
	l.length("text", a.Text, MaxText)
	l.number("fence", a.Fence, 0)
	l.duration("recovering", a.Recovering, 0, longest)
	if a.Place < 0 {
		t.Errorf("place %d", a.Place)
	}
	if a.Again < 0 {
		t.Errorf("again %d", a.Again)
	}
	switch a.Kind {
	case Granted:
		l.number("fence", a.Fence, 1)
		fallthrough
	case Queued, Refused, Recall, Evicted:
		l.number("seq", a.Claim.Seq, 1)
		l.number("beat", a.SentAt, 1)
	case Refreshed:
		l.number("beat", a.SentAt, 1)
		l.number("lo", a.Lo, 1)
		l.number("hi", a.Hi, 0)
	case Informed:
		if a.Info == nil {
			t.Fatal("info without info")
		}
	case Evicting, Over:
	case Configured:
		s := a.Step
		l.number("config.epoch", s.Epoch, 0)
		l.number("floor", s.Floor, 0)
		l.length("why", string(s.Why), MaxToken)
		l.duration("left", s.Left, 0, longest)
		if s.Kind != Learn {
			l.ballot(s.Ballot)
		}
		if s.Record != nil {
			l.ballot(s.Accepted)
			l.record(s.Record)
		} else if s.Accepted != (Ballot{}) {
			t.Error("a ballot at which nothing was accepted")
		}
	case Listed:
		if a.List == nil {
			t.Fatal("a list without a list")
		}
	default:
		t.Errorf("kind %q", a.Kind)
	}
	l.length("nonce", a.Nonce, MaxText)
	l.length("by", a.By, MaxToken)
	if p := a.List; p != nil {
		l.number("after", p.After, 0)
		l.number("next", p.Next, 0)
		for _, r := range p.Locks {
			if _, err := subject.EncodeName(r.Name); err != nil || r.Votes < 0 || r.Waiting < 0 {
				t.Errorf("%+v, %v", r, err)
			}
			for _, c := range r.Claims {
				l.number("claims.seq", c.Claim.Seq, 1)
				l.number("claims.fence", c.Fence, 0)
				l.number("claims.token", c.Token, 0)
				l.micros("claims.at", c.At)
				l.length("claims.client", c.Client, MaxToken)
				l.length("claims.note", c.Note, MaxNote)
				l.duration("claims.for", c.For, 0, longest)
				l.duration("claims.lease", c.Lease, 0, longest)
			}
		}
	}
	l.runs("waiting", a.Waiting, a.Lo, a.Hi)
	l.runs("unknown", a.Unknown, a.Lo, a.Hi)
	if b := a.Blocker; b != nil {
		l.number("blocker.seq", b.Claim.Seq, 1)
		l.length("blocker.client", b.Client, MaxToken)
		l.duration("blocker.for", b.For, 0, longest)
	}
	if i := a.Info; i != nil {
		l.length("nonce", i.Nonce, MaxText)
		l.length("state", string(i.State), MaxToken)
		l.length("version", i.Version, MaxText)
		l.duration("skew", i.Skew, 0, longest)
		l.micros("started", i.Started)
		l.micros("now", i.Now)
		if i.Claims < 0 {
			t.Errorf("claims %d", i.Claims)
		}
		if c := i.Config; c != nil {
			l.number("config.epoch", c.Epoch, 0)
			l.duration("had", c.Had, 0, longest)
			if c.Record != nil {
				l.record(c.Record)
				l.links(c.Links)
			}
		}
		if i.State == Joining {
			if i.Nodes != nil || i.MaxTTL != 0 {
				t.Errorf("a node that joins has nodes %q, %v", i.Nodes, i.MaxTTL)
			}
			return
		}
		l.duration("max_ttl", i.MaxTTL, MinLease, MaxLease)
		if len(i.Nodes) == 0 || len(i.Nodes) > MaxNodes || !slices.IsSorted(i.Nodes) {
			t.Errorf("nodes %q", i.Nodes)
		}
	}
}

// scan accepts and rejects the same bodies as the simplest reader that uses encoding/json.
func FuzzScan(f *testing.F) {
	addGolden(f, func(body []byte) { f.Add(body) })
	for _, body := range []string{
		` { "seq" : 1 , "live" : [ [ 1 , 2 ] , [ 3 , 4 ] ] } `, `{"seq":1,}`, `{"live":[[1,2],]}`, `{,"seq":1}`, `{"seq":01}`, `{"seq":1}}`,
		`{"blocker":{"seq":1},"blocker":{"client":"a"}}`, `{"nodes":["a","b"],"nodes":[]}`, `{"held":trueish}`, `{"at":-0}`, `{"text":"` + "\x7f\x80" + `"}`,
		`{"SEQ":7}`, `{"\u212aeep":true,"\u017feq":1}`, `{"Keep":true}`, `{"\u0073eq":7}`, `{"seq":1,"\u0073eq":2}`, `{"seq":null}`, `{"blocker":null}`,
		`{"text":"\ud83d\ude00"}`, `{"text":"\ud83d"}`, `{"text":"\ude00\ud83d"}`, `{"text":"\ud83d\\ude00"}`, `{"other":"\udc00"}`, `{"\udc00":1}`,
		`{"text":"` + "\xff" + `"}`, `{"other":"` + "\xc3" + `"}`, `{"other":[{"a":[1.5e-3,-0,null,true,{}]}],"seq":1}`, `{"other":1,"other":2}`,
		strings.Repeat(`{"a":`, maxDepth) + "1" + strings.Repeat("}", maxDepth), strings.Repeat(`{"a":`, maxDepth+1) + "1" + strings.Repeat("}", maxDepth+1),
		`{"live":[[1,2,3]]}`, `{"live":[[1]]}`, `{"seq":1e0}`, `{"seq":1.0}`, `{"seq":100000000000000000}`, `{"seq":1000000000000000000}`, `{"text":"\/\b\f\n\r\t\"\\"}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var fast, slow wire
		err, want := fast.scan(body), twin(body, &slow)
		if (err == nil) != (want == nil) {
			t.Fatalf("%s\nby hand      %v\nplainly      %v", body, err, want)
		}
		if fast.seen = 0; err == nil && !reflect.DeepEqual(fast, slow) {
			t.Fatalf("%s\nby hand is  %+v\nplainly is  %+v", body, fast, slow)
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	event := `{"mode":"exclusive","token":1750000000000000,"votes":2,"nodes":3,"waited_ms":1.842,"held_ms":4200.113,"note":"n","evicted_by":"ops"}`
	for _, body := range []string{
		event, `{"mode":"shared","waited_ms":1e3}`, `{"mode":"shared","waited_ms":-0}`, `{"mode":"shared","waited_ms":-1}`, `{"mode":"shared","held_ms":1e999}`,
		`{"mode":"shared","held_ms":0.}`, `{"mode":"shared","held_ms":null}`, `{"mode":"shared","MODE":"x"}`, `{"mode":"shared","mode":"shared"}`, `{"mode":"shared","token":1.0}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var plain wireEvent
		err := twin(body, &plain)
		got, gotErr := DecodeEvent(body)
		if gotErr != nil && (!errors.Is(gotErr, ErrMalformed) || len(gotErr.Error()) > 1000) {
			t.Fatal(gotErr)
		}
		if gotErr == nil {
			want := EventBody{plain.Mode, plain.Token, int(plain.Votes), int(plain.Nodes), plain.Waited, plain.Held, plain.Note, plain.EvictedBy}
			if err != nil || got != want || got.Token > MaxInt || len(got.Note) > MaxNote || len(got.EvictedBy) > MaxToken {
				t.Fatalf("%s\nis read as    %+v\nplainly it is %+v, %v", body, got, want, err)
			}
		}
		var fast wireEvent
		if p := newScanner(body); (fast.object(&p) && p.end()) != (err == nil) {
			t.Fatalf("%s\nby hand      %v\nplainly      %v", body, p.err(), err)
		}
	})
}

// Each field is read under its name, has a bit of its own, and comes only once, in each
// kind of object. A field that was added with the bit of another one fails here.
func TestEachFieldOnce(t *testing.T) {
	value := func(t reflect.Type) string {
		switch t.Kind() {
		case reflect.String:
			return `"x"`
		case reflect.Bool:
			return "true"
		case reflect.Slice:
			return "[]"
		case reflect.Pointer:
			return "{}"
		}
		return "7"
	}
	for _, one := range []struct {
		before, after string
		typ           reflect.Type
	}{
		{"", "", reflect.TypeFor[wire]()}, {`{"blocker":`, "}", reflect.TypeFor[wireBlocker]()},
		{`{"locks":[`, "]}", reflect.TypeFor[wireRecord]()}, {`{"locks":[{"claims":[`, "]}]}", reflect.TypeFor[wireClaimRecord]()},
		{`{"over":[`, "]}", reflect.TypeFor[wireClaim]()},
		{`{"config":`, "}", reflect.TypeFor[wireConfig]()}, {`{"config":{"ballot":`, "}}", reflect.TypeFor[wireBallot]()},
		{`{"config":{"links":[`, "]}}", reflect.TypeFor[wireLink]()}, {`{"config":{"record":`, "}}", reflect.TypeFor[wireEpoch]()},
		{`{"config":{"record":{"next":[`, "]}}}", reflect.TypeFor[wireMember]()},
	} {
		var all []string
		for field := range one.typ.Fields() {
			if field.IsExported() {
				all = append(all, fmt.Sprintf("%q:%s", field.Tag.Get("json"), value(field.Type)))
			}
		}
		body := one.before + "{" + strings.Join(all, ",") + "}" + one.after
		var fast, slow wire
		if err := fast.scan([]byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		if err := twin([]byte(body), &slow); err != nil {
			t.Errorf("plainly: %s: %v", body, err)
		}
		if fast.seen = 0; !reflect.DeepEqual(fast, slow) {
			t.Errorf("%s\nby hand is  %+v\nplainly is  %+v", body, fast, slow)
		}
		for _, field := range all {
			name, rest, _ := strings.Cut(field[1:], `"`)
			for _, twice := range []string{field + "," + field, field + `,"\u` + fmt.Sprintf("%04x", name[0]) + name[1:] + `"` + rest} {
				body := one.before + "{" + twice + "}" + one.after
				if err := new(wire).scan([]byte(body)); err == nil {
					t.Errorf("%s is read", body)
				}
			}
			for _, other := range []string{strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:], strings.ReplaceAll(name, "k", "\u212a"), strings.ReplaceAll(name, "s", "\u017f")} {
				body := one.before + `{"` + other + `":{}}` + one.after
				if got := new(wire); other != name && got.scan([]byte(body)) != nil {
					t.Errorf("%s is not ignored", body)
				}
			}
			body := one.before + `{"` + name + `":null}` + one.after
			if err := new(wire).scan([]byte(body)); err == nil {
				t.Errorf("%s is read", body)
			}
		}
	}
}
