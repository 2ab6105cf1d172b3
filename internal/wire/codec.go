package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
)

// The encoders are written by hand because they run at least once for each lock and node:
// they append to a buffer of the caller and do not allocate. The decoders read with scan
// and then check every field, because anyone may have sent the message.

// AppendRequest appends the body of r. The body does not contain the verb, the client and
// the resource, which are in the subject.
func AppendRequest(b []byte, r *Request) []byte {
	b = append(b, '{')
	switch r.Verb {
	case Acquire:
		b = appendClaim(b, r.Claim, r.SentAt)
		b = appendStr(b, "mode", r.Mode.String())
		b = appendInt(b, "at", r.At)
		b = appendInt(b, "ttl_ms", r.TTL.Milliseconds())
		b = appendStr(b, "digest", r.Digest)
		if r.MinFence > 0 {
			b = appendUint(b, "want", r.MinFence)
		}
		if r.Token > 0 {
			b = appendUint(b, "token", r.Token)
		}
		if r.Held {
			b = append(b, `,"held":true`...)
		}
		if r.Try {
			b = append(b, `,"try":true`...)
		}
		if r.SuppressQueued {
			b = append(b, `,"quiet":true`...)
		}
		if r.Check {
			b = append(b, `,"check":true`...)
		}
		if r.Keep {
			b = append(b, `,"keep":true`...)
			b = appendUint(b, "span", r.RangeSize)
		}
		if r.Note != "" {
			b = append(b, `,"note":`...)
			b = AppendQuoted(b, r.Note)
		}
		if r.Node != "" {
			b = appendStr(b, "node", r.Node)
		}
	case Release:
		b = appendID(b, r.Claim)
		b = appendInt(b, "now", r.Now)
	case Yield:
		b = appendClaim(b, r.Claim, r.SentAt)
		b = appendStr(b, "node", r.Node)
	case Refresh:
		b = append(b, `"instance":"`...)
		b = appendUUID(b, r.Claim.Instance)
		b = append(b, '"')
		b = appendUint(b, "beat", r.SentAt)
		b = appendUint(b, "lo", r.Lo)
		b = appendUint(b, "hi", r.Hi)
		b = appendRuns(b, "live", r.Live)
	case Info:
		b = append(b, `"nonce":`...)
		b = AppendQuoted(b, r.Nonce)
		if r.Node != "" {
			b = appendStr(b, "node", r.Node)
			b = append(b, `,"incarnation":"`...)
			b = appendUUID(b, r.Incarnation)
			b = append(b, '"')
			b = appendInt(b, "started", r.Started)
			b = append(b, `,"voted":`...)
			b = strconv.AppendBool(b, r.Voted)
			if r.Stopped {
				b = append(b, `,"stopped":true`...)
			}
		}
		if len(r.Over)+len(r.Recalled) > 0 {
			b = appendStr(b, "digest", r.Digest)
		}
		if len(r.Over) > 0 {
			b = appendOver(b, "over", r.Over)
		}
		if len(r.Recalled) > 0 {
			b = appendOver(b, "recalled", r.Recalled)
		}
		if r.ShowConfig {
			b = append(strconv.AppendUint(append(b, `,"config":{"epoch":`...), r.Epoch, 10), '}')
		}
	case List, Inspect:
		b = append(b, `"nonce":`...)
		b = AppendQuoted(b, r.Nonce)
		if r.Query != "" {
			b = append(b, `,"pattern":`...)
			b = AppendQuoted(b, r.Query)
		}
		if r.After > 0 {
			b = appendUint(b, "after", r.After)
		}
		if r.Node != "" {
			b = appendStr(b, "node", r.Node)
		}
	case Evict:
		b = append(b, `"nonce":`...)
		b = AppendQuoted(b, r.Nonce)
		b = appendStr(b, "holder", r.Holder)
		b = append(b, ',')
		b = appendID(b, r.Claim)
		if r.Query != "" {
			b = append(b, `,"text":`...)
			b = AppendQuoted(b, r.Query)
		}
	case Configure:
		b = append(b, `"nonce":`...)
		b = AppendQuoted(b, r.Nonce)
		if r.Step.Node != "" {
			b = appendStr(b, "node", r.Step.Node)
		}
		b = appendStep(b, r.Step)
	}
	return append(b, '}')
}

