package store

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Repeat tells whether a transaction was done, and changes nothing.
func TestRepeat(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	s, err := Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if res, err := s.Repeat(t.Context(), "pay-7"); err != nil || res.Number("n") != 0 {
			t.Errorf("before: %+v %v", res, err)
		}
	}
	if _, err := s.Do(t.Context(), Once("pay-7", time.Hour, 'x'), Add("n", 4)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		res, err := s.Repeat(t.Context(), "pay-7")
		d := (*DuplicateError)(nil)
		if !errors.As(err, &d) || string(d.Answer) != "x" || d.ID != "pay-7" || res.Number("n") != 4 {
			t.Errorf("after: %+v %v", res, err)
		}
	}
	if _, err := s.Repeat(t.Context(), ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// Fences lists those who have used the bucket, and Check says what Open would.
func TestFencesAndCheck(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	s, err := Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage}, WithClient("svc-a"))
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.Fences(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	for i, name := range []string{"z z", "a.b"} {
		if _, err := s.With(held{name, uint64(7 + i), t.Context()}).Put(t.Context(), "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Fences(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v %v", list, err)
	}
	if got := fmt.Sprintln(list[0].Lock, list[0].Token, list[0].Client, list[1].Lock, list[1].Token); got != "a.b 8 svc-a z%20z 7\n" {
		t.Errorf("%s", got)
	}
	if age := time.Since(list[0].Moved); age < -time.Minute || age > time.Hour {
		t.Errorf("moved %v ago", age)
	}

	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "plain", Storage: jetstream.MemoryStorage}); err != nil {
		t.Fatal(err)
	}
	for bucket, want := range map[string]error{"b": nil, "plain": ErrNotPrepared} {
		c, err := config(t.Context(), js, bucket)
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(c); !errors.Is(err, want) {
			t.Errorf("%s: %v", bucket, err)
		}
		c.Mirror = &jetstream.StreamSource{Name: "KV_other"}
		if err := Check(c); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", bucket, err)
		}
	}
	if err := Check(jetstream.StreamConfig{Name: "no bucket"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}
