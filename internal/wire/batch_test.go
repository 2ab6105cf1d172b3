package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/qlock/qlock/internal/subject"
)

func goldenBatches() map[string][]Request {
	return map[string][]Request{
		"batch": {
			{Verb: Release, Client: "svc-a", Resource: "orders.41", Claim: ClaimID{exampleClient, 6}, Now: exampleAt + 4_200_000},
			func() Request { r := goldenRequests()["acquire"]; r.Resource = "price list"; return r }(),
			{Verb: Yield, Client: "svc-a", Resource: "orders.43", Claim: ClaimID{exampleClient, 5}, SentAt: 5_252_001, Node: "n2"},
		},
		"batch-question": {{Verb: Info, Client: "svc-a", Nonce: "batch"}},
	}
}

func goldenAnswerLists() map[string][]Answer {
	about := Answer{Node: "n1", Incarnation: exampleN1, Digest: exampleDigest, Client: "svc-a"}
	granted, queued := about, about
	granted.Kind, granted.Claim, granted.SentAt, granted.Fence = Granted, exampleClaim, 5_250_000, exampleAt
	queued.Kind, queued.Claim, queued.SentAt = Queued, ClaimID{exampleClient, 5}, 5_252_001
	return map[string][]Answer{"batch-answers": {granted, queued}}
}

// batchOf is a batch as a client puts it together.
func batchOf(t testing.TB, list []Request) []byte {
	b := []byte{'['}
	for i, r := range list {
		if i > 0 {
			b = append(b, ',')
		}
		name := ""
		if r.Resource != "" {
			var err error
			if name, err = subject.EncodeName(r.Resource); err != nil {
				t.Fatal(err)
			}
		}
		b = AppendToBatch(b, r.Verb, name, AppendRequest(nil, &r))
	}
	return append(b, ']')
}

func answersOf(list []Answer) []byte {
	var bodies [][]byte
	for _, a := range list {
		bodies = append(bodies, AppendAnswer(nil, &a))
	}
	return append(append([]byte{'['}, bytes.Join(bodies, []byte{','})...), ']')
}

func TestGoldenBatches(t *testing.T) {
	for name, list := range goldenBatches() {
		asWritten, want := golden(t, name)
		if got := batchOf(t, list); !bytes.Equal(got, want) {
			t.Errorf("%s is encoded as\n%s\nthe example says\n%s", name, got, want)
		}
		for _, body := range [][]byte{asWritten, want} {
			if back, err := DecodeBatch(nil, "svc-a", body); err != nil || !reflect.DeepEqual(back, list) {
				t.Errorf("%s is decoded as\n%+v, %v\nwant\n%+v", name, back, err, list)
			}
		}
	}
	for name, list := range goldenAnswerLists() {
		asWritten, want := golden(t, name)
		if got := answersOf(list); !bytes.Equal(got, want) {
			t.Errorf("%s is encoded as\n%s\nthe example says\n%s", name, got, want)
		}
		for _, body := range [][]byte{asWritten, want} {
			if back, err := DecodeAnswers(nil, body); err != nil || !reflect.DeepEqual(back, list) {
				t.Errorf("%s is decoded as\n%+v, %v\nwant\n%+v", name, back, err, list)
			}
		}
	}
}

