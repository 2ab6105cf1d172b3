package sim

import (
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// rogue is a dishonest client within the limits of its NATS permissions
// (docs/security.md). It may ask for any lock under its own name, with any body and any
// reply subject, and follows no rule. It may obstruct others for as long as it goes on.
// It must not cause two holders, or falling tokens, or tokens that are out of reach.
type rogue struct {
	sim   *Sim
	rng   *rand.Rand // its own, so that the rest of the world does not change
	claim wire.ClaimID
	beat  uint64
	names int
}

func (s *Sim) newRogue(resources int) {
	r := &rogue{sim: s, rng: rand.New(rand.NewPCG(s.opt.Seed, 0x726f677565)), names: resources}
	r.claim = wire.ClaimID{Instance: uuid.UUID{0: 0xff}, Seq: 1}
	s.at(s.between(0, time.Second), r.act)
}

func (r *rogue) act() {
	s := r.sim
	if !s.working {
		return
	}
	s.at(time.Duration(r.rng.Int64N(int64(300*time.Millisecond))), r.act)
	now := baseWall + s.now.Microseconds()
	victim := s.clients[r.rng.IntN(len(s.clients))]
	reply := "rogue"
	switch r.rng.IntN(4) {
	case 0: // another client's claim; the answers go to that client
		r.claim = wire.ClaimID{Instance: victim.instance, Seq: 1 + r.rng.Uint64N(20)}
		reply = victim.inbox
	case 1:
		r.claim = wire.ClaimID{Instance: uuid.UUID{0: 0xff}, Seq: 1 + r.rng.Uint64N(4)}
	}
	r.beat = max(r.beat+1, uint64(s.now/time.Microsecond)+r.rng.Uint64N(2))
	far := r.rng.Int64N(int64(2 * maxTTL / time.Microsecond))
	req := wire.Request{
		Client: "rogue", Claim: r.claim, Resource: "r" + string(rune('0'+r.rng.IntN(r.names))), SentAt: r.beat,
	}
	switch r.rng.IntN(8) {
	case 0, 1, 2, 3:
		req.Verb, req.TTL, req.Digest = wire.Acquire, time.Second, s.cluster.Digest()
		req.Mode = quorum.Mode(r.rng.IntN(2))
		req.At = now - far + skew.Microseconds()
		req.Held, req.Try, req.SuppressQueued = r.rng.IntN(2) == 0, r.rng.IntN(4) == 0, r.rng.IntN(4) == 0
		if r.rng.IntN(2) == 0 {
			req.MinFence = uint64(now + far)
		}
		if r.rng.IntN(3) == 0 {
			req.Keep, req.RangeSize = true, 1+r.rng.Uint64N(1<<16)
		}
	case 4, 5:
		req.Verb, req.Now, req.SentAt = wire.Release, now+100*far, 0
	case 6:
		req.Verb, req.Node = wire.Yield, s.cluster.Nodes[r.rng.IntN(len(s.cluster.Nodes))]
	case 7:
		req.Verb, req.Resource, req.Claim.Seq = wire.Refresh, "", 0
		req.Lo, req.Hi, req.Live = 1, 20, wire.Runs{{Lo: 1, Hi: 1 + r.rng.Uint64N(20)}}
	}
	s.publish("rogue", reply, req)
}
