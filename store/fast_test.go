package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// isKey is written by hand; this is what it means.
var keyMeaning = regexp.MustCompile(`^[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*$`)

func FuzzKey(f *testing.F) {
	for _, k := range []string{"", ".", "a", "a.b", "a..b", ".a", "a.", "A-/_=9", "ä", "a b", "a\n", "a*", ">", "\xff", "a.\x00"} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if got, want := isKey(key), keyMeaning.MatchString(key); got != want {
			t.Errorf("isKey(%q) is %v, want %v", key, got, want)
		}
	})
}

// What is read without package json is what package json reads.
func FuzzAck(f *testing.F) {
	for _, a := range []string{
		`{"stream":"KV_b","seq":17}`, `{"stream":"KV_b","seq":0}`, `{"stream":"KV_b","seq":}`, `{"stream":"KV_b", "seq":17}`,
		`{"stream":"KV_b","domain":"hub","seq":17}`, `{"stream":"KV_b","seq":17,"duplicate":true}`, `{"stream":"KV_bb","seq":17}`,
		`{"stream":"KV_b","seq":99999999999999999999}`, `{"stream":"KV_b","seq":18446744073709551615}`, `{"stream":"KV_b","seq":017}`,
		`{"stream":"KV_b","seq":17}}`, `{"stream":"KV_b","seq":-1}`, `{"stream":"KV_b","seq":1e3}`, `{"stream":"KV_b","seq":17,"error":{"code":400}}`,
	} {
		f.Add([]byte(a))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := ackOf("KV_b", data)
		if got == 0 {
			return
		}
		var want struct {
			Stream string          `json:"stream"`
			Seq    uint64          `json:"seq"`
			Error  json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(data, &want); err != nil || want.Seq != got || want.Stream != "KV_b" || want.Error != nil {
			t.Errorf("%q is %d, and %+v (%v)", data, got, want, err)
		}
	})
}

func TestAck(t *testing.T) {
	if n := ackOf("KV_b", []byte(`{"stream":"KV_b","seq":1234567890}`)); n != 1234567890 {
		t.Errorf("the answer that servers give is not read: %d", n)
	}
}

// A claim that writes much moves its fence again, so that the server finds it fast. One that
// writes little does not, and a claim whose fence has moved notices.
func TestOldFenceIsMovedAgain(t *testing.T) {
	s, nc := memory(t)
	much, little := s.With(lock(t, "much", 10)), s.With(lock(t, "little", 10))
	other := reopen(t, s, nc).With(lock(t, "much", 10)) // another process under the same lock
	mustPut(t, much, "k", "0")
	mustPut(t, little, "l", "0")
	mustPut(t, other, "o", "0")
	before, unmoved := must(s.Fence(t.Context(), "much"))(t), must(s.Fence(t.Context(), "little"))(t)
	fill := func(n int) {
		js := newJS(t, nc)
		var last jetstream.PubAckFuture
		for i := range n {
			if i%1000 == 0 { // no more than it takes on its way
				<-js.PublishAsyncComplete()
			}
			var err error
			if last, err = js.PublishMsgAsync(&nats.Msg{Subject: s.key("fill")}); err != nil {
				t.Fatal(err)
			}
		}
		<-js.PublishAsyncComplete()
		select {
		case <-last.Ok():
		case err := <-last.Err():
			t.Fatal(err)
		}
	}
	fill(fenceAge)
	for i := range fenceWrites + 1 {
		mustPut(t, much, "k", fmt.Sprint(i))
		if i%10 == 0 {
			mustPut(t, little, "l", fmt.Sprint(i))
		}
	}
	after := must(s.Fence(t.Context(), "much"))(t)
	if after.Revision <= before.Revision || after.Token != 10 {
		t.Errorf("%+v, and before %+v: a fence that much is written under stays old", after, before)
	}
	if f := must(s.Fence(t.Context(), "little"))(t); f != unmoved {
		t.Errorf("%+v, want %+v: moving a fence costs more than it saves where little is written", f, unmoved)
	}
	mustPut(t, other, "o", "1")
	wantValue(t, other, "k", fmt.Sprint(fenceWrites))
	// Moved again is not moved away: the next holder still shuts this one out.
	mustPut(t, reopen(t, s, nc).With(lock(t, "much", 11)), "k", "next")
	if _, err := much.Put(t.Context(), "k", nil); !errors.Is(err, ErrFenced) {
		t.Errorf("%v, want ErrFenced", err)
	}
}

// What a put costs beside the message itself is small: it is not more than what
// jetstream.KeyValue.Update makes of it.
func BenchmarkPut(b *testing.B) {
	nc := connect(b, startServer(b).ClientURL())
	s := newStore(b, newJS(b, nc), jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
	body := make([]byte, 64)
	b.Run("KeyValue.Put", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(s.KeyValue().Put(b.Context(), "k", body))(b)
		}
	})
	b.Run("KeyValue.Update", func(b *testing.B) {
		b.ReportAllocs()
		rev := must(s.KeyValue().Put(b.Context(), "k", body))(b)
		for b.Loop() {
			rev = must(s.KeyValue().Update(b.Context(), "k", body, rev))(b)
		}
	})
	b.Run("View.Put", func(b *testing.B) {
		b.ReportAllocs()
		v := s.With(lock(b, "l", 1))
		for b.Loop() {
			must(v.Put(b.Context(), "f", body))(b)
		}
	})
}

// What the headers of a batch take is as much as they are.
func TestBatchHeader(t *testing.T) {
	id := newID()
	for _, of := range []int{1, 2, 9, 10, 11, 256, 1000} {
		for _, n := range []int{1, 2, 9, 10, 99, 100, 999, 1000} {
			if n > of {
				break
			}
			m := &nats.Msg{Header: nats.Header{"X": {"y"}}, Data: []byte("z")}
			before := size(m)
			if of > 1 {
				m.Header[headerBatch], m.Header[headerBatchSeq] = []string{id}, []string{fmt.Sprint(n)}
				if n == of {
					m.Header[headerBatchCommit] = []string{"1"}
				}
			}
			if got, want := batchHeader(id, n, of), size(m)-before; got != want {
				t.Errorf("%d of %d: %d bytes, want %d", n, of, got, want)
			}
		}
	}
}

// What a group of puts costs in one batch, for all of them.
func BenchmarkGroup(b *testing.B) {
	nc := connect(b, startServer(b).ClientURL())
	s := newStore(b, newJS(b, nc), jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
	v := s.With(lock(b, "l", 1))
	must(v.Put(b.Context(), "k", nil))(b)
	ps := make([]*put, 64)
	for i := range ps {
		ps[i] = &put{write: write{subject: s.key(fmt.Sprint("k", i)), data: make([]byte, 64)}}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := v.c.sendPuts(b.Context(), ps); err != nil {
			b.Fatal(err)
		}
	}
}