// AppendAnswer appends the body of a.
func AppendAnswer(b []byte, a *Answer) []byte {
	b = append(b, `{"answer":"`...)
	b = append(b, a.Kind...)
	b = append(b, '"')
	b = appendStr(b, "node", a.Node)
	b = append(b, `,"incarnation":"`...)
	b = appendUUID(b, a.Incarnation)
	b = append(b, '"')
	b = appendStr(b, "digest", a.Digest)
	if a.Client != "" {
		b = appendStr(b, "client", a.Client)
	}
	switch a.Kind {
	case Granted, Queued, Refused, Recall, Evicted:
		b = append(b, ',')
		b = appendClaim(b, a.Claim, a.SentAt)
	case Refreshed:
		b = append(b, `,"instance":"`...)
		b = appendUUID(b, a.Claim.Instance)
		b = append(b, '"')
		b = appendUint(b, "beat", a.SentAt)
		b = appendUint(b, "lo", a.Lo)
		b = appendUint(b, "hi", a.Hi)
		b = appendRuns(b, "waiting", a.Waiting)
		b = appendRuns(b, "unknown", a.Unknown)
		b = appendContinues(b, a.Continues)
	}
	switch a.Kind {
	case Granted:
		b = appendUint(b, "fence", a.Fence)
		if a.RangeSize > 1 {
			b = appendUint(b, "span", a.RangeSize)
		}
		if a.Most > 0 {
			b = appendUint(b, "most", a.Most)
		}
		if a.Behind {
			b = append(b, `,"behind":true`...)
		}
		if a.Late {
			b = append(b, `,"late":true`...)
		}
		b = appendContinues(b, a.Continues)
	case Recall:
		if a.Behind {
			b = append(b, `,"behind":true`...)
		}
		if a.For != "" {
			b = appendStr(b, "for", a.For)
		}
	case Queued:
		b = appendInt(b, "place", int64(a.Place))
		if a.Again > 0 {
			b = appendInt(b, "again", int64(a.Again))
		}
		if a.Recovering > 0 {
			b = appendInt(b, "recovering_ms", ceilMS(a.Recovering))
		}
		if bl := a.Blocker; bl != nil {
			b = append(b, `,"blocker":{`...)
			b = appendID(b, bl.Claim)
			b = appendStr(b, "client", bl.Client)
			b = appendStr(b, "mode", bl.Mode.String())
			b = append(b, `,"voted":`...)
			b = strconv.AppendBool(b, bl.Voted)
			b = append(b, `,"ahead":`...)
			b = strconv.AppendBool(b, bl.Ahead)
			b = appendInt(b, "for_ms", bl.For.Milliseconds())
			b = append(b, '}')
		}
	case Refused:
		b = appendStr(b, "reason", string(a.Reason))
		b = append(b, `,"text":`...)
		b = AppendQuoted(b, a.Text)
		b = append(b, `,"passes":`...)
		b = strconv.AppendBool(b, a.Retryable)
	case Informed:
		i := a.Info
		b = append(b, `,"nonce":`...)
		b = AppendQuoted(b, i.Nonce)
		b = append(b, `,"nodes":[`...)
		for k, n := range i.Nodes {
			if k > 0 {
				b = append(b, ',')
			}
			b = append(b, '"')
			b = append(b, n...)
			b = append(b, '"')
		}
		b = append(b, ']')
		b = appendInt(b, "max_ttl_ms", i.MaxTTL.Milliseconds())
		b = appendInt(b, "skew_ms", i.Skew.Milliseconds())
		b = appendStr(b, "state", string(i.State))
		if a.Recovering > 0 {
			b = appendInt(b, "recovering_ms", ceilMS(a.Recovering))
		}
		b = appendInt(b, "started", i.Started)
		b = appendInt(b, "now", i.Now)
		b = append(b, `,"voted":`...)
		b = strconv.AppendBool(b, i.Voted)
		if i.Longest > 0 {
			b = appendInt(b, "longest_ms", i.Longest.Milliseconds())
		}
		b = appendInt(b, "claims", int64(i.Claims))
		if i.Ahead > 0 {
			b = appendInt(b, "ahead_ms", ceilMS(i.Ahead))
		}
		b = append(b, `,"version":`...)
		b = AppendQuoted(b, i.Version)
		if i.Config != nil {
			b = appendNodeConfig(b, i.Config)
		}
	case Evicted:
		b = appendStr(b, "by", a.By)
		b = append(b, `,"text":`...)
		b = AppendQuoted(b, a.Text)
	case Evicting:
		b = append(b, `,"nonce":`...)
		b = AppendQuoted(b, a.Nonce)
		b = append(b, `,"known":`...)
		b = strconv.AppendBool(b, a.Known)
		if a.Recovering > 0 {
			b = appendInt(b, "recovering_ms", ceilMS(a.Recovering))
		}
	case Listed:
		b = append(b, `,"nonce":`...)
		b = AppendQuoted(b, a.Nonce)
		if a.Recovering > 0 {
			b = appendInt(b, "recovering_ms", ceilMS(a.Recovering))
		}
		b = appendPage(b, a.List)
	case Over:
		b = appendOver(b, "over", a.Over)
		if len(a.Yielded) > 0 {
			b = appendYielded(b, a.Yielded)
		}
	case Configured:
		b = append(b, `,"nonce":`...)
		b = AppendQuoted(b, a.Nonce)
		b = appendStepAnswer(b, a.Step)
	}
	return append(b, '}')
}

