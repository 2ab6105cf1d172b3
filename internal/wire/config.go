package wire

import (
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// What concerns the configuration of a cluster is in one object, config, which four messages
// have: the request config and its answer, and info, both ways. So the reader of all other
// messages does not have to know its fields.

// NodeConfig is what a node says in answer to info about the record that it has.
type NodeConfig struct {
	ID      uuid.UUID // of its state directory; the nil UUID: it has none
	Epoch   uint64    // of its record; 0: it has none
	Joining bool      // it has no configuration at all, and waits for a record that names it
	Had     time.Duration

	// The record and its history, its own link included, if its epoch is above the one that the
	// question had.
	Record *EpochRecord
	Links  []Link
}

// AppendEpochRecord appends r as JSON, as it is in messages. State directories have the same
// form.
func AppendEpochRecord(b []byte, r *EpochRecord) []byte {
	b = append(b, `{"cluster":"`...)
	b = append(b, r.Cluster...)
	b = append(b, `","cid":"`...)
	b = append(appendUUID(b, r.CID), '"')
	b = appendUint(b, "epoch", r.Epoch)
	b = appendStr(b, "prev", r.Prev)
	b = appendUint(b, "floor", r.Floor)
	b = appendMembers(b, "nodes", r.Nodes)
	b = appendInt(b, "max_ttl_ms", r.MaxTTL.Milliseconds())
	b = appendInt(b, "skew_ms", r.Skew.Milliseconds())
	if r.Joint() {
		b = appendMembers(b, "next", r.Next)
		b = appendInt(b, "next_max_ttl_ms", r.NextMaxTTL.Milliseconds())
		b = appendInt(b, "next_skew_ms", r.NextSkew.Milliseconds())
	}
	return append(b, '}')
}

// DecodeEpochRecord reads what AppendEpochRecord wrote. The record keeps nothing of body.
func DecodeEpochRecord(body []byte) (*EpochRecord, error) {
	if err := tooLong(len(body), MaxConfig); err != nil {
		return nil, err
	}
	var w wireEpoch
	p := newScanner(body)
	if !w.object(&p) || !p.end() {
		return nil, p.err()
	}
	d := decoder{}
	r := d.epochRecord(&w)
	if d.err != nil {
		return nil, d.err
	}
	return r, nil
}

func appendMembers(b []byte, key string, list []Member) []byte {
	b = append(append(append(b, `,"`...), key...), `":[`...)
	for i, m := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, `{"name":"`...), m.Name...)
		b = append(appendUUID(append(b, `","id":"`...), m.ID), `"}`...)
	}
	return append(b, ']')
}

func appendLinks(b []byte, links []Link) []byte {
	b = append(b, `,"links":[`...)
	for i, l := range links {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(append(b, `{"epoch":`...), l.Epoch, 10)
		b = append(appendStr(b, "digest", l.Digest), '}')
	}
	return append(b, ']')
}

func appendBallot(b []byte, key string, ballot Ballot) []byte {
	b = append(append(append(b, `,"`...), key...), `":{"n":`...)
	b = strconv.AppendUint(b, ballot.N, 10)
	return append(appendUUID(append(b, `,"run":"`...), ballot.Run), `"}`...)
}

func appendStep(b []byte, s *Step) []byte {
	b = append(append(append(b, `,"config":{"step":"`...), s.Kind...), '"')
	switch s.Kind {
	case Prepare:
		b = appendUint(b, "epoch", s.Epoch)
		b = appendStr(b, "prev", s.Prev)
		b = appendBallot(b, "ballot", s.Ballot)
	case Accept:
		b = appendBallot(b, "ballot", s.Ballot)
		b = AppendEpochRecord(append(b, `,"record":`...), s.Record)
	case Learn:
		b = AppendEpochRecord(append(b, `,"record":`...), s.Record)
		b = appendLinks(b, s.Links)
	}
	return append(b, '}')
}

