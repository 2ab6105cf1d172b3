package wire

import (
	"strconv"
	"strings"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

// PageBytes is the maximum size of a page, in bytes; a node sends smaller pages if its
// connection takes less. At this size a page costs a node little, and the messages of locks
// do not wait long behind one.
const PageBytes = 48 << 10

// PageSize returns an upper bound of how many bytes the record adds to a page.
func (r *Record) PageSize() int {
	n := 96 + subject.EncodedSize(r.Name)
	for i := range r.Claims {
		n += r.Claims[i].PageSize()
	}
	return n
}

// PageSize returns an upper bound of how many bytes the claim adds to a record.
func (c *ClaimRecord) PageSize() int {
	n := 288 + len(c.Client) + len(c.Note)
	for i := range len(c.Note) {
		switch b := c.Note[i]; {
		case b >= 0x80:
			n++ // upper bound: of three bytes, two have an escape of six bytes
		case b < ' ' || b == '"' || b == '\\' || b == '<' || b == '>' || b == '&':
			n += 5 // as \u00XX
		}
	}
	return n
}

// Shrink removes notes, and then claims, until the record takes at most most bytes of a
// page. It reports whether the record fits then.
func (r *Record) Shrink(most int) bool {
	if r.PageSize() <= most {
		return true
	}
	for i := range r.Claims {
		r.Claims[i].Note = ""
	}
	for len(r.Claims) > 0 && r.PageSize() > most {
		r.Claims = r.Claims[:len(r.Claims)-1]
	}
	return r.PageSize() <= most
}

type wireRecord struct {
	Name    string            `json:"name"`
	Votes   int64             `json:"votes"`
	Waiting int64             `json:"waiting"`
	Claims  []wireClaimRecord `json:"claims"`
}

type wireClaimRecord struct {
	Instance string `json:"instance"`
	Seq      uint64 `json:"seq"`
	Client   string `json:"client"`
	Mode     string `json:"mode"`
	At       int64  `json:"at"`
	Note     string `json:"note"`
	Fence    uint64 `json:"fence"`
	Token    uint64 `json:"token"`
	Kept     bool   `json:"kept"`
	Evicted  bool   `json:"evicted"`
	For      int64  `json:"for_ms"`
	Lease    int64  `json:"lease_ms"`
}

func appendPage(b []byte, p *Page) []byte {
	b = appendUint(b, "after", p.After)
	if p.Next > 0 {
		b = appendUint(b, "next", p.Next)
	}
	b = append(b, `,"locks":[`...)
	for i := range p.Locks {
		r := &p.Locks[i]
		if i > 0 {
			b = append(b, ',')
		}
		name, err := subject.EncodeName(r.Name)
		if err != nil { // no node has a claim on an invalid name
			name = "%"
		}
		b = append(append(append(b, `{"name":"`...), name...), '"')
		b = appendInt(b, "votes", int64(r.Votes))
		b = appendInt(b, "waiting", int64(r.Waiting))
		b = append(b, `,"claims":[`...)
		for k := range r.Claims {
			if k > 0 {
				b = append(b, ',')
			}
			b = appendClaimRecord(b, &r.Claims[k])
		}
		b = append(b, `]}`...)
	}
	return append(b, ']')
}

func appendClaimRecord(b []byte, c *ClaimRecord) []byte {
	b = appendID(append(b, '{'), c.Claim)
	b = appendStr(b, "client", c.Client)
	b = appendStr(b, "mode", c.Mode.String())
	b = appendInt(b, "at", c.At)
	if c.Note != "" {
		b = append(b, `,"note":`...)
		b = AppendQuoted(b, c.Note)
	}
	if c.Voted {
		b = appendUint(b, "fence", c.Fence)
	}
	if c.Token > 0 {
		b = appendUint(b, "token", c.Token)
	}
	if c.Kept {
		b = append(b, `,"kept":true`...)
	}
	if c.Evicted {
		b = append(b, `,"evicted":true`...)
	}
	b = appendInt(b, "for_ms", c.For.Milliseconds())
	b = append(b, `,"lease_ms":`...)
	b = strconv.AppendInt(b, c.Lease.Milliseconds(), 10)
	return append(b, '}')
}

func (d *decoder) page(w *wire) *Page {
	p := &Page{After: d.number("after", w.After), Next: d.number("next", w.Next)}
	for i := range w.Locks {
		r := &w.Locks[i]
		name, err := subject.DecodeName(r.Name)
		if err != nil {
			d.fail("%v", err)
		}
		rec := Record{Name: strings.Clone(name), Votes: d.count("votes", r.Votes), Waiting: d.count("waiting", r.Waiting)}
		for k := range r.Claims {
			rec.Claims = append(rec.Claims, d.claimRecord(&r.Claims[k]))
		}
		p.Locks = append(p.Locks, rec)
	}
	return p
}

func (d *decoder) claimRecord(c *wireClaimRecord) ClaimRecord {
	return ClaimRecord{
		Claim: ClaimID{Instance: d.uuid("claims.instance", c.Instance), Seq: d.positive("claims.seq", c.Seq)},
		// cloned because a page is large, and a claim of it may be kept
		Client: strings.Clone(d.token("claims.client", c.Client)),
		Mode:   d.mode(c.Mode),
		At:     d.micros("claims.at", c.At),
		Note:   strings.Clone(d.text("claims.note", c.Note, MaxNote)),
		Voted:  c.Fence > 0, Fence: d.number("claims.fence", c.Fence),
		Token: d.number("claims.token", c.Token),
		Kept:  c.Kept, Evicted: c.Evicted,
		For: d.millis("claims.for_ms", c.For), Lease: d.millis("claims.lease_ms", c.Lease),
	}
}

// pattern validates the pattern of a List request; an empty one means all names.
func (d *decoder) pattern(s string) string {
	if s != "" && !subject.IsPattern(s) {
		d.fail("%s is not a pattern of names", printable.Quote(s))
		return ""
	}
	return s
}
