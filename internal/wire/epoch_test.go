package wire

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func exampleMembers(names ...string) (out []Member) {
	for _, n := range names {
		out = append(out, Member{n, uuid.NewSHA1(exampleClient, []byte(n))})
	}
	return out
}

func exampleRecord() *EpochRecord {
	return &EpochRecord{
		Cluster: "prod", CID: exampleOther, Epoch: 3, Prev: "b60a1f5d93c7e284", Floor: exampleAt,
		Nodes: exampleMembers("n1", "n2", "n3"), MaxTTL: 30 * time.Second, Skew: 5 * time.Second,
	}
}

func exampleJoint() *EpochRecord {
	r := exampleRecord()
	r.Epoch, r.Prev = 4, r.Digest()
	r.Next, r.NextMaxTTL, r.NextSkew = exampleMembers("n2", "n3", "n4"), 60*time.Second, 10*time.Second
	return r
}

func TestRecordLimits(t *testing.T) {
	r := exampleRecord()
	if r.Joint() || r.Lease() != 30*time.Second || r.Longest() != 30*time.Second || r.AllowedSkew() != 5*time.Second {
		t.Errorf("one list: %v %v %v %v", r.Joint(), r.Lease(), r.Longest(), r.AllowedSkew())
	}
	r = exampleJoint()
	if !r.Joint() || r.Lease() != 30*time.Second || r.Longest() != 60*time.Second || r.AllowedSkew() != 10*time.Second {
		t.Errorf("two lists: %v %v %v %v", r.Joint(), r.Lease(), r.Longest(), r.AllowedSkew())
	}
	r.MaxTTL, r.Skew = 6*time.Second, time.Second
	if r.AllowedSkew() != 6*time.Second {
		t.Errorf("skew %v, above the longest lease %v", r.AllowedSkew(), r.Lease())
	}
}