// An invalid request does not affect the others, wherever it is in the batch.
func TestWrongRequestInBatch(t *testing.T) {
	good := goldenBatches()["batch"]
	wrong := map[string]string{
		"no verb":           `{"name":"x"}`,
		"a verb of others":  `{"verb":"refresh","instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","beat":1,"lo":1,"hi":1,"live":[]}`,
		"an admin's verb":   `{"verb":"evict","name":"x","nonce":"n","holder":"svc-b","instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":1}`,
		"a list":            `{"verb":"list","nonce":"n"}`,
		"no name":           `{"verb":"release","instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":1,"now":1}`,
		"a name not so":     `{"verb":"release","name":"a b","instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":1,"now":1}`,
		"a name twice over": `{"verb":"release","name":"%61","instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":1,"now":1}`,
		"a wrong number":    `{"verb":"release","name":"x","instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":0,"now":1}`,
		"a wrong type":      `{"verb":"release","name":"x","instance":7}`,
		"no object":         `7`,
		"nothing":           `null`,
		"a list in it":      `[]`,
		"too long a body":   `{"verb":"release","name":"x","instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":1,"now":1,"text":"` + strings.Repeat("x", MaxShort) + `"}`,
	}
	for what, body := range wrong {
		for at := range len(good) + 1 {
			parts := []string{}
			for i, r := range good {
				if i == at {
					parts = append(parts, body)
				}
				one := batchOf(t, []Request{r})
				parts = append(parts, string(one[1:len(one)-1]))
			}
			if at == len(good) {
				parts = append(parts, body)
			}
			got, err := DecodeBatch(nil, "svc-a", []byte("["+strings.Join(parts, ",")+"]"))
			if !errors.Is(err, ErrMalformed) || len(err.Error()) > 300 {
				t.Errorf("%s at %d: error %v", what, at, err)
			}
			if !reflect.DeepEqual(got, good) {
				t.Errorf("%s at %d: the rest is %+v", what, at, got)
			}
		}
	}
}

// A body that is not JSON is ignored as a whole, wherever the fault is and however the rest
// is spelled.
func TestBrokenBatch(t *testing.T) {
	one := batchOf(t, goldenBatches()["batch"][:1])
	good := string(one[1 : len(one)-1])
	answer := string(answersOf(goldenAnswerLists()["batch-answers"][:1]))
	answer = answer[1 : len(answer)-1]
	for _, broken := range []string{
		"x", "", "nul", `{"verb"}`, `{"verb":"info"`, `{"a":"` + "\xff" + `"}`, `{"a":"\ud800"}`, `"` + "\n" + `"`, "01", strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
		`{"a":1}]`, `{} {}`,
	} {
		for _, spelled := range []func(string) string{
			func(s string) string { return s },
			func(s string) string { return strings.Replace(s, `"verb"`, `"v\u0065rb"`, 1) },
			func(s string) string { return strings.Replace(s, "{", `{"unknown":null,`, 1) },
			func(s string) string { return " " + s + "\n" },
		} {
			for _, list := range []string{spelled(good) + "," + broken, broken + "," + spelled(good), spelled(good) + "," + broken + "," + spelled(good)} {
				if got, err := DecodeBatch(nil, "svc-a", []byte("["+list+"]")); !errors.Is(err, ErrMalformed) || len(got) > 0 {
					t.Errorf("[%s] is taken for %+v, %v", list, got, err)
				}
				list = strings.ReplaceAll(list, good, answer)
				if got, err := DecodeAnswers(nil, []byte("["+list+"]")); !errors.Is(err, ErrMalformed) || len(got) > 0 {
					t.Errorf("[%s] is taken for %+v, %v", list, got, err)
				}
			}
		}
	}
}

func TestWrongAnswerInList(t *testing.T) {
	good := goldenAnswerLists()["batch-answers"]
	first, second := string(AppendAnswer(nil, &good[0])), string(AppendAnswer(nil, &good[1]))
	for _, body := range []string{`{}`, `{"answer":"other"}`, `{"answer":7}`, `7`, `null`, `[]`, `{"answer":"granted","node":"n1"}`} {
		for _, list := range []string{body + "," + first + "," + second, first + "," + body + "," + second, first + "," + second + "," + body} {
			got, err := DecodeAnswers(nil, []byte("["+list+"]"))
			if !errors.Is(err, ErrMalformed) || !reflect.DeepEqual(got, good) {
				t.Errorf("%s: %+v, %v", list, got, err)
			}
		}
	}
}

