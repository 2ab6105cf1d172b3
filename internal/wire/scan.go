package wire

import (
	"strings"
	"unicode/utf8"
	"unsafe"
)

// Decoding is most of what a lock costs a machine, so bodies are read by hand, in one pass.
// There is no second reader for rare cases, because the same message could then mean two
// things. The reader takes JSON (RFC 8259) and nothing else, and it is stricter than
// encoding/json: it compares the names of fields byte by byte, rejects a field that comes
// twice, rejects null for every field, and rejects text that is not UTF-8 instead of
// repairing it. docs/wire.md specifies this. A fuzz test compares this reader with a simple
// one that is made of encoding/json and has the same rules.

// maxDepth is the maximum nesting of a body. Our own bodies have six levels.
const maxDepth = 32

// scan reads the whole body into w.
func (w *wire) scan(body []byte) error {
	p := newScanner(body)
	if w.object(&p) && p.end() {
		return nil
	}
	return p.err()
}

// once records that a field was read, and reports whether that is the first time. Each
// field of an object has its own bit.
func once(p *scanner, seen *uint64, bit uint) bool {
	if *seen>>bit&1 != 0 {
		return p.fail("a field comes twice")
	}
	*seen |= 1 << bit
	return true
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
	seen := &w.seen
	switch key {
	case "answer":
		return once(p, seen, 0) && p.text(&w.Answer)
	case "verb":
		return once(p, seen, 1) && p.text(&w.Verb)
	case "name":
		return once(p, seen, 2) && p.text(&w.Name)
	case "instance":
		return once(p, seen, 3) && p.text(&w.Instance)
	case "seq":
		return once(p, seen, 4) && p.number(&w.Seq)
	case "beat":
		return once(p, seen, 5) && p.number(&w.Beat)
	case "mode":
		return once(p, seen, 6) && p.text(&w.Mode)
	case "at":
		return once(p, seen, 7) && p.integer(&w.At)
	case "ttl_ms":
		return once(p, seen, 8) && p.integer(&w.TTL)
	case "want":
		return once(p, seen, 9) && p.number(&w.Want)
	case "token":
		return once(p, seen, 63) && p.number(&w.Token)
	case "held":
		return once(p, seen, 10) && p.boolean(&w.Held)
	case "try":
		return once(p, seen, 11) && p.boolean(&w.Try)
	case "quiet":
		return once(p, seen, 12) && p.boolean(&w.Quiet)
	case "check":
		return once(p, seen, 57) && p.boolean(&w.Check)
	case "keep":
		return once(p, seen, 13) && p.boolean(&w.Keep)
	case "span":
		return once(p, seen, 14) && p.number(&w.Span)
	case "behind":
		return once(p, seen, 15) && p.boolean(&w.Behind)
	case "late":
		return once(p, seen, 16) && p.boolean(&w.Late)
	case "continues":
		return once(p, seen, 51) && p.texts(&w.Continues)
	case "digest":
		return once(p, seen, 17) && p.text(&w.Digest)
	case "client":
		return once(p, seen, 18) && p.text(&w.Client)
	case "node":
		return once(p, seen, 19) && p.text(&w.Node)
	case "now":
		return once(p, seen, 20) && p.integer(&w.Now)
	case "lo":
		return once(p, seen, 21) && p.number(&w.Lo)
	case "hi":
		return once(p, seen, 22) && p.number(&w.Hi)
	case "live":
		return once(p, seen, 23) && p.runs(&w.Live)
	case "waiting":
		return once(p, seen, 24) && p.runs(&w.Waiting)
	case "unknown":
		return once(p, seen, 25) && p.runs(&w.Unknown)
	case "nonce":
		return once(p, seen, 26) && p.text(&w.Nonce)
	case "incarnation":
		return once(p, seen, 27) && p.text(&w.Incarnation)
	case "started":
		return once(p, seen, 28) && p.integer(&w.Started)
	case "voted":
		return once(p, seen, 29) && p.boolean(&w.Voted)
	case "fence":
		return once(p, seen, 30) && p.number(&w.Fence)
	case "place":
		return once(p, seen, 31) && p.integer(&w.Place)
	case "stopped":
		return once(p, seen, 52) && p.boolean(&w.Stopped)
	case "most":
		return once(p, seen, 53) && p.number(&w.Most)
	case "ahead_ms":
		return once(p, seen, 54) && p.integer(&w.Ahead)
	case "again":
		return once(p, seen, 55) && p.integer(&w.Again)
	case "recovering_ms":
		return once(p, seen, 32) && p.integer(&w.Recovering)
	case "blocker":
		if !once(p, seen, 33) {
			return false
		}
		w.Blocker = new(wireBlocker)
		return w.Blocker.object(p)
	case "reason":
		return once(p, seen, 34) && p.text(&w.Reason)
	case "text":
		return once(p, seen, 35) && p.text(&w.Text)
	case "passes":
		return once(p, seen, 36) && p.boolean(&w.Passes)
	case "nodes":
		return once(p, seen, 37) && p.texts(&w.Nodes)
	case "max_ttl_ms":
		return once(p, seen, 38) && p.integer(&w.MaxTTL)
	case "skew_ms":
		return once(p, seen, 39) && p.integer(&w.Skew)
	case "state":
		return once(p, seen, 40) && p.text(&w.State)
	case "longest_ms":
		return once(p, seen, 56) && p.integer(&w.Longest)
	case "claims":
		return once(p, seen, 41) && p.integer(&w.Claims)
	case "version":
		return once(p, seen, 42) && p.text(&w.Version)
	case "note":
		ok := once(p, seen, 43) && p.text(&w.Note)
		w.Note = strings.Clone(w.Note) // outlives the message
		return ok
	case "pattern":
		return once(p, seen, 44) && p.text(&w.Pattern)
	case "after":
		return once(p, seen, 45) && p.number(&w.After)
	case "next":
		return once(p, seen, 46) && p.number(&w.Next)
	case "holder":
		return once(p, seen, 47) && p.text(&w.Holder)
	case "by":
		return once(p, seen, 48) && p.text(&w.By)
	case "known":
		return once(p, seen, 49) && p.boolean(&w.Known)
	case "locks":
		return once(p, seen, 50) && p.records(&w.Locks)
	case "over":
		return once(p, seen, 58) && p.ids(&w.Over)
	case "recalled":
		return once(p, seen, 59) && p.ids(&w.Recalled)
	case "yielded":
		return once(p, seen, 60) && p.ids(&w.Yielded)
	case "for":
		return once(p, seen, 61) && p.text(&w.For)
	case "config":
		if !once(p, seen, 62) {
			return false
		}
		w.Config = new(wireConfig)
		return w.Config.object(p)
	}
	return p.skip()
}

