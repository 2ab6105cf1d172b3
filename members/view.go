package members

import (
	"cmp"
	"slices"
	"time"

	"github.com/qlock/qlock"
)

// view is what a watcher knows. Lists and events go in, changes come out. It has no clock:
// time is an argument.
//
// Tokens put events in order: of two members of one id, the later has the higher token.
// What an event says that came after a list was asked for goes on top of the list. A list
// may also be behind an event that came before it was asked for: a client publishes the
// release and then the event, and the event may be here first. So the end of a member is
// remembered for a moment. After that the list is right, and what a lost, late or forged
// event spoiled is mended.
//
// A process that is stopped right after it joined publishes the event of that when it goes
// on, perhaps long after its lease has ended. A member that is gone never comes back, nor does
// any before it, so its token is remembered for longer. If the event of its join was forged, this
// shuts out members with lower tokens until a list has one of them.
//
// A list may also show a token that is too high. While nodes vote with different tokens, the
// client asks for the highest; if the votes with a lower one turn out to be enough, it has that,
// and tells the nodes, which have raised their votes meanwhile (rule C3 in docs/protocol.md). So
// if events are heard, a member that is new in a list is in doubt until an event names its token
// or a list says the same again.
type view struct {
	group   string
	events  bool             // are heard
	known   bool             // there was a list
	doubts  map[string]doubt // by id
	members map[string]member
	ended   map[string]ending // by id
	gone    map[string]ending // by id: the last member that is known to have been, and is no more
	shown   map[string]member // as the last update had them
	dirty   map[string]bool   // ids that may differ from shown

	overdue int // lists in a row with a member whose lease was over
}

// ending is the end of a member that an event told.
type ending struct {
	kind  Kind
	token uint64
	at    time.Time
}

// doubt is a member that one list had, and no event.
type doubt struct {
	token uint64
	since time.Time // when the list was asked for
}

const (
	// confirm is how long a client may take to tell nodes which token it has.
	confirm = 50 * time.Millisecond
	// remember is how long an event that a member ended counts more than a list.
	remember = time.Second
	// longRemember is how late the event of a join may come and be recognized as late.
	longRemember = 10 * time.Minute
)

func newView(group string, events bool) *view {
	return &view{group: group, events: events, members: map[string]member{}, ended: map[string]ending{}, gone: map[string]ending{}, shown: map[string]member{}, dirty: map[string]bool{}}
}

// list replaces what is known by a list that was asked for at a time.
func (v *view) list(list []member, asked time.Time) {
	next := make(map[string]member, len(list))
	doubts := map[string]doubt{}
	for _, m := range list {
		known, had := v.members[m.ID]
		if m.Uncertain {
			if had {
				known.Uncertain = true
				next[m.ID] = known // until it is known otherwise
			}
			continue
		}
		if e, ok := v.ended[m.ID]; ok && m.Token <= e.token && asked.Sub(e.at) < remember {
			continue
		}
		if v.events && v.known && (!had || known.Token != m.Token) {
			d, ok := v.doubts[m.ID]
			if !ok || d.token != m.Token {
				d = doubt{m.Token, asked}
			}
			if asked.Sub(d.since) < confirm {
				doubts[m.ID] = d
				if had {
					next[m.ID] = known
				}
				continue
			}
		}
		if v.gone[m.ID].token >= m.Token {
			delete(v.gone, m.ID)
		}
		next[m.ID] = m
	}
	for id, m := range v.members {
		v.dirty[id] = true
		if now, has := next[id]; !has || now.Token > m.Token {
			v.leave(m, asked)
		}
	}
	for id, e := range v.gone {
		if asked.Sub(e.at) > longRemember {
			delete(v.gone, id)
		}
	}
	for id := range next {
		v.dirty[id] = true
	}
	for id, e := range v.ended {
		if asked.Sub(e.at) > 10*remember {
			delete(v.ended, id)
		}
	}
	v.members, v.doubts, v.known = next, doubts, true
}

