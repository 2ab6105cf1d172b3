package wire

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
)

// The examples of docs/wire.md. A client in another language is written from
// that page, so the page, these files and the codec must say the same.

var (
	exampleClient = uuid.MustParse("0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11")
	exampleOther  = uuid.MustParse("e9b7c1d4-7a0e-4c5b-b1f3-0c8d2e4f6a90")
	exampleN1     = uuid.MustParse("5d0c2f7a-1be7-4bb0-8a3e-2f6f6a8f9b01")
	exampleN2     = uuid.MustParse("c2a1f2de-94a5-4f0f-8a35-6a3c1f0be2d4")
	exampleN3     = uuid.MustParse("a4e3d2c1-5f60-4718-9a2b-3c4d5e6f7081")
	exampleClaim  = ClaimID{exampleClient, 7}
	exampleConfig = Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
)

const (
	exampleDigest = "df3f45630dd9c8c1"
	exampleAt     = 1_750_000_000_000_000
)

func goldenRequests() map[string]Request {
	return map[string]Request{
		"acquire": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 5_250_000,
			Mode: quorum.Exclusive, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest,
		},
		"acquire-wanted": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 5_251_342,
			Mode: quorum.Exclusive, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest, MinFence: exampleAt + 3,
		},
		"acquire-held": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 8_612_077,
			Mode: quorum.Shared, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest, MinFence: exampleAt + 3,
			Held: true, Node: "n3",
		},
		"acquire-try": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 5_250_000,
			Mode: quorum.Exclusive, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest, Try: true,
		},
		"acquire-quiet": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 5_250_000,
			Mode: quorum.Exclusive, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest, SuppressQueued: true,
		},
		"acquire-check": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 5_450_000,
			Mode: quorum.Exclusive, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest, Check: true,
		},
		"acquire-keep": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 8_612_077,
			Mode: quorum.Exclusive, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest, MinFence: exampleAt + 1,
			Token: exampleAt, Held: true, Keep: true, RangeSize: 64,
		},
		"acquire-note": {
			Verb: Acquire, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 5_250_000,
			Mode: quorum.Exclusive, At: exampleAt, TTL: 10 * time.Second, Digest: exampleDigest, Note: "host7: nightly report",
		},
		"release": {
			Verb: Release, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, Now: exampleAt + 4_200_000,
		},
		"yield": {
			Verb: Yield, Client: "svc-a", Resource: "orders.42", Claim: exampleClaim, SentAt: 5_252_001, Node: "n2",
		},
		"refresh": {
			Verb: Refresh, Client: "svc-a", Claim: ClaimID{Instance: exampleClient}, SentAt: 8_583_333,
			Lo: 1, Hi: 12, Live: Runs{{1, 4}, {7, 7}, {9, 11}},
		},
		"refresh-nothing-left": {
			Verb: Refresh, Client: "svc-a", Claim: ClaimID{Instance: exampleClient}, SentAt: 11_916_666, Lo: 1, Hi: 12,
		},
		"info": {Verb: Info, Client: "svc-a", Nonce: "6f1c52d0"},
		"info-probe": {
			Verb: Info, Client: "n2", Nonce: exampleN2.String() + "/1",
			Node: "n2", Incarnation: exampleN2, Started: exampleAt - 10_000_000,
		},
		"info-over": {
			Verb: Info, Client: "n2", Digest: exampleDigest,
			Over: []ClaimOf{{"svc-b", ClaimID{exampleOther, 31}}, {"svc-b", ClaimID{exampleOther, 33}}},
		},
		"info-recalled": {
			Verb: Info, Client: "n2", Digest: exampleDigest,
			Recalled: []ClaimOf{{"svc-b", ClaimID{exampleOther, 35}}},
		},
		"list":      {Verb: List, Client: "ops", Nonce: "6f1c52d0", Query: "orders.*"},
		"list-more": {Verb: List, Client: "ops", Nonce: "6f1c52d0", Query: "orders.*", After: 1744, Node: "n2"},
		"inspect":   {Verb: Inspect, Client: "ops", Resource: "orders.42", Nonce: "90b3aa17"},
		"evict": {
			Verb: Evict, Client: "ops", Resource: "orders.42", Nonce: "2c77e5f1", Holder: "svc-b",
			Claim: ClaimID{exampleOther, 31}, Query: "its disk is full",
		},
		"info-config":    {Verb: Info, Client: "svc-a", Nonce: "6f1c52d0", ShowConfig: true, Epoch: 3},
		"config-prepare": {Verb: Configure, Client: "ops", Nonce: "5be0a972/1", Step: &Step{Kind: Prepare, Epoch: 4, Prev: exampleRecord().Digest(), Ballot: exampleBallot}},
		"config-accept":  {Verb: Configure, Client: "ops", Nonce: "5be0a972/2", Step: &Step{Kind: Accept, Node: "n2", Epoch: 4, Ballot: exampleBallot, Record: exampleJoint()}},
		"config-learn":   {Verb: Configure, Client: "ops", Nonce: "5be0a972/3", Step: &Step{Kind: Learn, Epoch: 4, Record: exampleJoint(), Links: exampleLinks()}},
	}
}