func appendStepAnswer(b []byte, a *StepAnswer) []byte {
	b = append(append(append(b, `,"config":{"step":"`...), a.Kind...), '"')
	if a.ID != uuid.Nil {
		b = append(appendUUID(append(b, `,"id":"`...), a.ID), '"')
	}
	b = appendUint(b, "epoch", a.Epoch)
	if a.Kind != Learn {
		b = appendBallot(b, "ballot", a.Ballot)
	}
	if a.Why != WhyNone {
		b = appendStr(b, "why", string(a.Why))
	}
	if a.Left > 0 {
		b = appendInt(b, "left_ms", ceilMS(a.Left))
	}
	if a.Record != nil {
		b = appendBallot(b, "accepted", a.Accepted)
		b = AppendEpochRecord(append(b, `,"record":`...), a.Record)
	}
	if a.Floor > 0 {
		b = appendUint(b, "floor", a.Floor)
	}
	return append(b, '}')
}

func appendNodeConfig(b []byte, c *NodeConfig) []byte {
	b = strconv.AppendUint(append(b, `,"config":{"epoch":`...), c.Epoch, 10)
	if c.ID != uuid.Nil {
		b = append(appendUUID(append(b, `,"id":"`...), c.ID), '"')
	}
	if c.Joining {
		b = append(b, `,"joining":true`...)
	}
	if c.Had > 0 {
		b = appendInt(b, "had_ms", c.Had.Milliseconds())
	}
	if c.Record != nil {
		b = AppendEpochRecord(append(b, `,"record":`...), c.Record)
		b = appendLinks(b, c.Links)
	}
	return append(b, '}')
}

// wireConfig is the union of all objects named config.
type wireConfig struct {
	Step     string      `json:"step"`
	Epoch    uint64      `json:"epoch"`
	Prev     string      `json:"prev"`
	Ballot   *wireBallot `json:"ballot"`
	Record   *wireEpoch  `json:"record"`
	Links    []wireLink  `json:"links"`
	ID       string      `json:"id"`
	Why      string      `json:"why"`
	Left     int64       `json:"left_ms"`
	Accepted *wireBallot `json:"accepted"`
	Floor    uint64      `json:"floor"`
	Joining  bool        `json:"joining"`
	Had      int64       `json:"had_ms"`
}

type wireBallot struct {
	N   uint64 `json:"n"`
	Run string `json:"run"`
}

type wireLink struct {
	Epoch  uint64 `json:"epoch"`
	Digest string `json:"digest"`
}

type wireMember struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

type wireEpoch struct {
	Cluster    string       `json:"cluster"`
	CID        string       `json:"cid"`
	Epoch      uint64       `json:"epoch"`
	Prev       string       `json:"prev"`
	Floor      uint64       `json:"floor"`
	Nodes      []wireMember `json:"nodes"`
	MaxTTL     int64        `json:"max_ttl_ms"`
	Skew       int64        `json:"skew_ms"`
	Next       []wireMember `json:"next"`
	NextMaxTTL int64        `json:"next_max_ttl_ms"`
	NextSkew   int64        `json:"next_skew_ms"`
}

// object reads an object with a function that reads the value of a field.
func (p *scanner) object(field func(seen *uint64, key string) bool) bool {
	for seen, first := uint64(0), true; ; first = false {
		switch key, at := p.member(first); at {
		case inside:
			if !field(&seen, key) {
				return false
			}
		case after:
			return true
		default:
			return false
		}
	}
}

func (c *wireConfig) object(p *scanner) bool {
	return p.object(func(seen *uint64, key string) bool {
		switch key {
		case "step":
			return once(p, seen, 0) && p.text(&c.Step)
		case "epoch":
			return once(p, seen, 1) && p.number(&c.Epoch)
		case "prev":
			return once(p, seen, 2) && p.text(&c.Prev)
		case "ballot":
			c.Ballot = new(wireBallot)
			return once(p, seen, 3) && c.Ballot.object(p)
		case "record":
			c.Record = new(wireEpoch)
			return once(p, seen, 4) && c.Record.object(p)
		case "links":
			return once(p, seen, 5) && list(p, &c.Links, func(l *wireLink) bool { return l.object(p) })
		case "id":
			return once(p, seen, 6) && p.text(&c.ID)
		case "why":
			return once(p, seen, 7) && p.text(&c.Why)
		case "left_ms":
			return once(p, seen, 8) && p.integer(&c.Left)
		case "accepted":
			c.Accepted = new(wireBallot)
			return once(p, seen, 9) && c.Accepted.object(p)
		case "floor":
			return once(p, seen, 10) && p.number(&c.Floor)
		case "joining":
			return once(p, seen, 11) && p.boolean(&c.Joining)
		case "had_ms":
			return once(p, seen, 12) && p.integer(&c.Had)
		}
		return p.skip()
	})
}

