package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/qlock/qlock/internal/subject"
)

// Every field of every message, wrong in every way that the decoder knows of.
// The golden examples are the messages that are right.

// missing is the value of a field that is removed.
var missing = json.RawMessage(nil)

// change returns the golden example name with one field replaced. A dotted field
// lies within an object.
func change(t *testing.T, name, field string, value json.RawMessage) []byte {
	t.Helper()
	_, body := golden(t, name)
	outer, inner, nested := strings.Cut(field, ".")
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	if !nested {
		set(m, field, value)
	} else {
		var sub map[string]json.RawMessage
		if err := json.Unmarshal(m[outer], &sub); err != nil {
			t.Fatal(err)
		}
		set(sub, inner, value)
		b, err := json.Marshal(sub)
		if err != nil {
			t.Fatal(err)
		}
		m[outer] = b
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func set(m map[string]json.RawMessage, key string, value json.RawMessage) {
	if value == nil {
		delete(m, key)
	} else {
		m[key] = value
	}
}

func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// field says what a field is, and so what it is not.
type field struct {
	name     string
	kind     string // what it holds: see wrongs
	required bool
	fail     []string // further values, as JSON, that must fail
	pass     []string // values, as JSON, at the limits of what is right
}

const (
	mostInt   = "9007199254740991"
	aboveInt  = "9007199254740992"
	mostMS    = "1099511627776"
	aboveMS   = "1099511627777"
	shortUUID = `"0b8f6f5e3a644a539f0e6d1f0c7c2a11"`
)

// wrongs has values that are invalid for a field of that kind.
var wrongs = map[string][]string{
	"positive": {`0`, `-1`, `1.5`, `1e3`, aboveInt, `18446744073709551616`, `"7"`, `true`, `{}`, `[7]`},
	"number":   {`-1`, `1.5`, `1e3`, aboveInt, `18446744073709551616`, `"7"`, `true`, `{}`, `[7]`},
	"micros":   {`-1`, `1.5`, `1e3`, aboveInt, `9223372036854775808`, `"7"`, `true`, `{}`, `[7]`},
	"count":    {`-1`, `1.5`, `1e3`, `2147483648`, `9223372036854775808`, `"7"`, `true`, `{}`, `[7]`},
	"millis":   {`-1`, `1.5`, `1e3`, aboveMS, `9223372036854775808`, `"7"`, `true`, `{}`, `[7]`},
	"lease":    {`0`, `-1`, `9`, `86400001`, `1.5`, `9223372036854775808`, `"10s"`, `true`},
	"uuid": {
		`""`, `"x"`, shortUUID, `"{0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11}"`, `"urn:uuid:0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11"`,
		`"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a1g"`, `"0b8f6f5e_3a64_4a53_9f0e_6d1f0c7c2a11"`, `7`, `true`, `{}`,
	},
	"token": {
		`""`, `"a.b"`, `"a b"`, `"*"`, `">"`, `"a\u0000"`, `"\u00fc"`, `"a\"b"`,
		`"` + strings.Repeat("x", MaxToken+1) + `"`, `7`, `true`, `{}`,
	},
	"optional token": {
		`"a.b"`, `"a b"`, `"*"`, `">"`, `"a\u0000"`, `"\u00fc"`, `"a\"b"`,
		`"` + strings.Repeat("x", MaxToken+1) + `"`, `7`, `true`, `{}`,
	},
	"span": {`-1`, `1.5`, `65537`, `"5"`, `true`, `{}`, aboveInt},
	"text": {`"` + strings.Repeat("x", MaxText+1) + `"`, `"` + strings.Repeat(`\u00fc`, MaxText/2+1) + `"`, `7`, `true`, `{}`},
	"mode": {`""`, `"Exclusive"`, `"read"`, `"exclusive "`, `0`, `true`},
	"bool": {`0`, `1`, `"true"`, `{}`, `[true]`},
	"runs": {
		`[[0,1]]`, `[[1,13]]`, `[[2,1]]`, `[[1,2],[2,3]]`, `[[1,2],[1,2]]`, `[[4,5],[1,2]]`, `[[1,3],[2,2]]`,
		`[[1]]`, `[[]]`, `[[null,2]]`, `[1,2]`, `[["1","2"]]`, `[[1.5,2]]`, `[[-1,2]]`, `[[13,13]]`,
		`{}`, `"1-2"`, `7`, `[[1,` + aboveInt + `]]`, `[{"lo":1,"hi":2}]`,
	},
}

// rights has values at the limits of a kind, which must be accepted.
var rights = map[string][]string{
	"positive":       {`1`, mostInt},
	"number":         {`0`, `1`, mostInt},
	"micros":         {`0`, `1`, mostInt},
	"count":          {`0`, `1`, `2147483647`},
	"millis":         {`0`, `1`, mostMS},
	"lease":          {`10`, `86400000`},
	"uuid":           {`"00000000-0000-0000-0000-000000000000"`, `"ffffffff-ffff-ffff-ffff-ffffffffffff"`},
	"token":          {`"a"`, `"0"`, `"-"`, `"_"`, `"Az09-_"`, `"` + strings.Repeat("x", MaxToken) + `"`},
	"optional token": {`""`, `"a"`, `"` + strings.Repeat("x", MaxToken) + `"`},
	"span":           {`0`, `1`, `65536`},
	"text":           {`""`, `"\u0000 \" \\ <&> \u2028 \ud83d\ude00"`, `"` + strings.Repeat("x", MaxText) + `"`},
	"mode":           {`"exclusive"`, `"shared"`},
	"bool":           {`true`, `false`},
	"runs":           {`[]`, `[[1,12]]`, `[[1,1],[3,3],[12,12]]`},
}

type message struct {
	name   string
	verb   Verb // of a request; empty: an answer
	fields []field
}

var head = []field{
	{name: "answer", kind: "", required: true, fail: []string{`""`, `"Granted"`, `"no"`, `7`}},
	{name: "node", kind: "token", required: true},
	{name: "incarnation", kind: "uuid", required: true},
	{name: "digest", kind: "optional token"},
	{name: "client", kind: "optional token"},
}

var claimFields = []field{
	{name: "instance", kind: "uuid", required: true},
	{name: "seq", kind: "positive", required: true},
	{name: "beat", kind: "positive", required: true},
}

func fields(lists ...[]field) []field {
	var all []field
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// informedFields are those that every node has in its answer to info.
var informedFields = []field{
	{name: "nonce", kind: "text"},
	{name: "skew_ms", kind: "millis"},
	{name: "started", kind: "micros"},
	{name: "now", kind: "micros"},
	{name: "voted", kind: "bool"},
	{name: "claims", kind: "count"},
	{name: "version", kind: "text"},
}

var messages = []message{
	{"acquire-held", Acquire, fields(claimFields, []field{
		{name: "mode", kind: "mode", required: true},
		{name: "at", kind: "micros"},
		{name: "ttl_ms", kind: "lease", required: true},
		{name: "digest", kind: "optional token"},
		{name: "want", kind: "number"},
		{name: "held", kind: "bool"},
		{name: "try", kind: "bool"},
		{name: "quiet", kind: "bool"},
		{name: "check", kind: "bool"},
		{name: "node", kind: "optional token"},
	})},
	{"acquire-keep", Acquire, fields(claimFields, []field{
		{name: "mode", kind: "mode", required: true},
		{name: "at", kind: "micros"},
		{name: "ttl_ms", kind: "lease", required: true},
		{name: "digest", kind: "optional token"},
		{name: "want", kind: "number"},
		{name: "token", kind: "number"},
		{name: "held", kind: "bool"},
		{name: "keep", kind: "bool"},
		{name: "span", kind: "span"},
	})},
	{"acquire-note", Acquire, fields(claimFields, []field{
		{name: "mode", kind: "mode", required: true},
		{name: "at", kind: "micros"},
		{name: "ttl_ms", kind: "lease", required: true},
		{name: "digest", kind: "optional token"},
		{name: "note", kind: "", fail: []string{`7`, `true`, `{}`, `"` + strings.Repeat("x", MaxNote+1) + `"`}, pass: []string{`""`, `"` + strings.Repeat("x", MaxNote) + `"`}},
	})},
	{"release", Release, []field{
		{name: "instance", kind: "uuid", required: true},
		{name: "seq", kind: "positive", required: true},
		{name: "now", kind: "micros"},
	}},
	{"yield", Yield, fields(claimFields, []field{{name: "node", kind: "token", required: true}})},
	{"refresh", Refresh, []field{
		{name: "instance", kind: "uuid", required: true},
		{name: "beat", kind: "positive", required: true},
		// What is listed lies between lo and hi, so they bound each other.
		{name: "lo", kind: "", required: true, fail: []string{`0`, `-1`, `2`, aboveInt, `"1"`}, pass: []string{`1`}},
		{name: "hi", kind: "", required: true, fail: []string{`0`, `-1`, `10`, aboveInt, `"12"`}, pass: []string{`11`, mostInt}},
		{name: "live", kind: "runs"},
	}},
	{"info", Info, []field{{name: "nonce", kind: "text"}}},
	{"info-probe", Info, []field{
		{name: "nonce", kind: "text"},
		{name: "node", kind: "optional token"},
		{name: "incarnation", kind: "uuid", required: true},
		{name: "started", kind: "micros"},
		{name: "voted", kind: "bool"},
		{name: "stopped", kind: "bool"},
	}},
	{"info-over", Info, []field{
		{name: "nonce", kind: "text"},
		{name: "digest", kind: "optional token"},
		{name: "over", kind: "", fail: wrongOver, pass: []string{`[]`, string(raw(manyOver(MaxOver)))}},
	}},
	{"info-recalled", Info, []field{
		{name: "nonce", kind: "text"},
		{name: "digest", kind: "optional token"},
		{name: "recalled", kind: "", fail: wrongOver, pass: []string{`[]`, string(raw(manyOver(MaxOver)))}},
		{name: "over", kind: "", fail: append([]string{string(raw(manyOver(MaxOver)))}, wrongOver...), pass: []string{`[]`, string(raw(manyOver(MaxOver - 1)))}},
	}},
	{"list-more", List, []field{
		{name: "nonce", kind: "text"},
		{
			name: "pattern", kind: "", fail: []string{`"."`, `"a..b"`, `"a."`, `".a"`, `">.a"`, `"a>"`, `"a*.b"`, `"a b"`, `"\u00fc"`, `7`, `"` + strings.Repeat("x", 3*subject.MaxName+1) + `"`},
			pass: []string{`""`, `">"`, `"*"`, `"*.>"`, `"%20.%"`, `"` + strings.Repeat("x", 3*subject.MaxName) + `"`},
		},
		{name: "after", kind: "number"},
		{name: "node", kind: "optional token"},
	}},
	{"inspect", Inspect, []field{{name: "nonce", kind: "text"}, {name: "after", kind: "number"}, {name: "node", kind: "optional token"}}},
	{"evict", Evict, []field{
		{name: "nonce", kind: "text"},
		{name: "holder", kind: "token", required: true},
		{name: "instance", kind: "uuid", required: true},
		{name: "seq", kind: "positive", required: true},
		{name: "text", kind: "text"},
	}},
	{"info-config", Info, []field{{name: "nonce", kind: "text"}, {name: "config", fail: wrongConfig, pass: []string{`{}`}}, {name: "config.epoch", kind: "number"}}},
	{"config-prepare", Configure, []field{
		{name: "nonce", kind: "text"},
		{name: "node", kind: "optional token"},
		{name: "config", required: true, fail: append([]string{`{}`}, wrongConfig...)},
		{name: "config.step", required: true, fail: []string{`""`, `"Prepare"`, `"accept"`, `"learn"`, `7`}},
		{name: "config.epoch", kind: "positive", required: true},
		{name: "config.prev", required: true, fail: wrongDigest, pass: []string{`"0123456789abcdef"`}},
		{name: "config.ballot", required: true, fail: wrongBallot, pass: []string{ballot + `}`}},
	}},
	{"config-accept", Configure, []field{
		{name: "nonce", kind: "text"},
		{name: "node", kind: "optional token"},
		{name: "config", required: true, fail: append([]string{`{}`}, wrongConfig...)},
		{name: "config.step", required: true, fail: []string{`"prepare"`, `"learn"`}},
		{name: "config.ballot", required: true, fail: wrongBallot},
		{name: "config.record", required: true, fail: wrongEpochRecords(), pass: []string{string(AppendEpochRecord(nil, exampleRecord()))}},
	}},
	{"config-learn", Configure, []field{
		{name: "nonce", kind: "text"},
		{name: "config", required: true, fail: append([]string{`{}`}, wrongConfig...)},
		{name: "config.record", required: true, fail: wrongEpochRecords()},
		{name: "config.links", required: true, fail: wrongLinks, pass: []string{`[{"epoch":0,"digest":"0123456789abcdef"}]`, string(raw(manyLinks(MaxLinks)))}},
	}},
	{"configured-prepare", "", fields(head, []field{
		{name: "nonce", kind: "text"},
		{name: "config", required: true, fail: append([]string{`{}`}, wrongConfig...)},
		{name: "config.step", required: true, fail: []string{`""`, `"no"`, `7`}},
		{name: "config.id", fail: []string{`"x"`, shortUUID, `7`}, pass: []string{`""`}},
		{name: "config.epoch", kind: "number"},
		{name: "config.ballot", required: true, fail: wrongBallot},
		{name: "config.why", kind: "optional token"},
		{name: "config.left_ms", kind: "millis"},
		{name: "config.accepted", required: true, fail: wrongBallot},
		{name: "config.record", required: true, fail: wrongEpochRecords()},
		{name: "config.floor", kind: "number"},
	})},
	{"configured-refused", "", fields(head, []field{
		{name: "nonce", kind: "text"},
		{name: "config", required: true, fail: append([]string{`{}`}, wrongConfig...)},
		{name: "config.step", required: true, fail: []string{`""`, `"no"`}},
	})},
	{"configured-learn", "", fields(head, []field{
		{name: "nonce", kind: "text"},
		{name: "config", required: true, fail: append([]string{`{}`}, wrongConfig...)},
		{name: "config.step", required: true, fail: []string{`""`, `"no"`, `"prepare"`, `"accept"`}},
	})},
	{"informed-joining", "", fields(head, informedFields, []field{
		{name: "nodes", fail: []string{`7`, `[7]`, `{}`}, pass: []string{`["n1"]`}},
		{name: "max_ttl_ms", fail: []string{`-1`, `"1"`}, pass: []string{`0`, `1`}},
		{name: "state", required: true, fail: []string{`"voting"`}},
		{name: "config", fail: wrongConfig, pass: []string{`{}`}},
	})},
	{"informed-config", "", fields(head, informedFields, []field{
		{name: "nodes", required: true, fail: []string{`[]`}},
		{name: "max_ttl_ms", kind: "lease", required: true},
		{name: "state", kind: "optional token"},
		{name: "longest_ms", kind: "millis"},
		{name: "config", fail: wrongConfig, pass: []string{`{}`}},
		{name: "config.id", fail: []string{`"x"`, shortUUID, `7`}, pass: []string{`""`}},
		{name: "config.epoch", required: true, fail: []string{`3`, `5`, `0`, aboveInt, `"4"`}},
		{name: "config.joining", kind: "bool"},
		{name: "config.had_ms", kind: "millis"},
		{name: "config.record", fail: wrongEpochRecords()},
		{name: "config.links", required: true, fail: wrongLinks},
	})},
	{"granted", "", fields(head, claimFields, []field{
		{name: "fence", kind: "", required: true, fail: []string{`0`, `-1`, `1.5`, `"7"`, aboveInt}, pass: []string{`1`}},
		{name: "span", kind: "span"},
		{name: "most", kind: "number"},
		{name: "behind", kind: "bool"},
		{name: "late", kind: "bool"},
	})},
	{"queued", "", fields(head, claimFields, []field{
		{name: "place", kind: "count"},
		{name: "again", kind: "count"},
		{name: "recovering_ms", kind: "millis"},
		{name: "blocker", kind: "", fail: []string{`7`, `[]`, `"x"`, `{}`}},
		{name: "blocker.instance", kind: "uuid", required: true},
		{name: "blocker.seq", kind: "positive", required: true},
		{name: "blocker.client", kind: "token", required: true},
		{name: "blocker.mode", kind: "mode", required: true},
		{name: "blocker.voted", kind: "bool"},
		{name: "blocker.ahead", kind: "bool"},
		{name: "blocker.for_ms", kind: "millis"},
	})},
	{"refused", "", fields(head, claimFields, []field{
		{name: "reason", kind: "optional token"},
		{name: "text", kind: "text"},
		{name: "passes", kind: "bool"},
	})},
	{"recall", "", fields(head, claimFields, []field{{name: "behind", kind: "bool"}})},
	{"recall-for", "", fields(head, claimFields, []field{{name: "for", kind: "optional token"}})},
	{"refreshed", "", fields(head, []field{
		{name: "instance", kind: "uuid", required: true},
		{name: "beat", kind: "positive", required: true},
		{name: "lo", kind: "", required: true, fail: []string{`0`, `-1`, `4`, aboveInt}, pass: []string{`1`, `3`}},
		{name: "hi", kind: "", required: true, fail: []string{`0`, `-1`, `10`, aboveInt}, pass: []string{`11`, mostInt}},
		{name: "waiting", kind: "runs"},
		{name: "unknown", kind: "runs"},
	})},
	{"informed", "", fields(head, []field{
		{name: "nonce", kind: "text"},
		{
			name: "nodes", kind: "", required: true,
			fail: []string{`[]`, `["n2","n1"]`, `["n1","n1"]`, `["n1",""]`, `["n.1"]`, `[7]`, `"n1"`, `{}`, string(raw(names(MaxNodes + 1)))},
			pass: []string{`["n1"]`, string(raw(names(MaxNodes)))},
		},
		{name: "max_ttl_ms", kind: "lease", required: true},
		{name: "skew_ms", kind: "millis"},
		{name: "state", kind: "optional token"},
		{name: "recovering_ms", kind: "millis"},
		{name: "started", kind: "micros"},
		{name: "now", kind: "micros"},
		{name: "voted", kind: "bool"},
		{name: "longest_ms", kind: "millis"},
		{name: "claims", kind: "count"},
		{name: "ahead_ms", kind: "millis"},
		{name: "version", kind: "text"},
	})},
	{"evicted", "", fields(head, claimFields, []field{{name: "by", kind: "token", required: true}, {name: "text", kind: "text"}})},
	{"evicting", "", fields(head, []field{{name: "nonce", kind: "text"}, {name: "known", kind: "bool"}, {name: "recovering_ms", kind: "millis"}})},
	{"listed", "", fields(head, []field{
		{name: "nonce", kind: "text"},
		{name: "recovering_ms", kind: "millis"},
		{name: "after", kind: "number"},
		{name: "next", kind: "number"},
		{name: "locks", kind: "", fail: append([]string{`7`, `{}`, `["x"]`, `[{}]`}, wrongRecords()...), pass: []string{`[]`, `[{"name":"a"}]`}},
	})},
	{"over", "", fields(head, []field{{name: "over", kind: "", fail: wrongOver, pass: []string{`[]`, string(raw(manyOver(MaxOver)))}}})},
	{"over-yielded", "", fields(head, []field{{name: "over", kind: "", fail: wrongOver, pass: []string{`[]`}}, {name: "yielded", kind: "", fail: append(wrongYielded(), wrongOver...), pass: []string{`[]`, `[` + yielded + `,"beat":1}]`, `[` + yielded + `,"beat":` + mostInt + `}]`}}})},
}

const ballot = `{"n":7,"run":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11"`

var (
	wrongConfig = []string{`7`, `[]`, `"x"`, `{"epoch":1,"epoch":1}`, `{"epoch":-1}`, `{"links":7}`, `{"record":{"nodes":[7]}}`}
	wrongDigest = []string{`""`, `"0123456789abcde"`, `"0123456789abcdef0"`, `"0123456789ABCDEF"`, `"0123456789abcdeg"`, `7`}
	wrongBallot = []string{`7`, `{}`, `[]`, `{"n":7}`, `{"n":7,"run":""}`, ballot + `,"n":7}`, `{"n":0` + ballot[6:] + `}`, `{"n":` + aboveInt + ballot[6:] + `}`}
	wrongLinks  = []string{
		`7`, `{}`, `[]`, `[7]`, `[{}]`, `[{"epoch":1,"digest":"x"}]`, `[{"epoch":` + aboveInt + `,"digest":"0123456789abcdef"}]`, string(raw(manyLinks(MaxLinks + 1))),
		`[{"epoch":1,"digest":"0123456789abcdef"},{"epoch":1,"digest":"0123456789abcdef"}]`,
		`[{"epoch":2,"digest":"0123456789abcdef"},{"epoch":1,"digest":"0123456789abcdef"}]`,
	}
)

func manyLinks(n int) (list []map[string]any) {
	for i := range n {
		list = append(list, map[string]any{"epoch": i, "digest": "0123456789abcdef"})
	}
	return list
}

// wrongEpochRecords are records with one thing wrong. TestRecordCheck has what Check finds.
func wrongEpochRecords() []string {
	out := []string{`7`, `[]`, `{}`}
	for _, c := range [][2]string{
		{`"cluster":"prod"`, `"cluster":"pr.od"`}, {`"cluster":"prod"`, `"cluster":"prod","cluster":"prod"`},
		{`"epoch":4`, `"epoch":3`}, {`"epoch":4`, `"epoch":-4`}, {`"name":"n1"`, `"name":"n\"1"`}, {`"name":"n1"`, `"name":"n9"`},
		{`"nodes":[`, `"nodes":[7,`}, {`"max_ttl_ms":30000`, `"max_ttl_ms":9`}, {`"max_ttl_ms":30000`, `"max_ttl_ms":` + aboveMS},
		{`"skew_ms":5000`, `"skew_ms":30001`}, {`"floor":`, `"floor":9`}, {`"prev":"`, `"prev":"0`}, {`"cid":"`, `"cid":"0`},
		{`"next":[`, `"next":[],"later":[`}, {`"next_max_ttl_ms":60000`, `"next_max_ttl_ms":0`}, {`"id":"`, `"id":"x`},
	} {
		good := string(AppendEpochRecord(nil, exampleJoint()))
		bad := strings.Replace(good, c[0], c[1], 1)
		if bad == good {
			panic(c[0])
		}
		out = append(out, bad)
	}
	many := exampleRecord()
	many.Nodes = nil
	for i := range MaxNodes + 1 {
		many.Nodes = append(many.Nodes, exampleMembers(fmt.Sprintf("n%02d", i))...)
	}
	return append(out, string(AppendEpochRecord(nil, many)))
}

const yielded = `{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":7,"client":"a"`

func wrongYielded() (lists []string) {
	for _, end := range []string{`}`, `,"beat":0}`, `,"beat":-1}`, `,"beat":"1"}`, `,"beat":` + aboveInt + `}`, `,"beat":1,"beat":1}`} {
		lists = append(lists, `[`+yielded+end+`]`)
	}
	return lists
}

// wrongOver are lists of claims that may be over, with one thing wrong.
var wrongOver = []string{
	`7`, `{}`, `["x"]`, `[{}]`, string(raw(manyOver(MaxOver + 1))),
	`[{"instance":"x","seq":7,"client":"a"}]`,
	`[{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":0,"client":"a"}]`,
	`[{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":` + aboveInt + `,"client":"a"}]`,
	`[{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":7,"client":""}]`,
	`[{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":7,"client":"a.b"}]`,
}

func manyOver(n int) (list []map[string]any) {
	for i := range n {
		list = append(list, map[string]any{"instance": "0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11", "seq": i + 1, "client": "a"})
	}
	return list
}

// wrongRecords are lists of one lock each, with one field wrong.
func wrongRecords() (lists []string) {
	fields := []string{`"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11"`, `"seq":7`, `"client":"a"`, `"mode":"shared"`}
	claim := strings.Join(fields, ",")
	if _, err := DecodeAnswer([]byte(`{"answer":"listed","node":"n1","incarnation":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","locks":[{"name":"a","claims":[{` + claim + `}]}]}`)); err != nil {
		panic(err) // then the following are wrong for another reason
	}
	for _, record := range []string{
		`"name":""`, `"name":"a b"`, `"name":"%61"`, `"name":7`, `"votes":-1,"name":"a"`, `"name":"a","waiting":2147483648`, `"name":"a","claims":7`,
		`"name":"a","claims":[{}]`,
	} {
		lists = append(lists, `[{`+record+`}]`)
	}
	for _, wrong := range []string{
		`"instance":"x"`, `"seq":0`, `"client":"a.b"`, `"mode":"x"`, `"at":-1`, `"fence":` + aboveInt, `"token":-1`, `"for_ms":-1`, `"lease_ms":` + aboveMS,
		`"note":"` + strings.Repeat("x", MaxNote+1) + `"`, `"kept":7`, `"evicted":"no"`,
	} {
		name, _, _ := strings.Cut(wrong, ":")
		rest := slices.DeleteFunc(slices.Clone(fields), func(f string) bool { return strings.HasPrefix(f, name+":") })
		lists = append(lists, `[{"name":"a","claims":[{`+strings.Join(append(rest, wrong), ",")+`}]}]`)
	}
	return lists
}

func names(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("n%03d", i))
	}
	return out
}

func (m message) decode(body []byte) (any, error) {
	if m.verb != "" {
		return DecodeRequest(m.verb, "c", "r", body)
	}
	return DecodeAnswer(body)
}

func TestRejections(t *testing.T) {
	tried := 0
	for _, m := range messages {
		for _, f := range m.fields {
			check := func(value json.RawMessage, wantErr bool) {
				tried++
				body := change(t, m.name, f.name, value)
				got, err := m.decode(body)
				shown := "missing"
				if value != nil {
					shown = fmt.Sprintf("%.100s", value)
				}
				switch {
				case wantErr && err == nil:
					t.Errorf("%s with %s %s is taken for %+v", m.name, f.name, shown, got)
				case !wantErr && err != nil:
					t.Errorf("%s with %s %s: %v", m.name, f.name, shown, err)
				case err != nil && !errors.Is(err, ErrMalformed):
					t.Errorf("%s with %s %s: %v is not ErrMalformed", m.name, f.name, shown, err)
				case err != nil && len(err.Error()) > 300:
					t.Errorf("%s with %s %s: the error has %d bytes", m.name, f.name, shown, len(err.Error()))
				}
			}
			check(missing, f.required)
			for _, v := range append(append(f.fail, "null"), wrongs[f.kind]...) {
				check(json.RawMessage(v), true)
			}
			for _, v := range append(f.pass, rights[f.kind]...) {
				check(json.RawMessage(v), false)
			}
		}
	}
	t.Logf("%d messages tried", tried)
	if tried < 900 {
		t.Errorf("only %d messages tried", tried)
	}
}

// All fields of wire.go's union are in the table above.
func TestRejectionsAreComplete(t *testing.T) {
	for name := range goldenRequests() {
		complete(t, trim(name, "-wanted", "-try", "-quiet", "-check", "-nothing-left"), name)
	}
	for name := range goldenAnswers() {
		complete(t, trim(name, "-recovering", "-again", "-span", "-behind", "-late", "-short"), name)
	}
}

func trim(name string, suffixes ...string) string {
	for _, s := range suffixes {
		name = strings.TrimSuffix(name, s)
	}
	return name
}

func complete(t *testing.T, listed, name string) {
	t.Helper()
	switch listed {
	case "acquire":
		listed = "acquire-held"
	case "list":
		listed = "list-more"
	case "listed-one":
		listed = "listed"
	}
	_, body := golden(t, name)
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.name != listed {
			continue
		}
		known := map[string]bool{}
		for _, f := range m.fields {
			known[f.name] = true
		}
		for f := range fields {
			if !known[f] {
				t.Errorf("%s has the field %s, which no test gets wrong", name, f)
			}
		}
		return
	}
	t.Errorf("no test gets %s wrong", listed)
}

