package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/qlocktest"
)

func benchGateway(b *testing.B) *Gateway {
	c := qlocktest.StartCluster(b, 3, qlocktest.WithLease(30*time.Second))
	g, err := New(b.Context(), Config{Conn: c.Servers()[0].Conn(), Client: "gateway", Limits: Limits{Leases: 1 << 30, WaitingPerLock: 1 << 30}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = g.Close() })
	return g
}

// Acquire and release a lock of its own over HTTP and kept connections, beside the library on
// the same connection.
func BenchmarkSpread(b *testing.B) {
	b.Run("http", func(b *testing.B) {
		g := benchGateway(b)
		srv := httptest.NewServer(g)
		b.Cleanup(srv.Close)
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 400}}
		b.Cleanup(client.CloseIdleConnections)
		var n atomic.Int64
		b.SetParallelism(200)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			name := "k" + strconv.FormatInt(n.Add(1), 10)
			for pb.Next() {
				path := srv.URL + "/v1/leases/" + uuid.NewString()
				for _, method := range []string{"PUT", "DELETE"} {
					body := io.Reader(http.NoBody)
					if method == "PUT" {
						body = strings.NewReader(`{"name":"` + name + `"}`)
					}
					r, err := http.NewRequest(method, path, body)
					if err != nil {
						b.Error(err)
						return
					}
					if method == "PUT" {
						r.Header.Set("Content-Type", "application/json")
					}
					a, err := client.Do(r)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, a.Body)
					_ = a.Body.Close()
					if a.StatusCode >= 300 {
						b.Errorf("%s: %s", method, a.Status)
						return
					}
				}
			}
		})
	})
	b.Run("library", func(b *testing.B) {
		g := benchGateway(b)
		locker, err := g.only.locker(b.Context(), 0)
		if err != nil {
			b.Fatal(err)
		}
		var n atomic.Int64
		b.SetParallelism(200)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			name := "k" + strconv.FormatInt(n.Add(1), 10)
			for pb.Next() {
				k, err := locker.Lock(b.Context(), name)
				if err != nil {
					b.Error(err)
					return
				}
				_ = k.Unlock(b.Context())
			}
		})
	})
}

// What a lease costs that waits, without connections: with a request that polls it, and
// without. It is memory of the gateway, its client and three nodes together.
func BenchmarkWaiting(b *testing.B) {
	g := benchGateway(b)
	ask(b, g, "POST", "/v1/locks/x", `{"lease":"20s"}`).want(b, 201, "")
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	for range b.N {
		r := httptest.NewRequest("POST", "http://localhost/v1/locks/x", strings.NewReader(`{"wait":"10m","lease":"20s"}`))
		r.Header.Set("Content-Type", "application/json")
		go g.ServeHTTP(httptest.NewRecorder(), r)
	}
	for len(g.all()) < b.N+1 {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	time.Sleep(300 * time.Millisecond) // the requests end; the leases wait
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc+after.StackInuse-before.StackInuse)/float64(b.N), "B/lease")
	for _, l := range g.all() {
		l.release()
	}
}

// discard takes an answer, as a server would, without a connection.
type discard struct {
	h      http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// Acquire and release through the handler alone: what the gateway itself costs, with its
// Locker and three nodes, and without HTTP connections.
func BenchmarkHandler(b *testing.B) {
	g := benchGateway(b)
	acquire := httptest.NewRequest("POST", "http://localhost/v1/locks/x", http.NoBody)
	acquire.Header.Set("Prefer", "wait=30")
	release := httptest.NewRequest("DELETE", "http://localhost/", http.NoBody)
	d := &discard{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(d.h)
		g.ServeHTTP(d, acquire)
		if d.status != 201 {
			b.Fatal(d.status)
		}
		release.URL = &url.URL{Path: d.h.Get("Location")}
		clear(d.h)
		g.ServeHTTP(d, release)
		if d.status != 204 {
			b.Fatal(d.status)
		}
	}
}

// The body of a request is read: an acquire, and a transaction.
func BenchmarkDecode(b *testing.B) {
	b.Run("acquire", func(b *testing.B) {
		benchDecode[AcquireRequest](b, `{"name":"orders.42","lease":"20s","wait":"30s","note":"nightly"}`)
	})
	b.Run("transaction", func(b *testing.B) {
		benchDecode[TransactionRequest](b, `{"once":"pay-7", "lock":{"name":"order.7","wait":"5s"}, "ops":[{"op":"get","key":"order.7"},{"op":"put","key":"order.7","value":"done"},{"op":"add","key":"total"}]}`)
	})
}

func benchDecode[T any](b *testing.B, body string) {
	b.ReportAllocs()
	for b.Loop() {
		if _, p := decode[T]([]byte(body)); p != nil {
			b.Fatal(p)
		}
	}
}