func (b *wireBallot) object(p *scanner) bool {
	return p.object(func(seen *uint64, key string) bool {
		switch key {
		case "n":
			return once(p, seen, 0) && p.number(&b.N)
		case "run":
			return once(p, seen, 1) && p.text(&b.Run)
		}
		return p.skip()
	})
}

func (l *wireLink) object(p *scanner) bool {
	return p.object(func(seen *uint64, key string) bool {
		switch key {
		case "epoch":
			return once(p, seen, 0) && p.number(&l.Epoch)
		case "digest":
			return once(p, seen, 1) && p.text(&l.Digest)
		}
		return p.skip()
	})
}

func (m *wireMember) object(p *scanner) bool {
	return p.object(func(seen *uint64, key string) bool {
		switch key {
		case "name":
			return once(p, seen, 0) && p.text(&m.Name)
		case "id":
			return once(p, seen, 1) && p.text(&m.ID)
		}
		return p.skip()
	})
}

func (r *wireEpoch) object(p *scanner) bool {
	members := func(to *[]wireMember) bool { return list(p, to, func(m *wireMember) bool { return m.object(p) }) }
	return p.object(func(seen *uint64, key string) bool {
		switch key {
		case "cluster":
			return once(p, seen, 0) && p.text(&r.Cluster)
		case "cid":
			return once(p, seen, 1) && p.text(&r.CID)
		case "epoch":
			return once(p, seen, 2) && p.number(&r.Epoch)
		case "prev":
			return once(p, seen, 3) && p.text(&r.Prev)
		case "floor":
			return once(p, seen, 4) && p.number(&r.Floor)
		case "nodes":
			return once(p, seen, 5) && members(&r.Nodes)
		case "max_ttl_ms":
			return once(p, seen, 6) && p.integer(&r.MaxTTL)
		case "skew_ms":
			return once(p, seen, 7) && p.integer(&r.Skew)
		case "next":
			return once(p, seen, 8) && members(&r.Next)
		case "next_max_ttl_ms":
			return once(p, seen, 9) && p.integer(&r.NextMaxTTL)
		case "next_skew_ms":
			return once(p, seen, 10) && p.integer(&r.NextSkew)
		}
		return p.skip()
	})
}

// config returns the object of a message that must have one.
func (d *decoder) config(w *wire) *wireConfig {
	if w.Config == nil {
		d.fail("config is missing")
		return new(wireConfig)
	}
	return w.Config
}

func (d *decoder) step(w *wire) *Step {
	c := d.config(w)
	s := &Step{Kind: StepKind(c.Step), Node: strings.Clone(d.optionalToken("node", w.Node))}
	switch s.Kind {
	case Prepare:
		s.Epoch, s.Prev = d.positive("config.epoch", c.Epoch), d.digest("config.prev", c.Prev)
		s.Ballot = d.ballot("config.ballot", c.Ballot)
	case Accept:
		s.Ballot = d.ballot("config.ballot", c.Ballot)
		s.Record = d.epochRecord(c.Record)
	case Learn:
		s.Record = d.epochRecord(c.Record)
		s.Links = d.links(c.Links)
	default:
		d.fail("unknown step %.20q", c.Step)
	}
	if s.Record != nil {
		s.Epoch = s.Record.Epoch
	}
	return s
}

