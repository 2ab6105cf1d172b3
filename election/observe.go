package election

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// Leader is who leads.
type Leader struct {
	Client string        // the name of its Locker
	Value  string        // given to Campaign, or proclaimed last
	Term   uint64        // see Leadership.Token
	For    time.Duration // how long it leads
	Claim  string        // the id of its claim, as qlock.ClaimInfo.ID

	number uint64 // of the proclamation that the value is from; 0: of none
}

// Candidate is a client that campaigns, and does not lead.
type Candidate struct {
	Client string
	Value  string        // given to Campaign
	For    time.Duration // how long it campaigns, or waits for a preferred candidate
	Claim  string        // the id of its claim
	// Preferred is whether it is a preferred candidate. Only an Election with one of the
	// options Preferred and YieldsToPreferred knows.
	Preferred bool
}

// Leader asks the nodes who leads, in one round trip.
//
// Errors: ErrNoLeader; qlock.ErrNoQuorum if too few nodes answer to tell; the other errors
// of qlock.Locker.Inspect.
func (e *Election) Leader(ctx context.Context) (Leader, error) {
	parts := [3]string{partLeader, partValue0, partValue1}
	var infos [3]*qlock.LockInfo
	var errs [3]error
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() { infos[i], errs[i] = e.locker.Inspect(ctx, e.lock(part)) })
	}
	all.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		for _, one := range errs {
			if one != nil {
				err = one // they say the same
			}
		}
		return Leader{}, fmt.Errorf("election %q: unknown who leads: %w", e.name, err)
	}
	info := infos[0]
	if len(info.Holders) == 0 {
		unclear := !info.Complete()
		for i := range info.Queue {
			unclear = unclear || info.Queue[i].MayHold
		}
		if unclear {
			return Leader{}, fmt.Errorf("election %q: %w: unknown who leads: too few nodes tell (silent: %s; recovering: %s)",
				e.name, qlock.ErrNoQuorum, list(info.Silent), list(info.Recovering))
		}
		return Leader{}, fmt.Errorf("%w: election %q", ErrNoLeader, e.name)
	}
	h := &info.Holders[0]
	l := Leader{Client: h.Client, Term: h.Token, For: h.For, Claim: h.ID}
	l.Value, _ = decode(h.Note)
	for _, info := range infos[1:] {
		for _, claims := range [][]qlock.ClaimInfo{info.Holders, info.Queue} {
			for i := range claims {
				c := &claims[i]
				term, number, value, ok := proclaimed(c.Note)
				// The very Locker that leads: others may write what they like.
				if ok && len(c.Voted) > 0 && c.Client == h.Client && instance(c.ID) == instance(h.ID) && term == l.Term && number > l.number {
					l.Value, l.number = value, number
				}
			}
		}
	}
	return l, nil
}

func list(nodes []string) string {
	if len(nodes) == 0 {
		return "none"
	}
	return strings.Join(nodes, " ")
}

// instance is the part of a claim's id that names the Locker.
func instance(id string) string {
	s, _, _ := strings.Cut(id, "/")
	return s
}

// Candidates lists who campaigns, in the order in which they will lead. The leader is not
// among them. Errors are those of qlock.Locker.Inspect.
func (e *Election) Candidates(ctx context.Context) ([]Candidate, error) {
	info, err := e.locker.Inspect(ctx, e.lock(partLeader))
	if err != nil {
		return nil, fmt.Errorf("election %q: %w", e.name, err)
	}
	var out []Candidate
	seen := map[string]bool{}
	add := func(claims []qlock.ClaimInfo, which func(*qlock.ClaimInfo) bool, preferred bool) {
		for i := range claims {
			c := &claims[i]
			if id := c.Client + "/" + instance(c.ID); which(c) && !seen[id] {
				seen[id] = true
				value, _ := decode(c.Note)
				out = append(out, Candidate{Client: c.Client, Value: value, For: c.For, Claim: c.ID, Preferred: preferred})
			}
		}
	}
	any := func(*qlock.ClaimInfo) bool { return true }
	if e.preference == none {
		add(info.Queue, any, false)
		return out, nil
	}
	preferred, err := e.locker.Inspect(ctx, e.lock(partPreferred))
	if err != nil {
		return nil, fmt.Errorf("election %q: %w", e.name, err)
	}
	for i := range info.Holders {
		c := &info.Holders[i]
		seen[c.Client+"/"+instance(c.ID)] = true // the leader
	}
	exclusive := func(c *qlock.ClaimInfo) bool { return !c.Shared }
	add(preferred.Holders, exclusive, true)
	add(preferred.Queue, exclusive, true)
	add(info.Queue, any, false)
	add(preferred.Queue, any, false) // those that have stepped back
	return out, nil
}

