package voter

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// An uncontended lock and its release, among many names: the cost to the machine alone.
func BenchmarkLock(b *testing.B) {
	const names = 1 << 17 // more than there are floors
	resources := make([]string, names)
	for i := range resources {
		resources[i] = fmt.Sprintf("orders.%d", i)
	}
	c := newCrowd(1000)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		name := resources[i%names]
		id := wire.ClaimID{Instance: uuid.UUID{1}, Seq: uint64(i + 1)}
		c.node.Handle(c.now, &wire.Request{
			Verb: wire.Acquire, Client: "orders", Resource: name, Claim: id, SentAt: uint64(i + 1),
			Mode: quorum.Exclusive, At: c.now.Wall, TTL: c.cfg.MaxTTL, Digest: c.node.digest,
		}, "_INBOX.orders", &c.out)
		c.node.Handle(c.now, &wire.Request{Verb: wire.Release, Client: "orders", Resource: name, Claim: id}, "", &c.out)
		c.out.Reset()
	}
}

// Many readers keep claims on a name, and a writer waits and is heard again and again:
// the cost of one message of the writer.
func BenchmarkCrowdedName(b *testing.B) {
	c := newReaders(60_000)
	c.write(1, 1)
	for len(c.node.crowded) > 0 { // all are told for the first time
		c.now.Mono += lookPause
		c.tick()
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		c.now.Mono += 10 * time.Microsecond
		c.write(1, uint64(i+2))
	}
}
