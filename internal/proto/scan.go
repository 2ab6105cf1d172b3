package proto

import (
	"strings"
	"unsafe"
)

// Decoding is most of what a lock costs a machine, and nearly all bodies look just
// as our own encoder writes them. So these are read by hand, in one pass. Whatever
// looks different in any way (an escape, a fraction, a null, an unknown field, a
// field twice) is left to encoding/json, as are all errors: scan decides nothing,
// and a fuzz test compares the two.

// scan reads body into w, or returns false without having said anything about it.
func (w *wire) scan(body []byte) bool {
	p := scanner{s: unsafe.String(unsafe.SliceData(body), len(body))} // nobody changes it: see Decode
	return w.object(&p) && p.i == len(p.s)
}

func (w *wire) object(p *scanner) bool {
	for first := true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !w.field(p, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (w *wire) field(p *scanner, key string) bool {
	switch key {
	case "answer":
		return p.text(&w.Answer)
	case "verb":
		return p.text(&w.Verb)
	case "name":
		return p.text(&w.Name)
	case "instance":
		return p.text(&w.Instance)
	case "seq":
		return p.number(&w.Seq)
	case "beat":
		return p.number(&w.Beat)
	case "mode":
		return p.text(&w.Mode)
	case "at":
		return p.integer(&w.At)
	case "ttl_ms":
		return p.integer(&w.TTL)
	case "want":
		return p.number(&w.Want)
	case "held":
		return p.boolean(&w.Held)
	case "try":
		return p.boolean(&w.Try)
	case "quiet":
		return p.boolean(&w.Quiet)
	case "check":
		return p.boolean(&w.Check)
	case "keep":
		return p.boolean(&w.Keep)
	case "span":
		return p.number(&w.Span)
	case "behind":
		return p.boolean(&w.Behind)
	case "late":
		return p.boolean(&w.Late)
	case "continues":
		return p.texts(&w.Continues)
	case "digest":
		return p.text(&w.Digest)
	case "client":
		return p.text(&w.Client)
	case "node":
		return p.text(&w.Node)
	case "now":
		return p.integer(&w.Now)
	case "lo":
		return p.number(&w.Lo)
	case "hi":
		return p.number(&w.Hi)
	case "live":
		return p.runs(&w.Live)
	case "waiting":
		return p.runs(&w.Waiting)
	case "unknown":
		return p.runs(&w.Unknown)
	case "nonce":
		return p.text(&w.Nonce)
	case "incarnation":
		return p.text(&w.Incarnation)
	case "started":
		return p.integer(&w.Started)
	case "voted":
		return p.boolean(&w.Voted)
	case "stopped":
		return p.boolean(&w.Stopped)
	case "fence":
		return p.number(&w.Fence)
	case "most":
		return p.number(&w.Most)
	case "ahead_ms":
		return p.integer(&w.Ahead)
	case "place":
		return p.integer(&w.Place)
	case "again":
		return p.integer(&w.Again)
	case "recovering_ms":
		return p.integer(&w.Recovering)
	case "blocker":
		if w.Blocker != nil {
			return false
		}
		w.Blocker = new(wireBlocker)
		return w.Blocker.scan(p)
	case "reason":
		return p.text(&w.Reason)
	case "text":
		return p.text(&w.Text)
	case "passes":
		return p.boolean(&w.Passes)
	case "nodes":
		return p.texts(&w.Nodes)
	case "max_ttl_ms":
		return p.integer(&w.MaxTTL)
	case "skew_ms":
		return p.integer(&w.Skew)
	case "state":
		return p.text(&w.State)
	case "longest_ms":
		return p.integer(&w.Longest)
	case "claims":
		return p.integer(&w.Claims)
	case "version":
		return p.text(&w.Version)
	case "note":
		ok := p.text(&w.Note)
		w.Note = strings.Clone(w.Note) // it is kept for longer than the message
		return ok
	}
	return false
}

func (b *wireBlocker) scan(p *scanner) bool {
	for first := true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !b.field(p, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (b *wireBlocker) field(p *scanner, key string) bool {
	switch key {
	case "instance":
		return p.text(&b.Instance)
	case "seq":
		return p.number(&b.Seq)
	case "client":
		ok := p.text(&b.Client)
		b.Client = strings.Clone(b.Client) // it is kept for longer than the message
		return ok
	case "mode":
		return p.text(&b.Mode)
	case "voted":
		return p.boolean(&b.Voted)
	case "ahead":
		return p.boolean(&b.Ahead)
	case "for_ms":
		return p.integer(&b.For)
	}
	return false
}

// scanner reads JSON from s, at i. Its methods return false at whatever they do
// not read as encoding/json would.
type scanner struct {
	s string
	i int
}

func (p *scanner) space() {
	for p.i < len(p.s) && (p.s[p.i] == ' ' || p.s[p.i] == '\n' || p.s[p.i] == '\r' || p.s[p.i] == '\t') {
		p.i++
	}
}

// is takes c, and the space around it.
func (p *scanner) is(c byte) bool {
	p.space()
	if p.i == len(p.s) || p.s[p.i] != c {
		return false
	}
	p.i++
	p.space()
	return true
}

// where a scanner is in an object.
type where uint8

const (
	lost   where = iota
	inside       // before the value of a member
	after        // behind the object
)

// member goes on to the next member of an object, or to the first.
func (p *scanner) member(first bool) (key string, at where) {
	switch {
	case first && !p.is('{'):
		return "", lost
	case p.is('}'):
		return "", after
	case !first && !p.is(','):
		return "", lost
	case !p.text(&key) || !p.is(':'):
		return "", lost
	}
	return key, inside
}

// text reads a string of plain ASCII without escapes.
func (p *scanner) text(to *string) bool {
	if p.i == len(p.s) || p.s[p.i] != '"' {
		return false
	}
	from := p.i + 1
	for i := from; i < len(p.s); i++ {
		switch c := p.s[i]; {
		case c == '"':
			*to, p.i = p.s[from:i], i+1
			return true
		case c < ' ' || c >= 0x7f || c == '\\':
			return false
		}
	}
	return false
}

// number reads up to 18 digits: more than MaxInt has, and none that overflow.
func (p *scanner) number(to *uint64) bool {
	from, v := p.i, uint64(0)
	for p.i < len(p.s) && p.s[p.i]-'0' <= 9 {
		v = 10*v + uint64(p.s[p.i]-'0')
		p.i++
	}
	if n := p.i - from; n == 0 || n > 18 || n > 1 && p.s[from] == '0' {
		return false
	}
	*to = v
	return true
}

func (p *scanner) integer(to *int64) bool {
	var v uint64
	ok := p.number(&v)
	*to = int64(v)
	return ok
}

func (p *scanner) boolean(to *bool) bool {
	rest := p.s[p.i:]
	switch {
	case strings.HasPrefix(rest, "true"):
		*to = true
		p.i += len("true")
	case strings.HasPrefix(rest, "false"):
		*to = false
		p.i += len("false")
	default:
		return false
	}
	return true
}

// element goes on to the next element of a list, or to the first.
func (p *scanner) element(first bool) where {
	switch {
	case first && !p.is('['):
		return lost
	case p.is(']'):
		return after
	case !first && !p.is(','):
		return lost
	}
	return inside
}

func (p *scanner) texts(to *[]string) bool {
	list := []string{}
	for first := true; ; first = false {
		switch p.element(first) {
		case inside:
			var s string
			if !p.text(&s) {
				return false
			}
			list = append(list, s)
		case after:
			*to = list
			return true
		default:
			return false
		}
	}
}

func (p *scanner) runs(to *wireRuns) bool {
	list := wireRuns{}
	for first := true; ; first = false {
		switch p.element(first) {
		case inside:
			var r [2]uint64
			if !p.is('[') || !p.number(&r[0]) || !p.is(',') || !p.number(&r[1]) || !p.is(']') {
				return false
			}
			list = append(list, r)
		case after:
			*to = list
			return true
		default:
			return false
		}
	}
}
