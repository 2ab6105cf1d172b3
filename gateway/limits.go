package gateway

import "time"

// buckets bound how many requests a second each address may send: token buckets, which
// fill with time. They are few, as a full one says nothing and is forgotten.
type buckets struct {
	by      map[string]*bucket
	cleaned time.Time
}

type bucket struct {
	tokens float64
	at     time.Time
}

// burst is for how long a bucket that is full lets everything pass, in seconds.
const burst = 2

// take takes a token, or tells how long until there is one. rate 0: there is no bound.
func (b *buckets) take(who string, rate float64, now time.Time) time.Duration {
	if rate <= 0 {
		return 0
	}
	wait := b.peek(who, rate, rate*burst, now)
	if wait == 0 {
		b.by[who].tokens--
	}
	return wait
}

// spend takes a token, if there is one.
func (b *buckets) spend(who string, rate, full float64, now time.Time) {
	if b.peek(who, rate, full, now) == 0 {
		b.by[who].tokens--
	}
}

// giveBack returns a token that was spent in vain.
func (b *buckets) giveBack(who string, full float64) {
	if one := b.by[who]; one != nil {
		one.tokens = min(one.tokens+1, full)
	}
}

// peek tells how long until there is a token.
func (b *buckets) peek(who string, rate, full float64, now time.Time) time.Duration {
	if b.by == nil {
		b.by = map[string]*bucket{}
	}
	if now.Sub(b.cleaned) > time.Minute {
		b.cleaned = now
		for k, one := range b.by {
			if now.Sub(one.at).Seconds()*rate >= full {
				delete(b.by, k)
			}
		}
	}
	one := b.by[who]
	if one == nil {
		one = &bucket{tokens: full, at: now}
		b.by[who] = one
	}
	one.tokens, one.at = min(one.tokens+now.Sub(one.at).Seconds()*rate, full), now
	if one.tokens < 1 {
		return time.Duration((1 - one.tokens) / rate * float64(time.Second))
	}
	return 0
}

// enterStream admits an event stream or a waiting list of an address, which leaveStream ends.
// The limit of a principal alone would let one caller take all streams of a gateway without
// credentials.
func (g *Gateway) enterStream(remote string) *Problem {
	if remote == "" {
		return nil
	}
	address := callerOf(remote)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.streams[address] >= g.limits.AddressStreams {
		return problem("too-many", "%d streams and waiting lists of this address are open, which is the limit", g.limits.AddressStreams)
	}
	g.streams[address]++
	return nil
}

func (g *Gateway) leaveStream(remote string) {
	if remote == "" {
		return
	}
	address := callerOf(remote)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.streams[address]--; g.streams[address] == 0 {
		delete(g.streams, address)
	}
}