func TestRejectedBodies(t *testing.T) {
	for _, body := range []string{"", " ", "null7", "nul", "7x", "{", "}", `{"seq":1`, `[]`, `"x"`, `7`, "\x00", "{\"nonce\":\"\xff", `{"a":1}{"b":2}`, strings.Repeat("[", 20_000)} {
		if a, err := DecodeAnswer([]byte(body)); err == nil {
			t.Errorf("%q is taken for %+v", body, a)
		}
		for _, v := range []Verb{Acquire, Release, Yield, Refresh, Info} {
			if r, err := DecodeRequest(v, "c", "r", []byte(body)); err == nil {
				t.Errorf("%s %q is taken for %+v", v, body, r)
			}
		}
	}
	for _, v := range []Verb{"", "Acquire", "granted", "steal", Verb(strings.Repeat("x", 1000))} {
		_, body := golden(t, "acquire")
		if r, err := DecodeRequest(v, "c", "r", body); !errors.Is(err, ErrMalformed) || len(err.Error()) > 300 {
			t.Errorf("verb %.20q: %+v, %v", v, r, err)
		}
	}
}

// A message from a stranger does not fill the log by way of the error.
func TestErrorsAreShort(t *testing.T) {
	digits := strings.Repeat("1", 100_000)
	for _, body := range []string{
		`{"seq":` + digits + `}`, `{"seq":"` + digits + `"}`, `{"answer":"` + digits + `"}`, `{"mode":"` + digits + `"}`, `{"` + digits + `":}`,
	} {
		_, err := DecodeRequest(Acquire, "c", "r", []byte(body))
		if err == nil || len(err.Error()) > 300 {
			t.Errorf("%.20q...: the error has %d bytes", body, len(fmt.Sprint(err)))
		}
		_, err = DecodeAnswer([]byte(body))
		if err == nil || len(err.Error()) > 300 {
			t.Errorf("%.20q...: the error has %d bytes", body, len(fmt.Sprint(err)))
		}
	}
}

