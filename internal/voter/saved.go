package voter

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

// Saved is what a node leaves at a clean stop: everything that it must not forget (N8).
type Saved struct {
	// Floor is the highest floor of all resources without claims. It is the only floor that
	// versions before 0.2 know.
	Floor uint64 `json:"floor"`
	// Table has those floors in full. It is nil in marks of versions before 0.2 and of a new
	// cluster.
	Table *SavedFloors `json:"table,omitempty"`
	// Forgot is above every fence that the node had forgotten before.
	Forgot uint64 `json:"forgot,omitempty"`
	// Floors has the floors of resources with claims, by name in hexadecimal.
	Floors map[string]uint64 `json:"floors,omitempty"`
	Claims []SavedClaim      `json:"claims,omitempty"`

	// Lives lists the lives whose memory this is, the latest last.
	Lives []uuid.UUID `json:"lives,omitempty"`

	// Away is how long the node had not heard itself when this was saved. Wall (µs) and Boot
	// (uptime) are what the clocks showed then. All are zero in the mark of a new cluster, of
	// which no node has voted.
	Away time.Duration `json:"away_ns,omitempty"`
	Wall int64         `json:"wall_us,omitempty"`
	Boot time.Duration `json:"boot_ns,omitempty"`
}

// age returns for how long the node has not heard itself, by the clock that advanced
// most. If the uptime went back, the time that passed is too long or unknown, and age
// returns the maximum.
func (s *Saved) age(now wire.Now) time.Duration {
	if s.Wall == 0 {
		return 0
	}
	if s.Boot < 0 || s.Away < 0 {
		return math.MaxInt64 // no node writes that
	}
	wall, boot := sat.Micros(sat.Add(now.Wall, -max(s.Wall, -math.MaxInt64))), now.Boot-s.Boot
	if s.Boot == 0 || now.Boot == 0 {
		boot = wall
	}
	if boot < 0 {
		return math.MaxInt64
	}
	return sat.Add(s.Away /*plant:away-before*/, max(wall, boot))
}

// Stale reports whether a node that starts now cannot rely on s, because another node may
// have used its name since, and voted (N8).
func (s *Saved) Stale(now wire.Now, maxTTL time.Duration) bool {
	return s.age(now) > maxTTL-wire.Margin(maxTTL)
}

// SavedClaim is a vote or a place in a queue. When it is restored, its lease begins anew
// in full, because a clock that stopped cannot tell how much of it was left.
type SavedClaim struct {
	Client   string        `json:"client"`
	Instance uuid.UUID     `json:"instance"`
	Seq      uint64        `json:"seq"`
	Reply    string        `json:"reply"`
	Resource []byte        `json:"resource"` // base64 in JSON, since names are arbitrary bytes
	Shared   bool          `json:"shared,omitempty"`
	At       int64         `json:"at"`
	TTL      time.Duration `json:"ttl_ns"`
	Beat     uint64        `json:"beat"`
	Want     uint64        `json:"want,omitempty"`
	Held     bool          `json:"held,omitempty"`
	Token    uint64        `json:"token,omitempty"` // of a held claim, if it is not Want
	Try      bool          `json:"try,omitempty"`
	Quiet    bool          `json:"quiet,omitempty"`
	Voted    bool          `json:"voted,omitempty"`
	Fence    uint64        `json:"fence,omitempty"`
	Keep     bool          `json:"keep,omitempty"`
	Span     uint64        `json:"span,omitempty"`
	Given    uint64        `json:"given,omitempty"`
	Note     string        `json:"note,omitempty"`
	Evicted  *Eviction     `json:"evicted,omitempty"`
}

// Eviction records who evicts a claim, and why.
type Eviction struct {
	By  string `json:"by"`
	Why string `json:"why,omitempty"`
}

