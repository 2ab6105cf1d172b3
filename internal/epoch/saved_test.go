package epoch

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// reread is what a node finds that starts after this state was written.
func reread(t testing.TB, s *State) State {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeState(s.ID, b)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	want := *s
	if want.Had = want.Had.Truncate(time.Millisecond); b == nil {
		want.Had = 0 // nobody needs it
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v comes back as %+v", want, got)
	}
	return got
}

// states are some of all kinds.
func states() map[string]State {
	s, links := simple("a b c")
	j := toward(s, "c d")
	j.NextMaxTTL = 2 * maxTTL
	end := after(j, j.Next, j.NextMaxTTL, j.NextSkew, 77)
	first := *s
	first.Epoch, first.Floor = 1, 0
	low, high := wire.Ballot{N: 3, Run: idOf("x")}, wire.Ballot{N: 4, Run: idOf("y")}
	jLinks := append(links[:len(links):len(links)], wire.Link{Epoch: j.Epoch, Digest: j.Digest()})
	return map[string]State{
		"new":                   {ID: idOf("a")},
		"promised at epoch 0":   {ID: idOf("a"), Promised: low, Had: time.Second},
		"accepted the first":    {ID: idOf("a"), Promised: high, Accepted: low, Proposal: &first},
		"a record":              {ID: idOf("a"), Record: s, Links: links, Had: time.Hour + 1},
		"accepted a change":     {ID: idOf("a"), Record: s, Links: links, Promised: low, Accepted: low, Proposal: j},
		"joint":                 {ID: idOf("a"), Record: j, Links: jLinks},
		"accepted a new list":   {ID: idOf("a"), Record: j, Links: jLinks, Promised: high, Accepted: high, Proposal: end},
		"promised and accepted": {ID: idOf("a"), Record: j, Links: jLinks, Promised: high, Accepted: low, Proposal: end, Had: maxTTL},
	}
}

func TestSavedState(t *testing.T) {
	for what, s := range states() {
		t.Run(what, func(t *testing.T) { reread(t, &s) })
	}
	if b, err := (&State{ID: idOf("a"), Had: time.Hour}).Encode(); b != nil || err != nil {
		t.Errorf("a node that never promised has to keep %s, %v", b, err)
	}
}

// The form on disk is fixed: the next version must read it.
func TestSavedForm(t *testing.T) {
	id := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	list := []wire.Member{{Name: "a", ID: id}}
	r := &Record{Cluster: "prod", CID: id, Epoch: 1, Prev: "0123456789abcdef", Nodes: list, MaxTTL: 30 * time.Second, Skew: 25 * time.Second}
	j := toward(r, "b")
	j.NextMaxTTL, j.NextSkew = r.MaxTTL, r.Skew
	j.Next[0].ID = uuid.MustParse("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
	s := State{
		ID: id, Record: r, Links: []wire.Link{{Epoch: 0, Digest: r.Prev}, {Epoch: 1, Digest: r.Digest()}},
		Promised: wire.Ballot{N: 2, Run: id}, Accepted: wire.Ballot{N: 2, Run: id}, Proposal: j, Had: 1500 * time.Millisecond,
	}
	const u = `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`
	nodes := `"nodes":[{"name":"a","id":` + u + `}],"max_ttl_ms":30000,"skew_ms":25000`
	want := `{"record":{"cluster":"prod","cid":` + u + `,"epoch":1,"prev":"0123456789abcdef","floor":0,` + nodes + `},` +
		`"links":[{"epoch":0,"digest":"0123456789abcdef"},{"epoch":1,"digest":"` + r.Digest() + `"}],` +
		`"promised":{"n":2,"run":` + u + `},"accepted":{"n":2,"run":` + u + `},` +
		`"proposal":{"cluster":"prod","cid":` + u + `,"epoch":2,"prev":"` + r.Digest() + `","floor":0,` + nodes +
		`,"next":[{"name":"b","id":"6ba7b811-9dad-11d1-80b4-00c04fd430c8"}],"next_max_ttl_ms":30000,"next_skew_ms":25000},"had_ms":1500}`
	b, err := s.Encode()
	if err != nil || string(b) != want {
		t.Errorf("got\n%s, %v\nwant\n%s", b, err, want)
	}
	if got, err := DecodeState(id, []byte(want)); err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A state that no node can have is not taken: a node that goes by half of what it promised
// may accept what it promised not to.
func TestStateThatCannotBe(t *testing.T) {
	all := states()
	for _, c := range []struct {
		what, of string
		change   func(*State)
		wrong    string
	}{
		{"no history", "a record", func(s *State) { s.Links = nil }, "history"},
		{"the history of another", "a record", func(s *State) { r := *s.Record; r.Floor++; s.Record = &r }, "history"},
		{"history not in order", "joint", func(s *State) { s.Links = append([]wire.Link{{Epoch: 99}}, s.Links...) }, "follows"},
		{"history too long", "joint", func(s *State) { s.Links = append(make([]wire.Link, wire.MaxLinks), s.Links...) }, "are kept"},
		{"history without a record", "joint", func(s *State) { s.Record, s.Promised = nil, wire.Ballot{N: 1} }, "without a record"},
		{"accepted at no ballot", "accepted a change", func(s *State) { s.Accepted = wire.Ballot{} }, "without a ballot"},
		{"nothing accepted", "accepted a change", func(s *State) { s.Proposal = nil }, "without a ballot"},
		{"accepted above the promise", "accepted a change", func(s *State) { s.Promised.N-- }, "higher ballot"},
		{"accepted what does not follow", "accepted a change", func(s *State) { s.Proposal = all["accepted a new list"].Proposal }, "accepted:"},
		{"accepted what cannot be first", "accepted the first", func(s *State) { s.Proposal = all["joint"].Record }, "accepted:"},
		{"a malformed record", "a record", func(s *State) { r := *s.Record; r.Skew = time.Hour; s.Record = &r }, "skew"},
		{"a lease beyond all bounds", "a record", func(s *State) { r := *s.Record; r.MaxTTL = 1 << 62; s.Record = &r }, "max_ttl_ms"},
		{"negative time", "a record", func(s *State) { s.Had = -time.Second }, "-1000 ms"},
	} {
		s := all[c.of]
		c.change(&s)
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeState(s.ID, b); err == nil || !strings.Contains(err.Error(), c.wrong) || !reflect.DeepEqual(got, State{ID: s.ID}) {
			t.Errorf("%s: %+v, %v", c.what, got, err)
		}
	}
	for _, b := range []string{"null", "{}"} {
		if got, err := DecodeState(idOf("a"), []byte(b)); err != nil || !reflect.DeepEqual(got, State{ID: idOf("a")}) {
			t.Errorf("%s: %+v, %v", b, got, err)
		}
	}
	for _, b := range []string{"{", "[]", `{"later":1}`, "{}{}", `{"record":{"nodes":[{"id":"x"}]}}`} {
		if got, err := DecodeState(idOf("a"), []byte(b)); err == nil {
			t.Errorf("%s: %+v", b, got)
		}
	}
}

// Whatever is read: no panic, and what is taken is a state that can be written again.
func FuzzDecodeState(f *testing.F) {
	for _, s := range states() {
		b, err := s.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeState(idOf("a"), b); err == nil {
			reread(t, &s)
		}
	})
}