// What is wrong with a record is said, and what is right is not complained about. No two of
// these, right or wrong, have one digest.
func TestRecordCheck(t *testing.T) {
	seen := map[string]string{}
	for _, c := range []struct {
		what   string
		change func(r, j *EpochRecord)
		wrong  string
	}{
		{"as it is", func(r, j *EpochRecord) {}, ""},
		{"another cluster", func(r, j *EpochRecord) { r.Cluster, j.Cluster = "other", "other" }, ""},
		{"another cluster id", func(r, j *EpochRecord) { r.CID, j.CID = exampleN1, exampleN1 }, ""},
		{"no cluster", func(r, j *EpochRecord) { r.Cluster, j.Cluster = "", "" }, "cluster name"},
		{"no cluster id", func(r, j *EpochRecord) { r.CID, j.CID = uuid.Nil, uuid.Nil }, "no cluster id"},
		{"another history", func(r, j *EpochRecord) { r.Prev, j.Prev = "0000000000000000", "0000000000000001" }, ""},
		{"no history", func(r, j *EpochRecord) { r.Prev, j.Prev = "", "0" }, "digest of the record before"},
		{"upper case", func(r, j *EpochRecord) { r.Prev, j.Prev = "ABCDEF0123456789", "ABCDEF0123456788" }, "digest of the record before"},
		{"two epochs later", func(r, j *EpochRecord) { r.Epoch += 2; j.Epoch += 2 }, ""},
		{"epoch of the other kind", func(r, j *EpochRecord) { r.Epoch++; j.Epoch++ }, "odd epochs have one list"},
		{"epoch 0", func(r, j *EpochRecord) { r.Epoch, j.Epoch = 0, 0 }, "epoch 0"},
		{"epoch too large", func(r, j *EpochRecord) { r.Epoch, j.Epoch = MaxInt+2, MaxInt+3 }, "is not within"},
		{"another floor", func(r, j *EpochRecord) { r.Floor++; j.Floor += 2 }, ""},
		{"floor too large", func(r, j *EpochRecord) { r.Floor, j.Floor = MaxInt+1, MaxInt+2 }, "floor"},
		{"fewer nodes", func(r, j *EpochRecord) { r.Nodes, j.Nodes = r.Nodes[:2], j.Nodes[:2] }, ""},
		{"another id", func(r, j *EpochRecord) {
			r.Nodes, j.Nodes = slices.Clone(r.Nodes), slices.Clone(j.Nodes)
			r.Nodes[0].ID, j.Nodes[0].ID = exampleN3, exampleN3
		}, ""},
		{"no nodes", func(r, j *EpochRecord) { r.Nodes, j.Nodes = nil, nil }, "0 nodes"},
		{"too many", func(r, j *EpochRecord) {
			for i := range MaxNodes + 1 {
				m := exampleMembers("n" + strings.Repeat("x", i))[0]
				r.Nodes, j.Nodes = append(r.Nodes[:min(i, len(r.Nodes)):min(i, len(r.Nodes))], m), append(j.Nodes[:min(i, len(j.Nodes)):min(i, len(j.Nodes))], m)
			}
		}, "65 nodes"},
		{"not sorted", func(r, j *EpochRecord) { r.Nodes, j.Nodes = exampleMembers("n2", "n1"), exampleMembers("n2", "n1") }, "not sorted"},
		{"twice", func(r, j *EpochRecord) { r.Nodes, j.Nodes = exampleMembers("n2", "n2"), exampleMembers("n2", "n2") }, "a name twice"},
		{"no node name", func(r, j *EpochRecord) { r.Nodes, j.Nodes = exampleMembers("n 2"), exampleMembers("n 2") }, "node name"},
		{"no id", func(r, j *EpochRecord) { r.Nodes, j.Nodes = []Member{{"n1", uuid.Nil}}, []Member{{"n1", uuid.Nil}} }, "no id"},
		{"a copied directory", func(r, j *EpochRecord) {
			r.Nodes, j.Nodes = []Member{{"n1", exampleN1}, {"n2", exampleN1}}, []Member{{"n1", exampleN1}, {"n2", exampleN1}}
		}, "id of another node"},
		{"another longest lease", func(r, j *EpochRecord) { r.MaxTTL += time.Second; j.MaxTTL += time.Second }, ""},
		{"lease too long", func(r, j *EpochRecord) { r.MaxTTL, j.MaxTTL = MaxLease+1, MaxLease+1 }, "longest lease"},
		{"part of a millisecond", func(r, j *EpochRecord) { r.MaxTTL++; j.MaxTTL++ }, "longest lease"},
		{"another skew", func(r, j *EpochRecord) { r.Skew++; j.Skew++; r.Skew += time.Second - 1; j.Skew += time.Second - 1 }, ""},
		{"skew above the lease", func(r, j *EpochRecord) { r.Skew, j.Skew = time.Minute, time.Minute }, "skew"},
		{"no skew", func(r, j *EpochRecord) { r.Skew, j.Skew = 0, 0 }, "skew"},
	} {
		r, j := exampleRecord(), exampleJoint()
		c.change(r, j)
		for kind, r := range map[string]*EpochRecord{"one list": r, "two lists": j} {
			err := r.Check()
			if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s, %s: %v", c.what, kind, err)
			}
			if other, taken := seen[r.Digest()]; taken && c.wrong != "longest lease" {
				t.Errorf("%s, %s, has the digest of %s", c.what, kind, other)
			}
			seen[r.Digest()] = c.what + ", " + kind
		}
	}
	for what, change := range map[string]func(j *EpochRecord){
		"second list":          func(j *EpochRecord) { j.NextMaxTTL = 0 },
		"must have one id":     func(j *EpochRecord) { j.Next = []Member{{"n1", exampleN1}} },
		"and an id one name":   func(j *EpochRecord) { j.Next = []Member{{"n9", j.Nodes[0].ID}} },
		"odd epochs have one ": func(j *EpochRecord) { j.Next = nil },
		"for one":              func(j *EpochRecord) { j.Next = nil; j.Epoch++ },
	} {
		j := exampleJoint()
		change(j)
		if err := j.Check(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want %q: %v", what, err)
		}
	}
}