// Save returns what a clean stop must leave behind. It returns false if the node is not
// sure of its memory at this moment (N8): it may have forgotten votes, or another node of
// its name may have given some. Then no clean mark may be written.
func (n *Node) Save(now wire.Now) (*Saved, bool) {
	var out Out
	n.expire(now, &out)
	if n.stopped || n.inQuarant /*plant:mark-in-wait*/ || len(n.rivals) > 0 || n.away(now) > n.cfg.MaxTTL-wire.Margin(n.cfg.MaxTTL) /*plant:mark-away*/ {
		return nil, false
	}
	s := &Saved{Away: max(n.away(now), 0) /*plant:mark-age*/, Wall: now.Wall, Boot: now.Boot, Table: n.floors.save(), Forgot: n.forgotten(now), Floors: map[string]uint64{}}
	s.Floor = max(s.Table.highest(), s.Forgot)
	s.Lives = append(slices.Clone(n.lives), n.cfg.Incarnation)
	s.Lives = s.Lives[max(0, len(s.Lives)-wire.MaxLives):]
	for name, res := range n.resources {
		s.Floors[hexName(name)] = res.floor
	}
	for _, c := range n.leases {
		token := c.token
		if token == c.minFence { // as it is almost always; earlier versions have no such field
			token = 0
		}
		s.Claims = append(s.Claims, SavedClaim{
			Client: c.session.key.client, Instance: c.session.key.instance, Seq: c.seq, Reply: c.session.reply,
			Resource: []byte(c.res.name), Shared: c.mode == quorum.Shared, At: c.at, TTL: c.ttl,
			Beat: c.sentAt, Want: c.minFence, Held: c.held, Try: c.try, Quiet: c.suppressQueued, Voted: c.voted, Fence: c.fence,
			Keep: c.keep, Span: c.rangeSize, Given: c.reserved, Note: c.note, Evicted: c.evicted,
			Token: token,
		})
	}
	slices.SortFunc(s.Claims, func(a, b SavedClaim) int {
		if c := slices.Compare(a.Instance[:], b.Instance[:]); c != 0 {
			return c
		}
		return cmp.Compare(a.Seq, b.Seq)
	})
	return s, true
}

func hexName(name string) string { return fmt.Sprintf("%x", name) }

func (n *Node) restore(now wire.Now, s *Saved) {
	if s.Table != nil {
		n.floors.restore(s.Table) //plant:restore-floors
	} else {
		n.floors.least, n.floors.highest = s.Floor, s.Floor
	}
	n.floors.forgot, n.floors.forgotAt = s.Forgot, now.Mono
	n.heardAt -= s.age(now)
	n.heardWall -= s.age(now).Microseconds()
	for _, sc := range s.Claims {
		name := string(sc.Resource)
		res := n.resources[name]
		if res == nil {
			res = n.newResource(name)
			n.raise(res, s.Floors[hexName(name)])
			n.resources[name] = res
			n.roll.add(res)
		}
		key := sessionKey{sc.Client, sc.Instance}
		ses := n.sessions[key]
		if ses == nil {
			ses = &session{key: key, reply: sc.Reply, claims: map[uint64]*claim{}}
		}
		c := &claim{
			session: ses, seq: sc.Seq, res: res, at: sc.At, ttl: sc.TTL,
			sentAt: sc.Beat, minFence: sc.Want, held: sc.Held, try: sc.Try, suppressQueued: sc.Quiet, voted: sc.Voted, fence: sc.Fence, since: now.Mono,
			keep: sc.Keep, rangeSize: sc.Span, reserved: sc.Given, note: sc.Note, evicted: sc.Evicted,
		}
		if c.held {
			c.token = cmp.Or(sc.Token, sc.Want)
		}
		if sc.Shared {
			c.mode = quorum.Shared
		}
		n.add(now, c) //plant:restored-claim
		list := &res.queue
		if c.voted {
			n.voted = true
			n.votes++
			list = &res.votes
			res.keepers += keeper(c)
		}
		*list = append(*list, c)
	}
	for _, name := range slices.Sorted(maps.Keys(n.resources)) {
		res := n.resources[name]
		slices.SortFunc(res.votes, order)
		slices.SortFunc(res.queue, order)
		for _, c := range res.queue {
			if c.try {
				res.tries = append(res.tries, c)
			}
		}
	}
}