func appendOver(b []byte, key string, over []ClaimOf) []byte {
	b = append(append(append(b, `,"`...), key...), `":[`...)
	for i, c := range over {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendClaimOf(b, c), '}')
	}
	return append(b, ']')
}

func appendYielded(b []byte, yielded []YieldOf) []byte {
	b = append(b, `,"yielded":[`...)
	for i, y := range yielded {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendUint(appendClaimOf(b, y.ClaimOf), "beat", y.SentAt), '}')
	}
	return append(b, ']')
}

func appendClaimOf(b []byte, c ClaimOf) []byte {
	return appendStr(appendID(append(b, '{'), c.Claim), "client", c.Client)
}

func ceilMS(d time.Duration) int64 { return int64((d + time.Millisecond - 1) / time.Millisecond) }

func appendClaim(b []byte, id ClaimID, sentAt uint64) []byte {
	return appendUint(appendID(b, id), "beat", sentAt)
}

func appendID(b []byte, id ClaimID) []byte {
	b = append(b, `"instance":"`...)
	b = appendUUID(b, id.Instance)
	b = append(b, `","seq":`...)
	return strconv.AppendUint(b, id.Seq, 10)
}

// appendStr appends a value that needs no escaping: a validated name or a constant.
func appendStr(b []byte, key, value string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, `":"`...)
	b = append(b, value...)
	return append(b, '"')
}

func appendInt(b []byte, key string, v int64) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, v, 10)
}

func appendUint(b []byte, key string, v uint64) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendUint(b, v, 10)
}

func appendRuns(b []byte, key string, runs Runs) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, `":[`...)
	for i, r := range runs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = strconv.AppendUint(b, r.Lo, 10)
		b = append(b, ',')
		b = strconv.AppendUint(b, r.Hi, 10)
		b = append(b, ']')
	}
	return append(b, ']')
}

func appendUUID(b []byte, id uuid.UUID) []byte {
	var text [36]byte
	const digits = "0123456789abcdef"
	at := 0
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		text[at], text[at+1] = digits[c>>4], digits[c&15]
		at += 2
	}
	return append(b, text[:]...)
}

