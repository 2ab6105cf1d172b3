package wire

import (
	"strings"

	"github.com/qlock/qlock/internal/subject"
)

// A batch is several requests of one client in one message. The answers to them also come
// in one message. Both are JSON lists of what would otherwise be one body each. Each
// element counts as if it had arrived alone, in the order of the list.

// The limits of a batch.
const (
	MaxBatch     = 64       // requests
	MaxBatchBody = 64 << 10 // bytes of the body
)

// InBatch reports whether requests of this verb may be part of a batch. A refresh already
// concerns many claims, so it may not. Nor may requests that other permissions guard: they
// need a subject of their own.
func (v Verb) InBatch() bool {
	switch v {
	case Acquire, Release, Yield, Info:
		return true
	}
	return false
}

// AppendToBatch appends a request to a batch. The caller writes the brackets of the list.
// body is the result of AppendRequest; AppendToBatch adds the parts that otherwise are in
// the subject. The name must be encoded already, and is empty for a verb that has none.
func AppendToBatch(b []byte, verb Verb, encodedName string, body []byte) []byte {
	b = append(b, `{"verb":"`...)
	b = append(b, verb...)
	b = append(b, '"')
	if encodedName != "" {
		b = appendStr(b, "name", encodedName)
	}
	return append(append(b, ','), body[1:]...)
}

// IsList reports whether a body is a batch or the answers to one, which begin with [.
func IsList(body []byte) bool {
	p := newScanner(body)
	p.space()
	return p.i < len(p.s) && p.s[p.i] == '['
}

// AppendSeparator appends what precedes the next element of a list. The caller appends the
// final ].
func AppendSeparator(b []byte) []byte {
	if len(b) == 0 {
		return append(b, '[')
	}
	return append(b, ',')
}

// DecodeBatch appends the requests of a batch to list. An invalid request does not affect
// the others: it is left out, and the first such error is returned with the valid requests.
// But if the body is not JSON, is too long, or has too many requests, no request counts:
// the result must not depend on how far a reader gets before it notices. The strings are
// parts of body, as for Request.Decode, except those that are kept for longer.
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
		resource = strings.Clone(resource) // outlives the batch
	}
	return r.fill(w, verb, client, resource)
}

// DecodeAnswers appends the answers to a batch to list. It treats invalid answers as
// DecodeBatch treats invalid requests.
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

// listReader reads the elements of a list one by one.
type listReader struct {
	scanner scanner
	each    int   // maximum size of one element, bytes
	done    int   // bytes read so far
	over    error // not a list, or against a rule of lists: no element counts
	wrong   error // the first error of a single element
}

// readList starts reading a body of at most most bytes, with elements of at most each
// bytes.
func readList(body []byte, most, each int) listReader {
	l := listReader{scanner: newScanner(body), each: each}
	if l.over = tooLong(len(body), most); l.over == nil && !IsList(body) {
		l.over = malformed("it is not a list")
	}
	return l
}

// passes reports whether err is nil, and keeps the first err that is not.
func (l *listReader) passes(err error) bool {
	if l.wrong == nil {
		l.wrong = err
	}
	return err == nil
}

// next reads the next valid element into w, and reports whether there is one.
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
		if !p.skip() { // the fault is not limited to this element
			l.over = p.err()
			continue
		}
		l.passes(err)
	}
	return false
}
