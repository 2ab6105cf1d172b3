package qlock_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
)

// A client names ever longer leases to a node that waits: each is a line in its log,
// which has room for one a second of each kind.
func TestLogOfAWaitingNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1, setup{fresh: true})
		liar := w.connect()
		for seq := uint64(1); seq <= 1000; seq++ {
			r := proto.Request{
				Verb: proto.Acquire, Client: "liar", Resource: "x", Digest: "another",
				Claim: proto.ClaimID{Instance: uuid.New(), Seq: seq}, Mode: quorum.Exclusive,
				At: time.Now().UnixMicro(), TTL: maxLease + time.Duration(seq)*time.Millisecond, Beat: seq, Held: true, Want: 1,
			}
			if err := liar.PublishRequest("lock.default.node.acquire.liar.x", liar.NewInbox(), proto.AppendRequest(nil, &r)); err != nil {
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