// hear applies events in the order in which they came.
func (v *view) hear(events []heard) {
	for _, e := range events {
		p, ok := parse(e.Name)
		if !ok || p.group != v.group || e.Mode != "exclusive" {
			continue
		}
		m, had := v.members[p.id]
		switch {
		case p.n > 0:
			if had && e.Kind == qlock.EventAcquired && m.Token == p.token && m.n < p.n {
				m.Meta, m.n = e.Note, p.n
				v.members[p.id] = m
			}
		case e.Kind == qlock.EventAcquired:
			if end, ok := v.ended[p.id]; ok && e.Token <= end.token && e.at.Sub(end.at) < remember {
				break // overtaken by the event that it ended
			}
			if end, ok := v.gone[p.id]; ok && e.Token <= end.token {
				break // it is late
			}
			if had && m.Token < e.Token {
				v.leave(m, e.at)
			}
			if !had || m.Token < e.Token {
				v.members[p.id] = member{Info: Info{ID: p.id, Client: e.Client, Meta: e.Note, Token: e.Token}}
			}
		default:
			end := ending{Left, e.Token, e.at}
			if e.Kind == qlock.EventLost {
				end.kind = Lost
			}
			if v.ended[p.id].token <= e.Token {
				v.ended[p.id] = end
			}
			if had && m.Token <= e.Token {
				v.leave(m, e.at)
				delete(v.members, p.id)
			}
		}
		v.dirty[p.id] = true
	}
}

// leave remembers a member that is gone.
func (v *view) leave(m member, at time.Time) {
	if m.Token >= v.gone[m.ID].token {
		v.gone[m.ID] = ending{Lost, m.Token, at}
	}
}

// update is what changed since the last one. It reports false if nothing did.
func (v *view) update() (Update, bool) {
	if !v.known {
		return Update{}, false // so that the first one has them all
	}
	var u Update
	for id := range v.dirty {
		old, had := v.shown[id]
		now, has := v.members[id]
		if had && (!has || now.Token != old.Token) {
			kind := Lost
			if e, ok := v.ended[id]; ok && e.token >= old.Token {
				kind = e.kind
			}
			u.Changes = append(u.Changes, Change{kind, old.Info})
		}
		switch {
		case has && (!had || now.Token != old.Token):
			u.Changes = append(u.Changes, Change{Joined, now.Info})
		case has && now.Meta != old.Meta:
			u.Changes = append(u.Changes, Change{Changed, now.Info})
		}
		if has {
			v.shown[id] = now
		} else {
			delete(v.shown, id)
		}
	}
	clear(v.dirty)
	// Stable, as the end of one member comes before the start of its successor.
	slices.SortStableFunc(u.Changes, func(a, b Change) int { return cmp.Compare(a.Member.ID, b.Member.ID) })
	u.Members = make([]Info, 0, len(v.shown))
	for _, m := range v.shown {
		u.Members = append(u.Members, m.Info)
	}
	slices.SortFunc(u.Members, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return u, len(u.Changes) > 0
}

// nextDeath is how long after the list came the first member may be gone whose lease is
// not extended any more. A member that lives has two thirds of its lease left, or more, and
// that is longer than the usual interval. Call it once for each list.
func (v *view) nextDeath() time.Duration {
	const (
		tick = 5 * time.Millisecond
		most = time.Hour
	)
	next := most
	if len(v.doubts) > 0 {
		next = confirm
	}
	for _, m := range v.members {
		if !m.Uncertain {
			next = min(next, m.Lease+tick)
		}
	}
	if next > 4*tick {
		v.overdue = 0
		return next
	}
	// Its lease is over, and the nodes have yet to notice. Should they take longer, they
	// are asked less often.
	v.overdue = min(v.overdue+1, 10)
	return tick << (v.overdue + 1)
}