// AppendQuoted appends s in the form that encoding/json writes. It is for values that may
// need escaping but usually do not.
func AppendQuoted(b []byte, s string) []byte {
	plain := true
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&':
			plain = false
		}
	}
	if plain {
		return append(append(append(b, '"'), s...), '"')
	}
	q, err := json.Marshal(s)
	if err != nil { // cannot happen: a string always marshals
		return append(b, `""`...)
	}
	return append(b, q...)
}

// wire is the union of all bodies: a field has the same type in every message that has it.
// Unknown fields are ignored, so that later versions can add some. The tags are for the
// tests, which refer to the fields by them.
type wire struct {
	Answer      string       `json:"answer"`
	Verb        string       `json:"verb"` // this and Name only in a batch
	Name        string       `json:"name"`
	Instance    string       `json:"instance"`
	Seq         uint64       `json:"seq"`
	Beat        uint64       `json:"beat"`
	Mode        string       `json:"mode"`
	At          int64        `json:"at"`
	TTL         int64        `json:"ttl_ms"`
	Want        uint64       `json:"want"`
	Token       uint64       `json:"token"`
	Held        bool         `json:"held"`
	Try         bool         `json:"try"`
	Quiet       bool         `json:"quiet"`
	Check       bool         `json:"check"`
	Keep        bool         `json:"keep"`
	Span        uint64       `json:"span"`
	Behind      bool         `json:"behind"`
	Late        bool         `json:"late"`
	Continues   []string     `json:"continues"`
	Digest      string       `json:"digest"`
	Client      string       `json:"client"`
	Node        string       `json:"node"`
	Now         int64        `json:"now"`
	Lo          uint64       `json:"lo"`
	Hi          uint64       `json:"hi"`
	Live        wireRuns     `json:"live"`
	Waiting     wireRuns     `json:"waiting"`
	Unknown     wireRuns     `json:"unknown"`
	Nonce       string       `json:"nonce"`
	Incarnation string       `json:"incarnation"`
	Started     int64        `json:"started"`
	Voted       bool         `json:"voted"`
	Stopped     bool         `json:"stopped"`
	Fence       uint64       `json:"fence"`
	Most        uint64       `json:"most"`
	Ahead       int64        `json:"ahead_ms"`
	Place       int64        `json:"place"`
	Again       int64        `json:"again"`
	Recovering  int64        `json:"recovering_ms"`
	Blocker     *wireBlocker `json:"blocker"`
	Reason      string       `json:"reason"`
	Text        string       `json:"text"`
	Passes      bool         `json:"passes"`
	Nodes       []string     `json:"nodes"`
	MaxTTL      int64        `json:"max_ttl_ms"`
	Skew        int64        `json:"skew_ms"`
	State       string       `json:"state"`
	Longest     int64        `json:"longest_ms"`
	Claims      int64        `json:"claims"`
	Version     string       `json:"version"`
	Note        string       `json:"note"`
	Pattern     string       `json:"pattern"`
	After       uint64       `json:"after"`
	Next        uint64       `json:"next"`
	Holder      string       `json:"holder"`
	By          string       `json:"by"`
	Known       bool         `json:"known"`
	Locks       []wireRecord `json:"locks"`
	Over        []wireClaim  `json:"over"`
	Recalled    []wireClaim  `json:"recalled"`
	Yielded     []wireClaim  `json:"yielded"`
	For         string       `json:"for"`
	Config      *wireConfig  `json:"config"`

	seen uint64 // a bit for each field that was read
}

type wireClaim struct {
	Instance string `json:"instance"`
	Seq      uint64 `json:"seq"`
	Client   string `json:"client"`
	Beat     uint64 `json:"beat"` // in yielded
}

type wireBlocker struct {
	Instance string `json:"instance"`
	Seq      uint64 `json:"seq"`
	Client   string `json:"client"`
	Mode     string `json:"mode"`
	Voted    bool   `json:"voted"`
	Ahead    bool   `json:"ahead"`
	For      int64  `json:"for_ms"`
}

