package wire

import (
	"maps"
	"slices"
	"testing"
)

// Encoding is done for every lock and node; it must not allocate.
func TestEncodingDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 4096)
	for name, r := range goldenRequests() {
		if n := testing.AllocsPerRun(100, func() { buf = AppendRequest(buf[:0], &r) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	for name, a := range goldenAnswers() {
		if a.Kind == Listed {
			continue // a name in it needs escapes
		}
		if n := testing.AllocsPerRun(100, func() { buf = AppendAnswer(buf[:0], &a) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkAppendRequest(b *testing.B) {
	all := goldenRequests()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, 4096)
			for b.Loop() {
				buf = AppendRequest(buf[:0], &r)
			}
		})
	}
}

func BenchmarkDecodeRequest(b *testing.B) {
	all := goldenRequests()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name]
		body := AppendRequest(nil, &r)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeRequest(r.Verb, r.Client, r.Resource, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendAnswer(b *testing.B) {
	all := goldenAnswers()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		a := all[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, 4096)
			for b.Loop() {
				buf = AppendAnswer(buf[:0], &a)
			}
		})
	}
}

func BenchmarkDecodeAnswer(b *testing.B) {
	all := goldenAnswers()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		a := all[name]
		body := AppendAnswer(nil, &a)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeAnswer(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A list as long as that of 100,000 held locks with 1,000 gaps.
func BenchmarkRefreshOfManyClaims(b *testing.B) {
	r := Request{Verb: Refresh, Claim: exampleClaim, SentAt: 1, Lo: 1, Hi: 101_000}
	for i := range uint64(1000) {
		r.Live = append(r.Live, Run{101*i + 1, 101*i + 100})
	}
	body := AppendRequest(nil, &r)
	b.ReportMetric(float64(len(body)), "bytes")
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		buf := make([]byte, 0, len(body))
		for b.Loop() {
			buf = AppendRequest(buf[:0], &r)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeRequest(Refresh, "", "", body); err != nil {
				b.Fatal(err)
			}
		}
	})
}
