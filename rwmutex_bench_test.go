package qlock_test

import (
	"sync"
	"testing"

	"github.com/qlock/qlock"
)

// The benchmarks of Go's package sync for its Mutex and RWMutex, which dsync
// published for its own, on a mutex that is a lock of the cluster. All goroutines
// are in one program, as they are there: one Locker, one mutex.

// onMutexes runs a benchmark on clusters of several sizes. Make has each call
// return another mutex.
func onMutexes(b *testing.B, f func(b *testing.B, mutex func() *qlock.RWMutex)) {
	onClusters(b, func(b *testing.B, lockers []*qlock.Locker) {
		var mu sync.Mutex
		names := 0
		f(b, func() *qlock.RWMutex {
			mu.Lock()
			defer mu.Unlock()
			names++
			return lockers[0].RWMutex("mutex." + string(rune('a'+names/26%26)) + string(rune('a'+names%26)))
		})
	})
}

// pass goes through a mutex. That there is nothing in it is what is measured.
func pass(m sync.Locker) {
	m.Lock()
	//lint:ignore SA2001 see above
	m.Unlock()
}

// work takes some nanoseconds of the processor.
func work(x int) int {
	for range 100 {
		x *= 2
		x /= 2
	}
	return x
}

var worked int // where a result goes that must not be optimized away

// BenchmarkMutexUncontended is a mutex for each goroutine.
func BenchmarkMutexUncontended(b *testing.B) {
	onMutexes(b, func(b *testing.B, mutex func() *qlock.RWMutex) {
		b.RunParallel(func(pb *testing.PB) {
			m := mutex()
			for pb.Next() {
				pass(m)
			}
		})
	})
}

func benchmarkMutex(b *testing.B, slack, working bool) {
	onMutexes(b, func(b *testing.B, mutex func() *qlock.RWMutex) {
		m := mutex()
		if slack {
			b.SetParallelism(10)
		}
		b.RunParallel(func(pb *testing.PB) {
			x := 0
			for pb.Next() {
				pass(m)
				if working {
					x = work(x)
				}
			}
			m.Lock()
			worked += x
			m.Unlock()
		})
	})
}

// BenchmarkMutex is one mutex for as many goroutines as there are processors.
func BenchmarkMutex(b *testing.B) { benchmarkMutex(b, false, false) }

// BenchmarkMutexSlack has ten times as many.
func BenchmarkMutexSlack(b *testing.B) { benchmarkMutex(b, true, false) }

// BenchmarkMutexWork has them do something between their locks.
func BenchmarkMutexWork(b *testing.B) { benchmarkMutex(b, false, true) }

// BenchmarkMutexWorkSlack is both.
func BenchmarkMutexWorkSlack(b *testing.B) { benchmarkMutex(b, true, true) }

// BenchmarkMutexNoSpin is a mutex where it would be of no use to spin: who waits
// keeps somebody from work that could be done.
func BenchmarkMutexNoSpin(b *testing.B) {
	onMutexes(b, func(b *testing.B, mutex func() *qlock.RWMutex) {
		m := mutex()
		var here, there uint64
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			c := make(chan bool)
			var data [4 << 10]uint64
			for i := 0; pb.Next(); i++ {
				if i%4 == 0 {
					m.Lock()
					here -= 100
					there += 100
					m.Unlock()
					continue
				}
				for j := 0; j < len(data); j += 4 {
					data[j]++
				}
				// Lets another goroutine run, without the scheduler's global queue.
				go func() { c <- true }()
				<-c
			}
		})
		if here+there != 0 {
			b.Error("two held the mutex at once: what was taken here was not given there")
		}
	})
}

// BenchmarkMutexSpin is a mutex where spinning would be of use: all have as much
// to do as the lock takes.
func BenchmarkMutexSpin(b *testing.B) {
	onMutexes(b, func(b *testing.B, mutex func() *qlock.RWMutex) {
		m := mutex()
		var here, there uint64
		b.RunParallel(func(pb *testing.PB) {
			var data [16 << 10]uint64
			for i := 0; pb.Next(); i++ {
				m.Lock()
				here -= 100
				there += 100
				m.Unlock()
				for j := 0; j < len(data); j += 4 {
					data[j]++
				}
			}
		})
		if here+there != 0 {
			b.Error("two held the mutex at once: what was taken here was not given there")
		}
	})
}

// BenchmarkRWMutexUncontended reads and writes a mutex for each goroutine.
func BenchmarkRWMutexUncontended(b *testing.B) {
	onMutexes(b, func(b *testing.B, mutex func() *qlock.RWMutex) {
		b.RunParallel(func(pb *testing.PB) {
			m := mutex()
			for pb.Next() {
				m.RLock()
				pass(m.RLocker())
				m.RUnlock()
				pass(m)
			}
		})
	})
}

// benchmarkRWMutex writes once in so many times, and reads otherwise.
func benchmarkRWMutex(b *testing.B, ratio int, working bool) {
	onMutexes(b, func(b *testing.B, mutex func() *qlock.RWMutex) {
		m := mutex()
		b.RunParallel(func(pb *testing.PB) {
			x, i := 0, 0
			for pb.Next() {
				if i++; i%ratio == 0 {
					pass(m)
					continue
				}
				m.RLock()
				if working {
					x = work(x)
				}
				m.RUnlock()
			}
			m.Lock()
			worked += x
			m.Unlock()
		})
	})
}

func BenchmarkRWMutexWrite100(b *testing.B)     { benchmarkRWMutex(b, 100, false) }
func BenchmarkRWMutexWrite10(b *testing.B)      { benchmarkRWMutex(b, 10, false) }
func BenchmarkRWMutexWorkWrite100(b *testing.B) { benchmarkRWMutex(b, 100, true) }
func BenchmarkRWMutexWorkWrite10(b *testing.B)  { benchmarkRWMutex(b, 10, true) }
