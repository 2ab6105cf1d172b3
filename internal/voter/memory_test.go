package voter

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// inUse returns the heap in use after garbage collection.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // for what the first run finalized
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// crowd is a node, and many clients' requests to it.
type crowd struct {
	node *Node
	cfg  wire.Config
	now  wire.Now
	out  Out
}

func newCrowd(claims int) *crowd {
	c := &crowd{cfg: wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, Skew: 5 * time.Second}}
	c.now = wire.Now{Mono: time.Second, Wall: 1_800_000_000_000_000}
	c.node = New(Config{
		Name: "n1", Config: c.cfg, Incarnation: uuid.UUID{9}, ProbeWait: time.Millisecond, MaxClaims: claims, MaxQueue: 1000,
	}, c.now, &Saved{}, 0)
	c.node.probed = true
	c.node.heardAt, c.node.heardWall = c.now.Mono, c.now.Wall
	return c
}

func (c *crowd) acquire(i int) {
	c.node.Handle(c.now, &wire.Request{
		Verb: wire.Acquire, Client: "orders", Resource: fmt.Sprintf("orders.%d", i), Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: uint64(i + 1)},
		SentAt: uint64(i + 1), Mode: quorum.Exclusive, At: c.now.Wall + int64(i), TTL: 30 * time.Second, Digest: c.node.digest,
	}, "_INBOX.orders", &c.out)
	c.reset()
}

func (c *crowd) release(i int) {
	c.node.Handle(c.now, &wire.Request{
		Verb: wire.Release, Client: "orders", Resource: fmt.Sprintf("orders.%d", i), Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: uint64(i + 1)},
	}, "", &c.out)
	c.reset()
}

func (c *crowd) reset() { c.out.Reset() }

// Millions of names come and go. The node keeps only a table of floors of constant size,
// and some thousands of the last claims (N11).
func TestNamesLeaveNothing(t *testing.T) {
	const (
		byOne  = 1_000_000
		atOnce = 200_000
	)
	c := newCrowd(atOnce)
	c.acquire(0)
	c.release(0)
	before := inUse()
	for i := range byOne {
		c.acquire(i)
		c.release(i)
	}
	for i := range atOnce {
		c.acquire(i)
	}
	if got := c.node.Resources(); got != atOnce {
		t.Fatalf("%d names are locked, want %d", got, atOnce)
	}
	full := inUse() - before
	for i := range atOnce {
		c.release(i)
	}
	left := inUse() - before
	t.Logf("%d names one by one and %d at once: %.1f MB then, %.1f KB after", byOne, atOnce, float64(full)/1e6, float64(left)/1e3)
	if left > manyFloors*8+200_000+mostEnded*int64(unsafe.Sizeof(wire.ClaimOf{})) {
		t.Errorf("%d bytes are left of %d names", left, byOne)
	}
	if c.node.Claims()+c.node.Resources()+len(c.node.sessions)+len(c.node.perClient) > 0 {
		t.Errorf("left: %d claims, %d names, %d sessions, %d clients", c.node.Claims(), c.node.Resources(), len(c.node.sessions), len(c.node.perClient))
	}
	saved, ok := c.node.Save(c.now)
	if !ok || len(saved.Floors) != 0 || saved.Table.highest() != saved.Floor || saved.Floor < uint64(c.now.Wall)+byOne-1 {
		t.Errorf("saved: %+v", saved)
	}
	runtime.KeepAlive(c)
}

// The memory that a held lock costs a node, as docs/reliability.md says.
func TestBytesOfAHeldLock(t *testing.T) {
	const locks, most = 100_000, 600
	c := newCrowd(locks)
	before := inUse()
	for i := range locks {
		c.acquire(i)
	}
	got := (inUse() - before) / locks
	t.Logf("%d bytes for a held lock", got)
	if got > most {
		t.Errorf("a held lock costs a node %d bytes, want at most %d", got, most)
	}
	runtime.KeepAlive(c)
}
