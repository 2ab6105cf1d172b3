package voter

import (
	"testing"
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// The range of a kept claim ends at the highest fence that a claim may want, and the
// clock of a release counts only as far ahead as an age may be (N3).
func TestFencesStayInReach(t *testing.T) {
	c := newCrowd(10)
	reach := uint64(c.now.Wall + c.node.cfg.MaxTTL.Microseconds())
	far := wire.Request{
		Verb: wire.Acquire, Client: "a", Resource: "r", Claim: wire.ClaimID{Seq: 1}, SentAt: 1, Mode: quorum.Exclusive,
		At: c.now.Wall, TTL: time.Second, MinFence: reach - 3, Keep: true, RangeSize: 1 << 16, Digest: c.node.digest,
	}
	c.node.Handle(c.now, &far, "a", &c.out)
	waits := far
	waits.Client, waits.MinFence, waits.Keep, waits.RangeSize = "b", 0, false, 0
	c.node.Handle(c.now, &waits, "b", &c.out)
	for _, s := range c.out.Answers {
		if a := s.Answer; a.Kind == wire.Granted && a.Fence+max(a.RangeSize, 1)-1 > reach {
			t.Errorf("fences %d to %d are set aside, beyond %d", a.Fence, a.Fence+a.RangeSize-1, reach)
		}
	}
	c.out.Reset()
	other := waits
	other.Resource, other.Claim.Seq = "s", 2
	c.node.Handle(c.now, &other, "b", &c.out)
	next := other
	next.Client = "c"
	c.node.Handle(c.now, &next, "c", &c.out)
	c.out.Reset()
	c.node.Handle(c.now, &wire.Request{
		Verb: wire.Release, Client: "b", Resource: "s", Claim: other.Claim, Now: c.now.Wall + time.Hour.Microseconds(),
	}, "", &c.out)
	if len(c.out.Answers) != 1 || c.out.Answers[0].Answer.Kind != wire.Granted {
		t.Fatalf("%+v", c.out.Answers)
	}
	if fence := c.out.Answers[0].Answer.Fence; fence > uint64(c.now.Wall+c.node.cfg.Skew.Microseconds()) {
		t.Errorf("fence %d, %d above the clock, as the one who released said", fence, fence-uint64(c.now.Wall))
	}
}