type wireRuns [][2]uint64

// ErrMalformed is wrapped by every decoding error.
var ErrMalformed = errors.New("malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

func tooLong(bytes, most int) error {
	if bytes > most {
		return malformed("%d bytes, at most %d are allowed", bytes, most)
	}
	return nil
}

func (w *wire) parse(body []byte, most int) error {
	if err := tooLong(len(body), most); err != nil {
		return err
	}
	return w.scan(body)
}

// DecodeRequest decodes the body of a request. The verb, client and resource come from the
// subject, and the caller must have validated them. In the result every number is within
// MaxInt, and every list is sorted, within its limit and without overlaps. Its errors wrap
// ErrMalformed.
func DecodeRequest(verb Verb, client, resource string, body []byte) (*Request, error) {
	r := new(Request)
	if err := r.Decode(verb, client, resource, body); err != nil {
		return nil, err
	}
	return r, nil
}

// Decode does what DecodeRequest does, and replaces all of r. The strings of r are parts of
// body, which must not be changed afterwards; nobody else uses what NATS delivers. After an
// error the content of r is undefined.
func (r *Request) Decode(verb Verb, client, resource string, body []byte) error {
	most := MaxShort
	switch verb {
	case Refresh:
		most = MaxBody
	case Configure:
		most = MaxConfig
	}
	w := new(wire)
	if err := w.parse(body, most); err != nil {
		return err
	}
	return r.fill(w, verb, client, resource)
}

func (r *Request) fill(w *wire, verb Verb, client, resource string) error {
	*r = Request{Verb: verb, Client: client, Resource: resource}
	d := decoder{}
	switch verb {
	case Acquire:
		r.Claim, r.SentAt = d.claim(w), d.positive("beat", w.Beat)
		r.Mode = d.mode(w.Mode)
		r.At = d.micros("at", w.At)
		r.TTL = d.lease("ttl_ms", w.TTL)
		r.MinFence, r.Token = d.number("want", w.Want), d.number("token", w.Token)
		r.Held, r.Try, r.SuppressQueued, r.Check = w.Held, w.Try, w.Quiet, w.Check
		if r.Keep = w.Keep; r.Keep {
			r.RangeSize = d.span(w.Span)
		}
		r.Digest = d.optionalToken("digest", w.Digest)
		r.Note = d.text("note", w.Note, MaxNote)
		r.Node = d.optionalToken("node", w.Node)
	case Release:
		r.Claim = d.claim(w)
		r.Now = d.micros("now", w.Now)
	case Yield:
		r.Claim, r.SentAt = d.claim(w), d.positive("beat", w.Beat)
		r.Node = d.token("node", w.Node)
	case Refresh:
		r.Claim.Instance = d.uuid("instance", w.Instance)
		r.SentAt = d.positive("beat", w.Beat)
		r.Lo, r.Hi = d.positive("lo", w.Lo), d.number("hi", w.Hi)
		r.Live = d.runs("live", w.Live, w.Lo, w.Hi)
	case Info:
		r.Nonce = d.text("nonce", w.Nonce, MaxText)
		if r.Node = d.optionalToken("node", w.Node); r.Node != "" {
			r.Incarnation = d.uuid("incarnation", w.Incarnation)
			r.Started = d.micros("started", w.Started)
			r.Voted, r.Stopped = w.Voted, w.Stopped
		}
		r.Over, r.Recalled = d.over("over", w.Over), d.over("recalled", w.Recalled)
		if most := len(r.Over) + len(r.Recalled); most > MaxOver {
			d.fail("over and recalled have %d claims, at most %d are allowed", most, MaxOver)
		} else if most > 0 {
			r.Digest = d.optionalToken("digest", w.Digest)
		}
		if c := w.Config; c != nil {
			r.ShowConfig, r.Epoch = true, d.number("config.epoch", c.Epoch)
		}
	case List, Inspect:
		r.Nonce = d.text("nonce", w.Nonce, MaxText)
		r.After = d.number("after", w.After)
		r.Node = d.optionalToken("node", w.Node)
		if verb == List {
			r.Query = d.pattern(w.Pattern)
		}
	case Evict:
		r.Nonce = d.text("nonce", w.Nonce, MaxText)
		r.Holder, r.Claim = d.token("holder", w.Holder), d.claim(w)
		// it outlives the message
		r.Query = strings.Clone(d.text("text", w.Text, MaxText))
	case Configure:
		r.Nonce, r.Step = d.text("nonce", w.Nonce, MaxText), d.step(w)
	default:
		return malformed("unknown verb %.20q", verb)
	}
	return d.err
}

// DecodeAnswer decodes a node's answer, with the same guarantees as DecodeRequest.
func DecodeAnswer(body []byte) (*Answer, error) {
	a := new(Answer)
	if err := a.Decode(body); err != nil {
		return nil, err
	}
	return a, nil
}

// Decode does what DecodeAnswer does, and replaces all of a. The strings of a are parts of
// body, as for Request.Decode. After an error the content of a is undefined.
func (a *Answer) Decode(body []byte) error {
	w := new(wire)
	if err := w.parse(body, MaxBody); err != nil {
		return err
	}
	return a.fill(w)
}

func (a *Answer) fill(w *wire) error {
	d := decoder{}
	*a = Answer{
		Kind:        Kind(w.Answer),
		Node:        d.token("node", w.Node),
		Incarnation: d.uuid("incarnation", w.Incarnation),
		Digest:      d.optionalToken("digest", w.Digest),
		Client:      d.optionalToken("client", w.Client),
	}
	switch a.Kind {
	case Granted, Queued, Refused, Recall, Evicted:
		a.Claim, a.SentAt = d.claim(w), d.positive("beat", w.Beat)
	}
	switch a.Kind {
	case Granted:
		a.Fence, a.Behind, a.Late = d.positive("fence", w.Fence), w.Behind, w.Late
		a.Continues = d.uuids("continues", w.Continues)
		if a.RangeSize = d.span(w.Span); a.RangeSize == 1 {
			a.RangeSize = 0 // 0 and 1 mean the same: keep one form
		}
		d.number("fence and span", a.Fence+a.RangeSize)
		a.Most = d.number("most", w.Most)
	case Queued:
		a.Place = d.count("place", w.Place)
		a.Again = d.count("again", w.Again)
		a.Recovering = d.millis("recovering_ms", w.Recovering)
		if b := w.Blocker; b != nil {
			a.Blocker = &Blocker{
				Claim:  ClaimID{Instance: d.uuid("blocker.instance", b.Instance), Seq: d.positive("blocker.seq", b.Seq)},
				Client: d.token("blocker.client", b.Client),
				Mode:   d.mode(b.Mode),
				Voted:  b.Voted,
				Ahead:  b.Ahead,
				For:    d.millis("blocker.for_ms", b.For),
			}
		}
	case Refused:
		a.Reason, a.Text, a.Retryable = Reason(d.optionalToken("reason", w.Reason)), d.text("text", w.Text, MaxText), w.Passes
	case Recall:
		a.Behind, a.For = w.Behind, d.optionalToken("for", w.For)
	case Refreshed:
		a.Claim.Instance = d.uuid("instance", w.Instance)
		a.SentAt = d.positive("beat", w.Beat)
		a.Continues = d.uuids("continues", w.Continues)
		a.Lo, a.Hi = d.positive("lo", w.Lo), d.number("hi", w.Hi)
		a.Waiting = d.runs("waiting", w.Waiting, w.Lo, w.Hi)
		a.Unknown = d.runs("unknown", w.Unknown, w.Lo, w.Hi)
	case Informed:
		a.Recovering = d.millis("recovering_ms", w.Recovering)
		i := &NodeInfo{
			Nonce:   d.text("nonce", w.Nonce, MaxText),
			Nodes:   w.Nodes,
			Skew:    d.millis("skew_ms", w.Skew),
			State:   State(d.optionalToken("state", w.State)),
			Started: d.micros("started", w.Started),
			Now:     d.micros("now", w.Now),
			Voted:   w.Voted,
			Longest: d.millis("longest_ms", w.Longest),
			Claims:  d.count("claims", w.Claims),
			Version: d.text("version", w.Version, MaxText),
			Ahead:   d.millis("ahead_ms", w.Ahead),
		}
		if w.Config != nil {
			i.Config = d.nodeConfig(w.Config)
		}
		if i.State == Joining { // it has no list, and no longest lease
			i.Nodes, i.Skew = nil, 0
			a.Info = i
			break
		}
		i.MaxTTL = d.lease("max_ttl_ms", w.MaxTTL)
		if len(i.Nodes) == 0 || len(i.Nodes) > MaxNodes {
			d.fail("%d nodes, allowed are 1 to %d", len(i.Nodes), MaxNodes)
		}
		for k, n := range i.Nodes {
			d.token("nodes", n)
			if k > 0 && i.Nodes[k-1] >= n {
				d.fail("nodes are not sorted")
			}
		}
		a.Info = i
	case Evicted:
		// they outlive the message
		a.By, a.Text = strings.Clone(d.token("by", w.By)), strings.Clone(d.text("text", w.Text, MaxText))
	case Evicting:
		a.Nonce, a.Known = d.text("nonce", w.Nonce, MaxText), w.Known
		a.Recovering = d.millis("recovering_ms", w.Recovering)
	case Listed:
		a.Recovering = d.millis("recovering_ms", w.Recovering)
		a.Nonce = d.text("nonce", w.Nonce, MaxText)
		a.List = d.page(w)
	case Over:
		a.Over = d.over("over", w.Over)
		for i, c := range d.over("yielded", w.Yielded) {
			a.Yielded = append(a.Yielded, YieldOf{c, d.positive("yielded.beat", w.Yielded[i].Beat)})
		}
	case Configured:
		a.Nonce, a.Step = d.text("nonce", w.Nonce, MaxText), d.stepAnswer(w)
	default:
		d.fail("unknown answer %.20q", w.Answer)
	}
	return d.err
}

// decoder validates fields and keeps the first error.
type decoder struct{ err error }

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = malformed(format, args...)
	}
}

