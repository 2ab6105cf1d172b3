package wire

import "strconv"

// EventBody is the body of an event, by which a client informs observers about a lock.
type EventBody struct {
	Mode             string // "exclusive" or "shared"
	Token            uint64
	Votes, Nodes     int
	WaitedMS, HeldMS float64
	Note             string
	EvictedBy        string
}

// AppendEvent appends the body as encoding/json would write it, without empty fields. It is
// written by hand because each lock causes two events.
func AppendEvent(b []byte, e *EventBody) []byte {
	b = append(append(append(b, `{"mode":"`...), e.Mode...), `","token":`...)
	b = strconv.AppendUint(b, e.Token, 10)
	if e.Votes != 0 {
		b = appendInt(b, "votes", int64(e.Votes))
	}
	if e.Nodes != 0 {
		b = appendInt(b, "nodes", int64(e.Nodes))
	}
	b = strconv.AppendFloat(append(b, `,"waited_ms":`...), e.WaitedMS, 'f', -1, 64)
	if e.HeldMS != 0 {
		b = strconv.AppendFloat(append(b, `,"held_ms":`...), e.HeldMS, 'f', -1, 64)
	}
	if e.Note != "" {
		b = AppendQuoted(append(b, `,"note":`...), e.Note)
	}
	if e.EvictedBy != "" {
		b = AppendQuoted(append(b, `,"evicted_by":`...), e.EvictedBy)
	}
	return append(b, '}')
}

type wireEvent struct {
	Mode      string  `json:"mode"`
	Token     uint64  `json:"token"`
	Votes     int64   `json:"votes"`
	Nodes     int64   `json:"nodes"`
	Waited    float64 `json:"waited_ms"`
	Held      float64 `json:"held_ms"`
	Note      string  `json:"note"`
	EvictedBy string  `json:"evicted_by"`
}

// DecodeEvent decodes the body of an event, by the same rules as all other bodies. Its
// errors wrap ErrMalformed.
func DecodeEvent(body []byte) (EventBody, error) {
	if err := tooLong(len(body), MaxShort); err != nil {
		return EventBody{}, err
	}
	var w wireEvent
	p := newScanner(body)
	if !w.object(&p) || !p.end() {
		return EventBody{}, p.err()
	}
	d := decoder{}
	e := EventBody{
		Mode: d.mode(w.Mode).String(), Token: d.number("token", w.Token),
		Votes: d.count("votes", w.Votes), Nodes: d.count("nodes", w.Nodes), WaitedMS: w.Waited, HeldMS: w.Held,
		Note: d.text("note", w.Note, MaxNote), EvictedBy: d.optionalToken("evicted_by", w.EvictedBy),
	}
	return e, d.err
}

func (e *wireEvent) object(p *scanner) bool {
	for seen, first := uint64(0), true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !e.field(p, &seen, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (e *wireEvent) field(p *scanner, seen *uint64, key string) bool {
	switch key {
	case "mode":
		return once(p, seen, 0) && p.text(&e.Mode)
	case "token":
		return once(p, seen, 1) && p.number(&e.Token)
	case "votes":
		return once(p, seen, 2) && p.integer(&e.Votes)
	case "nodes":
		return once(p, seen, 3) && p.integer(&e.Nodes)
	case "waited_ms":
		return once(p, seen, 4) && p.fraction(&e.Waited)
	case "held_ms":
		return once(p, seen, 5) && p.fraction(&e.Held)
	case "note":
		return once(p, seen, 6) && p.text(&e.Note)
	case "evicted_by":
		return once(p, seen, 7) && p.text(&e.EvictedBy)
	}
	return p.skip()
}

// fraction reads a number that is not negative.
func (p *scanner) fraction(to *float64) bool {
	from := p.i
	if !p.float() {
		return p.fail("it is not a number")
	}
	v, err := strconv.ParseFloat(p.s[from:p.i], 64)
	if err != nil || v < 0 {
		return p.fail("a number is out of range")
	}
	*to = v
	return true
}
