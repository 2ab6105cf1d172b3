package wire

import (
	"strings"

	"github.com/qlock/qlock/internal/subject"
)

// A batch is several requests of one client in one message, and the answers to them
// in one message back: JSON lists of what else would be a body each. Each counts as if
// it had come alone, in the order of the list.

// Limits of a batch.
const (
	MaxBatch     = 64       // requests in it
	MaxBatchBody = 64 << 10 // bytes of it
)

// InBatch reports whether requests of this verb may be in a batch. A refresh is one
// already; and what is under other permissions goes under its own subject.
func (v Verb) InBatch() bool {
	switch v {
	case Acquire, Release, Yield, Info:
		return true
	}
	return false
}

// AppendToBatch appends a request to a batch whose brackets are the caller's: body,
// which AppendRequest gave, with what else stands in its subject. The name is encoded
// already, and empty for a verb that has none.
func AppendToBatch(b []byte, verb Verb, encodedName string, body []byte) []byte {
	b = append(b, `{"verb":"`...)
	b = append(b, verb...)
	b = append(b, '"')
	if encodedName != "" {
		b = appendStr(b, "name", encodedName)
	}
	return append(append(b, ','), body[1:]...)
}

// IsList reports whether a body is a batch or the answers to one: they begin with [.
func IsList(body []byte) bool {
	p := newScanner(body)
	p.space()
	return p.i < len(p.s) && p.s[p.i] == '['
}

// AppendSeparator appends what stands before the next of a list. Its end, ], is the
// caller's.
func AppendSeparator(b []byte) []byte {
	if len(b) == 0 {
		return append(b, '[')
	}
	return append(b, ',')
}

// DecodeBatch appends the requests of a batch to list. What is wrong with one of them
// concerns no other: it is left out, and the first such complaint is returned beside
// the rest. But of a body that is no JSON, too long, or of too many requests, nothing
// counts: how far a reader comes before it notices must not matter. Strings are parts
// of body, as Request.Decode has it, but for what is kept for longer.
func DecodeBatch(list []Request, client string, body []byte) ([]Request, error) {
	var w wire
	before := len(list)
	in := readList(body, MaxBatchBody, MaxShort)
	for in.next(&w) {
		if in.done > MaxBatch {
			in.over = malformed("more than %d requests", MaxBatch)
			break
		}
		list = append(list, Request{})
		if last := len(list) - 1; !in.passes(list[last].fromBatch(&w, client)) {
			list = list[:last]
		}
	}
	if in.over != nil {
		return list[:before], in.over
	}
	return list, in.wrong
}

func (r *Request) fromBatch(w *wire, client string) error {
	verb, resource := Verb(w.Verb), ""
	switch {
	case !verb.InBatch():
		return malformed("verb %.20q in a batch", w.Verb)
	case verb != Info:
		var err error
		if resource, err = subject.DecodeName(w.Name); err != nil {
			return malformed("%w", err)
		}
	}
	if verb == Acquire {
		resource = strings.Clone(resource) // it is kept for longer than the batch
	}
	return r.fill(w, verb, client, resource)
}

// DecodeAnswers appends the answers to a batch to list; for what is wrong with one, see
// DecodeBatch.
func DecodeAnswers(list []Answer, body []byte) ([]Answer, error) {
	var w wire
	before := len(list)
	in := readList(body, MaxBody, MaxBody)
	for in.next(&w) {
		list = append(list, Answer{})
		if last := len(list) - 1; !in.passes(list[last].fill(&w)) {
			list = list[:last]
		}
	}
	if in.over != nil {
		return list[:before], in.over
	}
	return list, in.wrong
}

// listReader reads what a list has, one by one.
type listReader struct {
	scanner scanner
	each    int   // most bytes of one
	done    int   // read until now
	over    error // the list is none, or breaks a rule of lists: nothing in it counts
	wrong   error // the first complaint about one of its parts
}

// readList begins to read a body of at most so many bytes.
func readList(body []byte, most, each int) listReader {
	l := listReader{scanner: newScanner(body), each: each}
	if l.over = tooLong(len(body), most); l.over == nil && !IsList(body) {
		l.over = malformed("it is not a list")
	}
	return l
}

// passes keeps the first complaint, and reports whether there is none here.
func (l *listReader) passes(err error) bool {
	if l.wrong == nil {
		l.wrong = err
	}
	return err == nil
}

// next reads the next part that can be read into w.
func (l *listReader) next(w *wire) bool {
	p := &l.scanner
	for l.over == nil {
		switch p.element(l.done == 0) {
		case lost:
			l.over = p.err()
			continue
		case after:
			if p.end() {
				return false
			}
			l.over = p.err()
			continue
		}
		l.done++
		*w = wire{}
		from, depth := p.i, p.depth
		if w.object(p) {
			if l.passes(tooLong(len(strings.TrimRight(p.s[from:p.i], whiteSpace)), l.each)) {
				return true
			}
			continue
		}
		err := p.err()
		p.i, p.depth, p.wrong = from, depth, ""
		if !p.skip() { // it is not that part alone that is wrong
			l.over = p.err()
			continue
		}
		l.passes(err)
	}
	return false
}