// The decoder adds to what it is given.
func TestBatchIsAppended(t *testing.T) {
	list := goldenBatches()["batch"]
	got, err := DecodeBatch(list[:1:1], "svc-a", batchOf(t, list[1:]))
	if err != nil || !reflect.DeepEqual(got, list) {
		t.Errorf("%+v, %v", got, err)
	}
	answers := goldenAnswerLists()["batch-answers"]
	back, err := DecodeAnswers(answers[:1:1], answersOf(answers[1:]))
	if err != nil || !reflect.DeepEqual(back, answers) {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestTooLargeABatch(t *testing.T) {
	r := goldenRequests()["release"]
	var list []Request
	for i := range MaxBatch + 1 {
		r.Claim.Seq = uint64(i + 1)
		list = append(list, r)
	}
	if got, err := DecodeBatch(nil, "svc-a", batchOf(t, list[:MaxBatch])); err != nil || len(got) != MaxBatch {
		t.Errorf("%d requests: %d, %v", MaxBatch, len(got), err)
	}
	got, err := DecodeBatch(nil, "svc-a", batchOf(t, list))
	if !errors.Is(err, ErrMalformed) || len(got) != 0 {
		t.Errorf("%d requests: %d, %v", MaxBatch+1, len(got), err)
	}
	body := batchOf(t, list[:2])
	fill := func(n int) []byte { return append(bytes.Clone(body), bytes.Repeat([]byte{' '}, n-len(body))...) }
	if got, err := DecodeBatch(nil, "svc-a", fill(MaxBatchBody)); err != nil || len(got) != 2 {
		t.Errorf("%d bytes: %d, %v", MaxBatchBody, len(got), err)
	}
	if got, err := DecodeBatch(nil, "svc-a", fill(MaxBatchBody+1)); !errors.Is(err, ErrMalformed) || len(got) != 0 {
		t.Errorf("%d bytes: %d, %v", MaxBatchBody+1, len(got), err)
	}
	if got, err := DecodeAnswers(nil, append([]byte{'['}, bytes.Repeat([]byte{' '}, MaxBody)...)); !errors.Is(err, ErrMalformed) || len(got) != 0 {
		t.Errorf("%d bytes of answers: %d, %v", MaxBody+1, len(got), err)
	}
}

func TestNoBatch(t *testing.T) {
	for _, body := range []string{"", " ", "7", "null", "{}", `{"verb":"info"}`, "[", "]", "[,]", "[1,", "[]x", `["`, strings.Repeat("[", 20_000), `"[]"`, "\x00"} {
		if got, err := DecodeBatch(nil, "svc-a", []byte(body)); !errors.Is(err, ErrMalformed) || len(err.Error()) > 300 || len(got) != 0 {
			t.Errorf("%.20q is taken for %+v, %.300v", body, got, err)
		}
		if got, err := DecodeAnswers(nil, []byte(body)); !errors.Is(err, ErrMalformed) || len(err.Error()) > 300 || len(got) != 0 {
			t.Errorf("%.20q is taken for %+v, %.300v", body, got, err)
		}
	}
	for _, body := range []string{"[]", "[ ]", "[]\n", " []"} {
		if got, err := DecodeBatch(nil, "svc-a", []byte(body)); err != nil || len(got) != 0 {
			t.Errorf("%q: %+v, %v", body, got, err)
		}
	}
}

// A name that a client gives must not keep the whole message in memory, so it must be a
// copy.
func TestNamesOfABatchAreCopies(t *testing.T) {
	list := goldenBatches()["batch"]
	body := batchOf(t, list)
	got, err := DecodeBatch(nil, "svc-a", body)
	if err != nil {
		t.Fatal(err)
	}
	for i := range body {
		body[i] = 'x'
	}
	if acquire := got[1]; acquire.Resource != list[1].Resource {
		t.Errorf("the name of an acquire is a part of the message: %q", acquire.Resource)
	}
}

func TestBatchingDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 4096)
	r := goldenRequests()["acquire"]
	body := AppendRequest(nil, &r)
	if n := testing.AllocsPerRun(100, func() { buf = AppendToBatch(buf[:0], r.Verb, "orders.42", body) }); n > 0 {
		t.Errorf("%v allocations to add to a batch", n)
	}
	plain := goldenBatches()["batch"]
	plain[1].Resource = "orders.42" // it needs no escapes
	batch := batchOf(t, plain)
	list := make([]Request, 0, MaxBatch)
	if n := testing.AllocsPerRun(100, func() { list, _ = DecodeBatch(list[:0], "svc-a", batch) }); n > 1 {
		t.Errorf("%v allocations to read a batch, want one for each name that is kept", n)
	}
	answers := answersOf(goldenAnswerLists()["batch-answers"])
	all := make([]Answer, 0, MaxBatch)
	if n := testing.AllocsPerRun(100, func() { all, _ = DecodeAnswers(all[:0], answers) }); n > 0 {
		t.Errorf("%v allocations to read answers", n)
	}
}