// Where one list ends and the next begins is in the digest.
func TestRecordDigestOfLists(t *testing.T) {
	seen := map[string]bool{}
	all := exampleMembers("n1", "n2", "n3", "n4")
	for i := 1; i < len(all); i++ {
		j := exampleJoint()
		j.Nodes, j.Next, j.NextMaxTTL, j.NextSkew = all[:i], all[i:], j.MaxTTL, j.Skew
		seen[j.Digest()] = true
	}
	if len(seen) != len(all)-1 {
		t.Error("two records with one digest")
	}
}

func TestBallots(t *testing.T) {
	all := []Ballot{{}, {1, exampleClient}, {1, exampleOther}, {2, exampleClient}}
	for i, a := range all {
		for k, b := range all {
			if got, want := a.Compare(b), i-k; got < 0 != (want < 0) || got > 0 != (want > 0) {
				t.Errorf("%v against %v: %d", a, b, got)
			}
		}
	}
}

// The largest messages fit into what a node reads of config, and into the payload that every
// NATS server takes.
func TestConfigSize(t *testing.T) {
	r := exampleJoint()
	r.Cluster, r.Epoch, r.Floor = strings.Repeat("c", MaxToken), MaxInt-1, MaxInt
	r.MaxTTL, r.NextMaxTTL, r.Skew, r.NextSkew = MaxLease, MaxLease, MaxLease, MaxLease
	r.Nodes, r.Next = nil, nil
	for i := range MaxNodes {
		r.Nodes = append(r.Nodes, exampleMembers(fmt.Sprintf("a%063d", i))...)
		r.Next = append(r.Next, exampleMembers(fmt.Sprintf("b%063d", i))...)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	var links []Link
	for i := range uint64(MaxLinks) {
		links = append(links, Link{MaxInt - MaxLinks + i, exampleDigest})
	}
	nonce, node := strings.Repeat("\"", MaxText), strings.Repeat("n", MaxToken)
	q := Request{Verb: Configure, Client: "ops", Nonce: nonce, Step: &Step{Kind: Learn, Node: node, Epoch: r.Epoch, Record: r, Links: links}}
	body := AppendRequest(nil, &q)
	if _, err := DecodeRequest(Configure, "ops", "", body); err != nil {
		t.Errorf("%d bytes: %v", len(body), err)
	}
	q.Step = &Step{Kind: Accept, Node: node, Epoch: r.Epoch, Ballot: Ballot{MaxInt, exampleN1}, Record: r}
	if body = AppendRequest(nil, &q); len(body) > MaxConfig {
		t.Errorf("accept has %d bytes", len(body))
	}
	q.Nonce += strings.Repeat(" ", MaxConfig)
	if _, err := DecodeRequest(Configure, "ops", "", AppendRequest(nil, &q)); err == nil || !strings.Contains(err.Error(), "32768 are allowed") {
		t.Errorf("a larger one: %v", err)
	}
}

// What is read keeps nothing of the message, whose bytes are reused.
func TestRecordOutlivesItsMessage(t *testing.T) {
	body := AppendEpochRecord(nil, exampleJoint())
	got, err := DecodeEpochRecord(body)
	if err != nil {
		t.Fatal(err)
	}
	clear(body)
	if !reflect.DeepEqual(got, exampleJoint()) || got.Digest() != exampleJoint().Digest() {
		t.Errorf("%+v", got)
	}
	for _, wrong := range append(wrongEpochRecords(), `{} `, ``, string(AppendEpochRecord(nil, exampleJoint()))+"x") {
		if r, err := DecodeEpochRecord([]byte(wrong)); err == nil || r != nil || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s is read: %+v, %v", wrong, r, err)
		}
	}
}
