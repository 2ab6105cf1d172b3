package qlock_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// A client names ever longer leases to a node that waits: each is a line in its log,
// which has room for one a second of each kind.
func TestLogOfAWaitingNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1, setup{fresh: true})
		liar := w.connect()
		for seq := uint64(1); seq <= 1000; seq++ {
			r := wire.Request{
				Verb: wire.Acquire, Client: "liar", Resource: "x", Digest: "another",
				Claim: wire.ClaimID{Instance: uuid.New(), Seq: seq}, Mode: quorum.Exclusive,
				At: time.Now().UnixMicro(), TTL: maxLease + time.Duration(seq)*time.Millisecond, SentAt: seq, Held: true, MinFence: 1,
			}
			if err := liar.PublishRequest("lock.default.node.acquire.liar.x", liar.NewInbox(), wire.AppendRequest(nil, &r)); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		time.Sleep(time.Second)
		if lines := w.log.find("has, or allows, leases of"); len(lines) > 3 {
			t.Errorf("%d lines in the log, the last %s", len(lines), strings.TrimSpace(lines[len(lines)-1]))
		}
	})
}