// A batch has the same meaning as its parts one by one.
func FuzzDecodeBatch(f *testing.F) {
	for name := range goldenBatches() {
		asWritten, compact := golden(f, name)
		f.Add(asWritten)
		f.Add(compact)
	}
	for _, body := range []string{"[]", "[{}]", "[7,null]", `[{"verb":"info","nonce":"\u0041"},{"verb":"info"}]`, `[{"verb":"release","verb":"info"}]`, "[] []"} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := DecodeBatch(nil, "svc-a", body)
		for i := range got {
			checkRequest(t, &got[i])
		}
		if err != nil && (!errors.Is(err, ErrMalformed) || len(err.Error()) > 1000) {
			t.Fatal(err)
		}
		var parts []json.RawMessage
		if isText(body) != nil || json.Unmarshal(body, &parts) != nil || parts == nil || len(body) > MaxBatchBody || len(parts) > MaxBatch {
			if err == nil || len(got) > 0 {
				t.Fatalf("%s is taken for %+v, %v", body, got, err)
			}
			return
		}
		var want []Request
		bad := 0
		for _, part := range parts {
			r, err := alone(part)
			if err != nil {
				bad++
				continue
			}
			want = append(want, *r)
		}
		if len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) || (err != nil) != (bad > 0) {
			t.Fatalf("%s\nis read as        %+v, %v\none by one it is  %+v, and %d are wrong", body, got, err, want, bad)
		}
	})
}

// alone reads a part of a batch as if it had come alone.
func alone(part []byte) (*Request, error) {
	var w wire
	if err := twin(part, &w); err != nil {
		return nil, err
	}
	verb, resource := Verb(w.Verb), ""
	if !verb.InBatch() {
		return nil, fmt.Errorf("verb %q", verb)
	}
	if verb != Info {
		var err error
		if resource, err = subject.DecodeName(w.Name); err != nil {
			return nil, err
		}
	}
	return DecodeRequest(verb, "svc-a", resource, part)
}

func FuzzDecodeAnswers(f *testing.F) {
	for name := range goldenAnswerLists() {
		asWritten, compact := golden(f, name)
		f.Add(asWritten)
		f.Add(compact)
	}
	for _, body := range []string{"[]", "[{}]", "[7,null]", "[] []"} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := DecodeAnswers(nil, body)
		for i := range got {
			checkAnswer(t, &got[i])
		}
		if err != nil && (!errors.Is(err, ErrMalformed) || len(err.Error()) > 1000) {
			t.Fatal(err)
		}
		var parts []json.RawMessage
		if isText(body) != nil || json.Unmarshal(body, &parts) != nil || parts == nil {
			if err == nil || len(got) > 0 {
				t.Fatalf("%s is taken for %+v, %v", body, got, err)
			}
			return
		}
		var want []Answer
		bad := 0
		for _, part := range parts {
			a, err := DecodeAnswer(part)
			if err != nil {
				bad++
				continue
			}
			want = append(want, *a)
		}
		if len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) || (err != nil) != (bad > 0) {
			t.Fatalf("%s\nis read as        %+v, %v\none by one it is  %+v, and %d are wrong", body, got, err, want, bad)
		}
	})
}