func (d *decoder) claim(w *wire) ClaimID {
	return ClaimID{Instance: d.uuid("instance", w.Instance), Seq: d.positive("seq", w.Seq)}
}

func (d *decoder) over(key string, in []wireClaim) (out []ClaimOf) {
	if len(in) > MaxOver {
		d.fail("%s has %d claims, at most %d are allowed", key, len(in), MaxOver)
		return nil
	}
	for _, c := range in {
		out = append(out, ClaimOf{
			Client: d.token(key+".client", c.Client),
			Claim:  ClaimID{Instance: d.uuid(key+".instance", c.Instance), Seq: d.positive(key+".seq", c.Seq)},
		})
	}
	return out
}

func (d *decoder) uuid(key, s string) uuid.UUID {
	id, ok := parseUUID(s)
	if !ok {
		d.fail("%s is not a UUID", key)
	}
	return id
}

// MaxLives is the maximum number of earlier lives of a node that a message names.
const MaxLives = 8

func (d *decoder) uuids(key string, list []string) (ids []uuid.UUID) {
	if len(list) > MaxLives {
		d.fail("%s has %d entries, at most %d are allowed", key, len(list), MaxLives)
		return nil
	}
	for _, s := range list {
		ids = append(ids, d.uuid(key, s))
	}
	return ids
}

