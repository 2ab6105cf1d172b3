package client

import (
	"testing"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Clients that one event brought into step get out of step, and none refreshes later than
// without jitter (C6).
func TestRefreshesGetOutOfStep(t *testing.T) {
	const ttl, clients = 10 * time.Second, 100
	last := map[time.Duration]int{} // when the tenth refresh was, in hundredths of a second
	for seed := range uint64(clients) {
		k := newTalk(t, ttl, func(c *Config) { c.Seed = seed<<32 | 1 })
		k.hold(1)
		at := k.now.Mono
		for refreshes := 0; refreshes < 10; {
			for _, r := range k.wait(time.Millisecond) {
				if r.Verb != wire.Refresh {
					continue
				}
				if pause := k.now.Mono - at; pause > ttl/3+time.Millisecond || pause < ttl/3-ttl/30-time.Millisecond {
					t.Fatalf("client %d refreshes after %v", seed, pause)
				}
				at = k.now.Mono
				refreshes++
				for _, node := range oneConfig.Nodes {
					k.refreshed(node, r, nil, 'n')
				}
			}
		}
		last[at/(10*time.Millisecond)]++
	}
	most := 0
	for _, n := range last {
		most = max(most, n)
	}
	if most > clients/5 {
		t.Errorf("%d of %d clients send their tenth refresh within the same 10 ms", most, clients)
	}
}