func TestTooLarge(t *testing.T) {
	for _, c := range []struct {
		verb    Verb
		example string
		most    int
	}{{Info, "info", MaxShort}, {Acquire, "acquire", MaxShort}, {Refresh, "refresh", MaxBody}} {
		_, body := golden(t, c.example)
		fill := func(n int) []byte { return append(bytes.Clone(body), bytes.Repeat([]byte{' '}, n-len(body))...) }
		if _, err := DecodeRequest(c.verb, "c", "r", fill(c.most)); err != nil {
			t.Errorf("%s: a body of %d bytes: %v", c.verb, c.most, err)
		}
		if _, err := DecodeRequest(c.verb, "c", "r", fill(c.most+1)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: a body of %d bytes: %v", c.verb, c.most+1, err)
		}
	}
	if _, err := DecodeAnswer(bytes.Repeat([]byte{' '}, MaxBody+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("an answer of %d bytes: %v", MaxBody+1, err)
	}
}

// The longest lists that the decoder takes, in their longest spelling, fit into
// one body; one run more is refused.
func TestTooManyRuns(t *testing.T) {
	list := func(n int) Runs {
		var runs Runs
		for i := range n {
			seq := MaxInt - 2*uint64(n-i) + 1
			runs = append(runs, Run{seq, seq})
		}
		return runs
	}
	r := goldenRequests()["refresh"]
	a := goldenAnswers()["refreshed"]
	r.Hi, a.Hi = MaxInt, MaxInt
	for _, n := range []int{MaxRuns, MaxRuns + 1} {
		r.Live, a.Waiting, a.Unknown = list(n), list(n), list(n)
		for what, body := range map[string][]byte{"refresh": AppendRequest(nil, &r), "refreshed": AppendAnswer(nil, &a)} {
			if len(body) > MaxBody {
				t.Errorf("%s with %d runs has %d bytes, allowed are %d", what, n, len(body), MaxBody)
			}
			var err error
			if what == "refresh" {
				_, err = DecodeRequest(Refresh, "c", "", body)
			} else {
				_, err = DecodeAnswer(body)
			}
			if (err != nil) != (n > MaxRuns) {
				t.Errorf("%s with %d runs: %v", what, n, err)
			}
		}
	}
}