var exampleBallot = Ballot{N: 2, Run: exampleN1}

// exampleLinks is the history of exampleJoint, up to the record before it.
func exampleLinks() []Link {
	return []Link{{0, exampleDigest}, {1, "5c0e77a90d2b6f13"}, {2, exampleRecord().Prev}, {3, exampleRecord().Digest()}}
}

func goldenAnswers() map[string]Answer {
	n1 := Answer{Node: "n1", Incarnation: exampleN1, Digest: exampleDigest}
	n2 := Answer{Node: "n2", Incarnation: exampleN2, Digest: exampleDigest}
	n3 := Answer{Node: "n3", Incarnation: exampleN3, Digest: exampleDigest}
	about := func(a Answer, k Kind) Answer {
		a.Kind, a.Client, a.Claim, a.SentAt = k, "svc-a", exampleClaim, 5_250_000
		return a
	}
	all := map[string]Answer{}

	a := about(n1, Granted)
	a.Fence = exampleAt
	all["granted"] = a

	a = about(n2, Queued)
	a.Blocker = &Blocker{
		Claim: ClaimID{exampleOther, 31}, Client: "svc-b", Mode: quorum.Exclusive, Voted: true, Ahead: true,
		For: 1250 * time.Millisecond,
	}
	all["queued"] = a

	a.Again = 1
	all["queued-again"] = a
	a.Again = 0

	a = about(n3, Queued)
	a.Recovering = 9180 * time.Millisecond
	all["queued-recovering"] = a

	a = about(n1, Refused)
	a.Reason, a.Text = ReasonLease, "lease 1m0s is longer than the 12s that this cluster allows"
	all["refused"] = a

	all["recall"] = about(n2, Recall)

	a = about(n1, Granted)
	a.Fence, a.RangeSize, a.Behind = exampleAt+1, 64, true
	all["granted-span"] = a

	a = about(n2, Recall)
	a.Behind = true
	all["recall-behind"] = a

	a = n3
	a.Kind, a.Client, a.Claim.Instance, a.SentAt, a.Lo, a.Hi = Refreshed, "svc-a", exampleClient, 8_583_333, 1, 12
	a.Waiting, a.Unknown = Runs{{9, 9}}, Runs{{3, 4}, {11, 11}}
	all["refreshed"] = a

	a = n2
	a.Kind, a.Recovering = Informed, 9180*time.Millisecond
	a.Info = &NodeInfo{
		Nonce: "6f1c52d0", Nodes: exampleConfig.Nodes, MaxTTL: exampleConfig.MaxTTL, Skew: exampleConfig.Skew,
		State: Recovering, Started: exampleAt - 10_000_000, Now: exampleAt, Claims: 42, Version: "v1.0.0",
	}
	all["informed"] = a

	a = n1
	a.Kind, a.Client, a.Nonce = Listed, "ops", "6f1c52d0"
	holder := ClaimRecord{
		Claim: ClaimID{exampleOther, 31}, Client: "svc-b", Mode: quorum.Exclusive, At: exampleAt - 2_000_000,
		Note: "host7: nightly report", Voted: true, Fence: exampleAt, For: 1250 * time.Millisecond, Lease: 8800 * time.Millisecond,
	}
	a.List = &Page{Next: 1744, Locks: []Record{
		{Name: "orders.42", Votes: 1, Waiting: 2, Claims: []ClaimRecord{holder}},
		{Name: "price list", Waiting: 1},
	}}
	all["listed"] = a

	a = n1
	a.Kind, a.Client, a.Nonce = Listed, "ops", "90b3aa17"
	holder.Evicted = true
	a.List = &Page{Locks: []Record{{Name: "orders.42", Votes: 1, Waiting: 1, Claims: []ClaimRecord{holder, {
		Claim: exampleClaim, Client: "svc-a", Mode: quorum.Shared, At: exampleAt, Kept: true, For: 900 * time.Millisecond, Lease: 9100 * time.Millisecond,
	}}}}}
	all["listed-one"] = a

	a = n1
	a.Kind, a.Client, a.Nonce, a.Known = Evicting, "ops", "2c77e5f1", true
	all["evicting"] = a

	a = n2
	a.Kind, a.Client, a.Nonce, a.Recovering = Evicting, "ops", "2c77e5f1", 9180*time.Millisecond
	all["evicting-recovering"] = a

	a = n2
	a.Kind, a.Client, a.Nonce, a.Recovering = Listed, "ops", "90b3aa17", 9180*time.Millisecond
	holder.Evicted, holder.Voted, holder.Fence, holder.Token = false, false, 0, exampleAt
	a.List = &Page{Locks: []Record{{Name: "orders.42", Waiting: 1, Claims: []ClaimRecord{holder}}}}
	all["listed-recovering"] = a

	a = n1
	a.Kind, a.Client, a.Claim, a.SentAt = Evicted, "svc-b", ClaimID{exampleOther, 31}, 77_000_000
	a.By, a.Text = "ops", "its disk is full"
	all["evicted"] = a

	a = n3
	a.Kind, a.Client, a.Over = Over, "n2", []ClaimOf{{"svc-b", ClaimID{exampleOther, 31}}}
	all["over"] = a

	a.Over = nil
	a.Yielded = []YieldOf{{ClaimOf{"svc-b", ClaimID{exampleOther, 35}}, 77_250_000}}
	all["over-yielded"] = a

	a = all["recall"]
	a.For = "n1"
	all["recall-for"] = a

	a = all["granted"]
	a.Fence, a.Late = exampleAt+1, true
	all["granted-late"] = a

	a = n2
	a.Kind, a.Client, a.Nonce, a.Digest = Configured, "ops", "5be0a972/1", exampleRecord().Digest()
	a.Step = &StepAnswer{
		Kind: Prepare, ID: exampleRecord().Nodes[1].ID, Epoch: 3, Ballot: exampleBallot,
		Accepted: Ballot{N: 1, Run: exampleOther}, Record: exampleJoint(), Floor: exampleAt,
	}
	all["configured-prepare"] = a

	a.Nonce = "5be0a972/2"
	a.Step = &StepAnswer{Kind: Accept, ID: a.Step.ID, Epoch: 3, Ballot: Ballot{N: 3, Run: exampleOther}, Why: WhyPromised}
	all["configured-refused"] = a

	a.Digest, a.Nonce = exampleJoint().Digest(), "5be0a972/3"
	a.Step = &StepAnswer{Kind: Learn, ID: a.Step.ID, Epoch: 4}
	all["configured-learn"] = a

	a = all["informed"]
	a.Recovering, a.Digest = 0, exampleJoint().Digest()
	info := *a.Info
	info.MaxTTL, info.Skew, info.Longest, info.State = 30*time.Second, 10*time.Second, time.Minute, Voting
	info.Config = &NodeConfig{
		ID: exampleRecord().Nodes[1].ID, Epoch: 4, Had: 12500 * time.Millisecond,
		Record: exampleJoint(), Links: append(exampleLinks(), Link{4, exampleJoint().Digest()}),
	}
	a.Info = &info
	all["informed-config"] = a

	a = all["informed"]
	a.Node, a.Digest, a.Recovering = "n4", "", 0
	a.Info = &NodeInfo{
		Nonce: "6f1c52d0", State: Joining, Started: exampleAt - 10_000_000, Now: exampleAt, Version: "v1.0.0",
		Config: &NodeConfig{ID: exampleJoint().Next[2].ID, Joining: true},
	}
	all["informed-joining"] = a

	a = all["granted"]
	a.Most = exampleAt + 12_000_000
	all["granted-short"] = a
	return all
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func golden(t testing.TB, name string) (asWritten, compact []byte) {
	t.Helper()
	b := read(t, filepath.Join("testdata", "golden", name+".json"))
	var c bytes.Buffer
	if err := json.Compact(&c, b); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b, c.Bytes()
}

func TestGoldenRequests(t *testing.T) {
	for name, r := range goldenRequests() {
		_, want := golden(t, name)
		if got := AppendRequest(nil, &r); !bytes.Equal(got, want) {
			t.Errorf("%s is encoded as\n%s\nthe example says\n%s", name, got, want)
		}
		back, err := DecodeRequest(r.Verb, r.Client, r.Resource, want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(*back, r) {
			t.Errorf("%s is decoded as\n%+v\nwant\n%+v", name, *back, r)
		}
	}
}

func TestGoldenAnswers(t *testing.T) {
	for name, a := range goldenAnswers() {
		_, want := golden(t, name)
		if got := AppendAnswer(nil, &a); !bytes.Equal(got, want) {
			t.Errorf("%s is encoded as\n%s\nthe example says\n%s", name, got, want)
		}
		back, err := DecodeAnswer(want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(*back, a) {
			t.Errorf("%s is decoded as\n%+v\nwant\n%+v", name, *back, a)
		}
	}
}

// Unknown fields are ignored, which is the room that later versions have.
func TestGoldenWithMoreFields(t *testing.T) {
	more := func(b []byte) []byte {
		return append([]byte(`{"spanning":5,"kept":true,"later":{"a":[1,null]},`), b[1:]...)
	}
	for name, r := range goldenRequests() {
		_, body := golden(t, name)
		back, err := DecodeRequest(r.Verb, r.Client, r.Resource, more(body))
		if err != nil || !reflect.DeepEqual(*back, r) {
			t.Errorf("%s with unknown fields is decoded as %+v, %v", name, back, err)
		}
	}
	for name, a := range goldenAnswers() {
		_, body := golden(t, name)
		back, err := DecodeAnswer(more(body))
		if err != nil || !reflect.DeepEqual(*back, a) {
			t.Errorf("%s with unknown fields is decoded as %+v, %v", name, back, err)
		}
	}
}

// Each example is in docs/wire.md as it is here, and the page has no other.
func TestGoldenInDocs(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "wire.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for name := range goldenRequests() {
		names[name] = true
	}
	for name := range goldenAnswers() {
		names[name] = true
	}
	for name := range goldenBatches() {
		names[name] = true
	}
	for name := range goldenAnswerLists() {
		names[name] = true
	}
	files, err := filepath.Glob(filepath.Join("testdata", "golden", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(names) {
		t.Errorf("there are %d golden files and %d examples", len(files), len(names))
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if !names[name] {
			t.Errorf("%s has no example in this test", file)
			continue
		}
		text, _ := golden(t, name)
		if !bytes.Contains(page, append([]byte("```json\n"), append(text, "```\n"...)...)) {
			t.Errorf("docs/wire.md does not have the example %s as it is in %s", name, file)
		}
	}
	if blocks := bytes.Count(page, []byte("```json\n")); blocks != len(files) {
		t.Errorf("docs/wire.md has %d JSON examples, %d are checked", blocks, len(files))
	}
}

// The digest that docs/wire.md works out step by step.
func TestDigest(t *testing.T) {
	if got := exampleConfig.Digest(); got != exampleDigest {
		t.Errorf("digest %s, the example says %s", got, exampleDigest)
	}
	base := exampleConfig
	shuffled := base
	for _, nodes := range [][]string{{"n1", "n3", "n2"}, {"n2", "n1", "n3"}, {"n2", "n3", "n1"}, {"n3", "n1", "n2"}, {"n3", "n2", "n1"}} {
		shuffled.Nodes = nodes
		if shuffled.Digest() != exampleDigest {
			t.Errorf("the digest depends on the order of the nodes %v", nodes)
		}
		if nodes[0] == "n1" && nodes[1] == "n2" {
			t.Errorf("Digest sorted its caller's list: %v", nodes)
		}
	}
	seen := map[string]string{exampleDigest: "the example"}
	for what, c := range map[string]Config{
		"a node less":      {Nodes: []string{"n1", "n2"}, MaxTTL: base.MaxTTL, Skew: base.Skew},
		"a node more":      {Nodes: []string{"n1", "n2", "n3", "n4"}, MaxTTL: base.MaxTTL, Skew: base.Skew},
		"another name":     {Nodes: []string{"n1", "n2", "n4"}, MaxTTL: base.MaxTTL, Skew: base.Skew},
		"names run on":     {Nodes: []string{"n1n2", "n3"}, MaxTTL: base.MaxTTL, Skew: base.Skew},
		"another max ttl":  {Nodes: base.Nodes, MaxTTL: base.MaxTTL + time.Millisecond, Skew: base.Skew},
		"another skew":     {Nodes: base.Nodes, MaxTTL: base.MaxTTL, Skew: base.Skew + time.Millisecond},
		"ttl and skew mix": {Nodes: base.Nodes, MaxTTL: base.Skew, Skew: base.MaxTTL},
	} {
		d := c.Digest()
		if other, taken := seen[d]; taken {
			t.Errorf("%q has the digest of %q", what, other)
		}
		seen[d] = what
	}
}