func appendContinues(b []byte, ids []uuid.UUID) []byte {
	if len(ids) == 0 {
		return b
	}
	b = append(b, `,"continues":[`...)
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = appendUUID(b, id)
		b = append(b, '"')
	}
	return append(b, ']')
}

// parseUUID does what uuid.Parse does, but only for the usual form and in half the time. A
// lock needs a dozen calls.
func parseUUID(s string) (id uuid.UUID, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return uuid.UUID{}, false
	}
	bad := byte(0)
	for i, at := range [16]uint8{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34} {
		hi, lo := hexValues[s[at]], hexValues[s[at+1]]
		bad |= hi | lo
		id[i] = hi<<4 | lo&0xf
	}
	if bad > 0xf {
		return uuid.UUID{}, false
	}
	return id, true
}

// hexValues has the value of each hexadecimal digit. All other bytes have a value above 15.
var hexValues = func() (t [256]byte) {
	for c := range t {
		t[c] = 0xf0
	}
	for v, c := range []byte("0123456789abcdef") {
		t[c] = byte(v)
		t[strings.ToUpper(string(c))[0]] = byte(v)
	}
	return t
}()

func (d *decoder) number(key string, v uint64) uint64 {
	if v > MaxInt {
		d.fail("%s is above %d", key, uint64(MaxInt))
	}
	return v
}