func (b *wireBlocker) object(p *scanner) bool {
	for seen, first := uint64(0), true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !b.field(p, &seen, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (b *wireBlocker) field(p *scanner, seen *uint64, key string) bool {
	switch key {
	case "instance":
		return once(p, seen, 0) && p.text(&b.Instance)
	case "seq":
		return once(p, seen, 1) && p.number(&b.Seq)
	case "client":
		ok := once(p, seen, 2) && p.text(&b.Client)
		b.Client = strings.Clone(b.Client) // outlives the message
		return ok
	case "mode":
		return once(p, seen, 3) && p.text(&b.Mode)
	case "voted":
		return once(p, seen, 4) && p.boolean(&b.Voted)
	case "ahead":
		return once(p, seen, 5) && p.boolean(&b.Ahead)
	case "for_ms":
		return once(p, seen, 6) && p.integer(&b.For)
	}
	return p.skip()
}

func (r *wireRecord) object(p *scanner) bool {
	for seen, first := uint64(0), true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !r.field(p, &seen, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (r *wireRecord) field(p *scanner, seen *uint64, key string) bool {
	switch key {
	case "name":
		return once(p, seen, 0) && p.text(&r.Name)
	case "votes":
		return once(p, seen, 1) && p.integer(&r.Votes)
	case "waiting":
		return once(p, seen, 2) && p.integer(&r.Waiting)
	case "claims":
		return once(p, seen, 3) && p.claims(&r.Claims)
	}
	return p.skip()
}

func (c *wireClaimRecord) object(p *scanner) bool {
	for seen, first := uint64(0), true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !c.field(p, &seen, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (c *wireClaimRecord) field(p *scanner, seen *uint64, key string) bool {
	switch key {
	case "instance":
		return once(p, seen, 0) && p.text(&c.Instance)
	case "seq":
		return once(p, seen, 1) && p.number(&c.Seq)
	case "client":
		return once(p, seen, 2) && p.text(&c.Client)
	case "mode":
		return once(p, seen, 3) && p.text(&c.Mode)
	case "at":
		return once(p, seen, 4) && p.integer(&c.At)
	case "note":
		return once(p, seen, 5) && p.text(&c.Note)
	case "fence":
		return once(p, seen, 6) && p.number(&c.Fence)
	case "token":
		return once(p, seen, 11) && p.number(&c.Token)
	case "kept":
		return once(p, seen, 7) && p.boolean(&c.Kept)
	case "evicted":
		return once(p, seen, 8) && p.boolean(&c.Evicted)
	case "for_ms":
		return once(p, seen, 9) && p.integer(&c.For)
	case "lease_ms":
		return once(p, seen, 10) && p.integer(&c.Lease)
	}
	return p.skip()
}

func (c *wireClaim) object(p *scanner) bool {
	for seen, first := uint64(0), true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !c.field(p, &seen, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (c *wireClaim) field(p *scanner, seen *uint64, key string) bool {
	switch key {
	case "instance":
		return once(p, seen, 0) && p.text(&c.Instance)
	case "seq":
		return once(p, seen, 1) && p.number(&c.Seq)
	case "client":
		return once(p, seen, 2) && p.text(&c.Client)
	case "beat":
		return once(p, seen, 3) && p.number(&c.Beat)
	}
	return p.skip()
}

// scanner reads JSON from s, starting at i. Its methods report whether they succeeded; if
// not, the scanner has the first error.
type scanner struct {
	s     string
	i     int
	depth int
	wrong string
}

func newScanner(body []byte) scanner {
	// The bytes do not change: see Decode.
	return scanner{s: unsafe.String(unsafe.SliceData(body), len(body))}
}

func (p *scanner) fail(why string) bool {
	if p.wrong == "" {
		p.wrong = why
	}
	return false
}

func (p *scanner) err() error {
	if p.i >= len(p.s) && p.wrong == notJSON {
		return malformed("the JSON ends too early")
	}
	return malformed("%s, at byte %d", p.wrong, p.i)
}

// whiteSpace is the white space of JSON.
const whiteSpace = " \n\r\t"

const notJSON = "it is not JSON"

func (p *scanner) space() {
	for p.i < len(p.s) && (p.s[p.i] == ' ' || p.s[p.i] == '\n' || p.s[p.i] == '\r' || p.s[p.i] == '\t') {
		p.i++
	}
}

// is consumes c and the white space around it, which our own messages do not have, and
// reports whether it found c.
func (p *scanner) is(c byte) bool {
	if i := p.i; i+1 < len(p.s) && p.s[i] == c && p.s[i+1] > ' ' {
		p.i = i + 1
		return true
	}
	return p.isSpaced(c)
}

func (p *scanner) isSpaced(c byte) bool {
	p.space()
	if p.i == len(p.s) || p.s[p.i] != c {
		return false
	}
	p.i++
	p.space()
	return true
}

// end reports whether nothing follows.
func (p *scanner) end() bool {
	p.space()
	return p.i == len(p.s) || p.fail("something follows the JSON")
}

// where is the position of a scanner in an object or a list.
type where uint8

const (
	lost   where = iota
	inside       // before the value of a member
	after        // after the object or the list
)

func (p *scanner) open() where {
	if p.depth++; p.depth > maxDepth {
		p.fail("it is nested too deep")
		return lost
	}
	return inside
}

func (p *scanner) close() where {
	p.depth--
	return after
}

// member advances to the first member of an object, or to the next one.
func (p *scanner) member(first bool) (key string, at where) {
	switch {
	case first && !p.is('{'):
		p.fail("it is not an object")
		return "", lost
	case first && p.open() == lost:
		return "", lost
	case p.is('}'):
		return "", p.close()
	case !first && !p.is(','):
		p.fail(notJSON)
		return "", lost
	case !p.text(&key):
		return "", lost
	case !p.is(':'):
		p.fail(notJSON)
		return "", lost
	}
	return key, inside
}

// element advances to the first element of a list, or to the next one.
func (p *scanner) element(first bool) where {
	switch {
	case first && !p.is('['):
		p.fail("it is not a list")
		return lost
	case first && p.open() == lost:
		return lost
	case p.is(']'):
		return p.close()
	case !first && !p.is(','):
		p.fail(notJSON)
		return lost
	}
	return inside
}

// text reads a string. The result is a part of s, unless the string has escapes.
func (p *scanner) text(to *string) bool {
	if p.i == len(p.s) || p.s[p.i] != '"' {
		return p.fail("it is not a string")
	}
	from, i := p.i+1, p.i+1
	for i < len(p.s) && !unusual[p.s[i]] {
		i++
	}
	if i < len(p.s) && p.s[i] == '"' {
		*to, p.i = p.s[from:i], i+1
		return true
	}
	return p.unusualText(to)
}

// unusual contains the bytes that end a string or need special treatment in it.
var unusual = func() (t [256]bool) {
	for c := range t {
		t[c] = c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf
	}
	return t
}()

// unusualText reads a string that may have escapes and characters beyond ASCII.
func (p *scanner) unusualText(to *string) bool {
	from := p.i + 1
	for i := from; i < len(p.s); i++ {
		switch c := p.s[i]; {
		case c == '"':
			if !utf8.ValidString(p.s[from:i]) {
				return p.fail("a string is not UTF-8")
			}
			*to, p.i = p.s[from:i], i+1
			return true
		case c < ' ':
			p.i = i
			return p.fail(notJSON)
		case c == '\\':
			return p.escaped(to)
		}
	}
	p.i = len(p.s)
	return p.fail(notJSON)
}

// escaped reads a string that has escapes.
func (p *scanner) escaped(to *string) bool {
	var b []byte
	for i := p.i + 1; i < len(p.s); {
		switch c := p.s[i]; {
		case c == '"':
			if !utf8.Valid(b) {
				return p.fail("a string is not UTF-8")
			}
			*to, p.i = string(b), i+1
			return true
		case c < ' ':
			p.i = i
			return p.fail(notJSON)
		case c != '\\':
			b = append(b, c)
			i++
		default:
			r, size := escape(p.s[i:])
			if p.i = i; size == 0 {
				return p.fail(notJSON)
			}
			if r < 0 {
				return p.fail("an escape is half of a character")
			}
			b = utf8.AppendRune(b, r)
			i += size
		}
	}
	p.i = len(p.s)
	return p.fail(notJSON)
}

// escape reads the escape at the beginning of s and returns its size in bytes, or 0 if
// there is no valid escape. r is negative for half of a surrogate pair, which UTF-8 cannot
// represent.
func escape(s string) (r rune, size int) {
	if len(s) < 2 {
		return 0, 0
	}
	if at := strings.IndexByte(`"\/bfnrt`, s[1]); at >= 0 {
		return rune("\"\\/\b\f\n\r\t"[at]), 2
	}
	hi, ok := hex4(s)
	if !ok {
		return 0, 0
	}
	if hi < 0xd800 || hi > 0xdfff {
		return hi, 6
	}
	lo, ok := hex4(s[6:])
	if !ok || hi > 0xdbff || lo < 0xdc00 || lo > 0xdfff {
		return -1, 6
	}
	return (hi-0xd800)<<10 + (lo - 0xdc00) + 0x10000, 12
}

// hex4 reads \uXXXX.
func hex4(s string) (r rune, ok bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	for i := 2; i < 6; i++ {
		v := hexValues[s[i]]
		if v > 0xf {
			return 0, false
		}
		r = r<<4 | rune(v)
	}
	return r, true
}

// number reads up to 18 digits. MaxInt has fewer, and 18 digits cannot overflow. It does
// not consume a fraction or an exponent, and nothing that may follow a number begins like
// one: so these are rejected.
func (p *scanner) number(to *uint64) bool {
	rest, n, v := p.s[p.i:], 0, uint64(0)
	for n < len(rest) && rest[n]-'0' <= 9 {
		v = 10*v + uint64(rest[n]-'0')
		n++
	}
	p.i += n
	if n == 0 || n > 18 || n > 1 && rest[0] == '0' {
		return p.fail("it is not a whole number within range")
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
	switch {
	case p.word("true"):
		*to = true
	case p.word("false"):
		*to = false
	default:
		return p.fail("it is neither true nor false")
	}
	return true
}

func (p *scanner) word(w string) bool {
	ok := strings.HasPrefix(p.s[p.i:], w)
	if ok {
		p.i += len(w)
	}
	return ok
}

// list reads a list. It calls one to read each element.
func list[T any](p *scanner, to *[]T, one func(*T) bool) bool {
	all := []T{}
	for first := true; ; first = false {
		switch p.element(first) {
		case inside:
			var x T
			if !one(&x) {
				return false
			}
			all = append(all, x)
		case after:
			*to = all
			return true
		default:
			return false
		}
	}
}

func (p *scanner) texts(to *[]string) bool { return list(p, to, p.text) }

func (p *scanner) records(to *[]wireRecord) bool {
	return list(p, to, func(r *wireRecord) bool { return r.object(p) })
}

func (p *scanner) ids(to *[]wireClaim) bool {
	return list(p, to, func(c *wireClaim) bool { return c.object(p) })
}

func (p *scanner) claims(to *[]wireClaimRecord) bool {
	return list(p, to, func(c *wireClaimRecord) bool { return c.object(p) })
}

func (p *scanner) runs(to *wireRuns) bool {
	all := wireRuns{}
	for first := true; ; first = false {
		switch p.element(first) {
		case inside:
			var r [2]uint64
			if !p.is('[') || !p.number(&r[0]) || !p.is(',') || !p.number(&r[1]) || !p.is(']') {
				return p.fail("a run is not a list of two numbers")
			}
			all = append(all, r)
		case after:
			*to = all
			return true
		default:
			return false
		}
	}
}

// skip reads a value of any kind. Unknown fields are ignored, but their values must be
// JSON.
func (p *scanner) skip() bool {
	if p.i == len(p.s) {
		return p.fail(notJSON)
	}
	var text string
	switch p.s[p.i] {
	case '"':
		return p.text(&text)
	case '{':
		for first := true; ; first = false {
			switch _, at := p.member(first); at {
			case inside:
				if !p.skip() {
					return false
				}
			case after:
				return true
			default:
				return false
			}
		}
	case '[':
		for first := true; ; first = false {
			switch p.element(first) {
			case inside:
				if !p.skip() {
					return false
				}
			case after:
				return true
			default:
				return false
			}
		}
	}
	return p.word("true") || p.word("false") || p.word("null") || p.float() || p.fail(notJSON)
}

// float reads any number.
func (p *scanner) float() bool {
	digits := func() int {
		from := p.i
		for p.i < len(p.s) && p.s[p.i]-'0' <= 9 {
			p.i++
		}
		return p.i - from
	}
	p.word("-")
	from := p.i
	if n := digits(); n == 0 || n > 1 && p.s[from] == '0' {
		return false
	}
	if p.word(".") && digits() == 0 {
		return false
	}
	if p.word("e") || p.word("E") {
		if !p.word("+") {
			p.word("-")
		}
		return digits() > 0
	}
	return true
}