func (d *decoder) stepAnswer(w *wire) *StepAnswer {
	c := d.config(w)
	a := &StepAnswer{
		Kind: StepKind(c.Step), ID: d.optionalUUID("config.id", c.ID), Epoch: d.number("config.epoch", c.Epoch),
		Why: Why(strings.Clone(d.optionalToken("config.why", c.Why))), Left: d.millis("config.left_ms", c.Left),
		Floor: d.number("config.floor", c.Floor),
	}
	switch a.Kind {
	case Prepare, Accept:
		a.Ballot = d.ballot("config.ballot", c.Ballot)
	case Learn:
	default:
		d.fail("unknown step %.20q", c.Step)
	}
	if c.Accepted != nil || c.Record != nil {
		a.Accepted, a.Record = d.ballot("config.accepted", c.Accepted), d.epochRecord(c.Record)
	}
	return a
}

func (d *decoder) nodeConfig(c *wireConfig) *NodeConfig {
	n := &NodeConfig{
		ID: d.optionalUUID("config.id", c.ID), Epoch: d.number("config.epoch", c.Epoch),
		Joining: c.Joining, Had: d.millis("config.had_ms", c.Had),
	}
	if c.Record != nil {
		n.Record, n.Links = d.epochRecord(c.Record), d.links(c.Links)
		if n.Record != nil && n.Record.Epoch != n.Epoch {
			d.fail("config.epoch is %d, and the record has %d", n.Epoch, n.Record.Epoch)
		}
	}
	return n
}

func (d *decoder) optionalUUID(key, s string) uuid.UUID {
	if s == "" {
		return uuid.Nil
	}
	return d.uuid(key, s)
}

func (d *decoder) digest(key, s string) string {
	if !isDigest(s) {
		d.fail("%s is not %d lower-case hexadecimal digits", key, digestLen)
	}
	return strings.Clone(s) // outlives the message
}

func (d *decoder) ballot(key string, b *wireBallot) Ballot {
	if b == nil {
		d.fail("%s is missing", key)
		return Ballot{}
	}
	return Ballot{N: d.positive(key+".n", b.N), Run: d.uuid(key+".run", b.Run)}
}

// links validates a history: at most MaxLinks decided records, the latest last.
func (d *decoder) links(in []wireLink) []Link {
	if len(in) == 0 || len(in) > MaxLinks {
		d.fail("links has %d entries, allowed are 1 to %d", len(in), MaxLinks)
		return nil
	}
	out := make([]Link, len(in))
	for i, l := range in {
		out[i] = Link{Epoch: d.number("links.epoch", l.Epoch), Digest: d.digest("links.digest", l.Digest)}
		if i > 0 && in[i-1].Epoch >= l.Epoch {
			d.fail("links is not sorted by epoch")
		}
	}
	return out
}

// epochRecord returns a record that Check accepts, or nil.
func (d *decoder) epochRecord(w *wireEpoch) *EpochRecord {
	if w == nil {
		d.fail("config.record is missing")
		return nil
	}
	r := &EpochRecord{
		Cluster: strings.Clone(w.Cluster), CID: d.uuid("record.cid", w.CID), Epoch: w.Epoch, Prev: strings.Clone(w.Prev), Floor: w.Floor,
		Nodes: d.members("record.nodes", w.Nodes), MaxTTL: d.millis("record.max_ttl_ms", w.MaxTTL), Skew: d.millis("record.skew_ms", w.Skew),
		Next: d.members("record.next", w.Next), NextMaxTTL: d.millis("record.next_max_ttl_ms", w.NextMaxTTL), NextSkew: d.millis("record.next_skew_ms", w.NextSkew),
	}
	if d.err != nil {
		return nil
	}
	if err := r.Check(); err != nil {
		d.fail("record: %w", err)
		return nil
	}
	return r
}

func (d *decoder) members(key string, in []wireMember) []Member {
	if len(in) == 0 {
		return nil
	}
	if len(in) > MaxNodes {
		d.fail("%s has %d nodes, at most %d are allowed", key, len(in), MaxNodes)
		return nil
	}
	out := make([]Member, len(in))
	for i, m := range in {
		out[i] = Member{strings.Clone(m.Name), d.uuid(key+".id", m.ID)}
	}
	return out
}