func (d *decoder) positive(key string, v uint64) uint64 {
	if v == 0 {
		d.fail("%s is missing or 0", key)
	}
	return d.number(key, v)
}

func (d *decoder) span(v uint64) uint64 {
	if v > MaxSpan {
		d.fail("span is above %d", MaxSpan)
		return 0
	}
	return v
}

// count returns a number that fits an int on every platform.
func (d *decoder) count(key string, v int64) int {
	if v < 0 || v > math.MaxInt32 {
		d.fail("%s is not within 0 and %d", key, math.MaxInt32)
		return 0
	}
	return int(v)
}

func (d *decoder) micros(key string, v int64) int64 {
	if v < 0 || v > MaxInt {
		d.fail("%s is not within 0 and %d microseconds", key, uint64(MaxInt))
	}
	return v
}

func (d *decoder) millis(key string, v int64) time.Duration {
	if v < 0 || v > (1<<40) {
		d.fail("%s is out of range", key)
		return 0
	}
	return time.Duration(v) * time.Millisecond
}

func (d *decoder) lease(key string, v int64) time.Duration {
	if v < MinLease.Milliseconds() || v > MaxLease.Milliseconds() {
		d.fail("%s is not within %d and %d", key, MinLease.Milliseconds(), MaxLease.Milliseconds())
		return 0
	}
	return time.Duration(v) * time.Millisecond
}

func (d *decoder) mode(s string) quorum.Mode {
	switch s {
	case "exclusive":
		return quorum.Exclusive
	case "shared":
		return quorum.Shared
	}
	d.fail("mode %.20q is neither exclusive nor shared", s)
	return quorum.Exclusive
}

func (d *decoder) text(key, s string, limit int) string {
	if len(s) > limit {
		d.fail("%s has %d bytes, at most %d are allowed", key, len(s), limit)
		return ""
	}
	return s
}

func (d *decoder) optionalToken(key, s string) string {
	if s == "" {
		return ""
	}
	return d.token(key, s)
}

// token validates the name of a client or node, because encoders write it unescaped.
func (d *decoder) token(key, s string) string {
	if !subject.IsToken(s) {
		d.fail("%s is not a name of 1 to %d letters, digits, - and _", key, MaxToken)
		return ""
	}
	return s
}

func (d *decoder) runs(key string, in wireRuns, lo, hi uint64) Runs {
	if len(in) > MaxRuns {
		d.fail("%s has %d runs, at most %d are allowed", key, len(in), MaxRuns)
		return nil
	}
	var out Runs
	last := uint64(0)
	for i, r := range in {
		if r[0] < lo || r[1] > hi || r[0] > r[1] || i > 0 && r[0] <= last {
			d.fail("%s is not a sorted list of runs within lo and hi", key)
			return nil
		}
		last = r[1]
		out = append(out, Run{r[0], r[1]})
	}
	return out
}