// Observe yields who leads, now and after each change of leader, term or value, until ctx
// ends or the loop is left, or the Locker is closed: then qlock.ErrClosed is the last. If there is no leader, or it is not known who leads, it yields
// the error that Leader returns, once each time, and goes on: within 5 s if the nodes do not
// answer, however late ctx ends.
//
//	for leader, err := range e.Observe(ctx) {
//		switch {
//		case errors.Is(err, election.ErrNoLeader):
//			fmt.Println("nobody leads")
//		case err != nil:
//			log.Print(err) // and it goes on
//		default:
//			fmt.Println(leader.Client, "leads at", leader.Value)
//		}
//	}
//
// Terms and values never go back. It learns of a change from events (WithEvents) within
// milliseconds, and otherwise within the interval (WithInterval). Changes that follow each
// other faster than the loop may be left out; the last one never is.
func (e *Election) Observe(ctx context.Context) iter.Seq2[Leader, error] {
	return func(yield func(Leader, error) bool) {
		wake := make(chan struct{}, 1)
		if e.events != nil {
			sub, err := e.subscribe(ctx, wake)
			if err != nil {
				yield(Leader{}, err)
				return
			}
			defer func() { _ = sub.Unsubscribe() }() // its connection may be closed
		}
		var last Leader
		var lastErr error
		first := true
		again := 0 // how often it was asked after an event
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-wake:
				again = 0
			case <-timer.C:
			}
			// The deadline of ctx may be far away. That of a question must not be: it would be as
			// long until an outage is told, and until it is noticed that the outage is over.
			ask, cancel := context.WithTimeout(ctx, askFor)
			now, err := e.Leader(ask)
			cancel()
			if ctx.Err() != nil {
				return
			}
			switch {
			case err == nil && (now.Term < last.Term || now.Term == last.Term && now.number < last.number):
				// The word of nodes that have not heard it all yet.
			case first || !same(now, err, last, lastErr):
				first = false
				if !yield(now, err) || errors.Is(err, qlock.ErrClosed) {
					return
				}
				if err != nil { // what was last is still the least that comes
					now = last
				}
				last, lastErr = now, err
			}
			// An event may be heard before a node has heard what it is about.
			pause := e.interval
			if again < len(soon) {
				pause = min(pause, soon[again])
				again++
			}
			timer.Reset(pause)
		}
	}
}

// askFor is how long Observe waits for the nodes before it says that they do not answer.
const askFor = 5 * time.Second

// soon is when the nodes are asked again after an event.
var soon = [...]time.Duration{10 * time.Millisecond, 100 * time.Millisecond}

// same reports whether there is nothing new to tell.
func same(now Leader, err error, last Leader, lastErr error) bool {
	if err != nil || lastErr != nil {
		for _, kind := range []error{ErrNoLeader, qlock.ErrClosed, qlock.ErrRefused} {
			if errors.Is(err, kind) != errors.Is(lastErr, kind) {
				return false
			}
		}
		return err != nil && lastErr != nil
	}
	return now.Term == last.Term && now.Claim == last.Claim && now.Value == last.Value
}

// subscribe lets the events of this election write to wake.
func (e *Election) subscribe(ctx context.Context, wake chan<- struct{}) (*nats.Subscription, error) {
	pattern := prefix + ">"
	if plain(e.name) {
		pattern = prefix + e.name + ".>" // other names stand otherwise in subjects
	}
	subject, err := qlock.EventSubject(e.locker.Cluster(), pattern)
	if err != nil {
		return nil, fmt.Errorf("election %q: %w", e.name, err)
	}
	sub, err := e.events.Subscribe(subject, func(m *nats.Msg) {
		event, err := qlock.ParseEvent(m.Subject, m.Data)
		if err != nil {
			return
		}
		if name, _, ok := ParseName(event.Name); ok && name == e.name {
			select {
			case wake <- struct{}{}:
			default: // it is awake
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("election %q: no events: %w", e.name, err)
	}
	// In force before the nodes are asked. If it cannot be, the interval is what is left.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = e.events.FlushWithContext(ctx)
	return sub, nil
}

// plain reports whether a name stands in subjects as it is.
func plain(name string) bool {
	for _, token := range strings.Split(name, ".") {
		if token == "" || strings.ContainsFunc(token, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	return true
}

// encode makes a note of a value. Notes are for people, and keep nothing that a terminal
// would not show: such bytes are written %XX, and so is the percent sign.
func encode(value string) (string, error) {
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	if b.Len() > MaxValue {
		return "", fmt.Errorf("%w: it has %d bytes (%d where some count three times), at most %d are allowed: put what is longer into a key-value store, and give its key", ErrInvalidValue, len(value), b.Len(), MaxValue)
	}
	return b.String(), nil
}

// decode reads a value from a note. ok is false if encode has not written the note; it is
// shown as it is then.
func decode(note string) (value string, ok bool) {
	if !strings.Contains(note, "%") {
		return note, true
	}
	b := make([]byte, 0, len(note))
	for i := 0; i < len(note); i++ {
		if note[i] != '%' {
			b = append(b, note[i])
			continue
		}
		if i+2 >= len(note) {
			return note, false
		}
		c, err := strconv.ParseUint(note[i+1:i+3], 16, 8)
		if err != nil {
			return note, false
		}
		b = append(b, byte(c))
		i += 2
	}
	return string(b), true
}

// proclaimed reads the note of a lock that has a proclamation.
func proclaimed(note string) (term, number uint64, value string, ok bool) {
	head, text, found := strings.Cut(note, " ")
	t, n, both := strings.Cut(head, ".")
	term, err := strconv.ParseUint(t, 10, 64)
	number, err2 := strconv.ParseUint(n, 10, 64)
	value, whole := decode(text)
	return term, number, value, found && both && err == nil && err2 == nil && whole
}
