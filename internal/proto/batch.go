package proto

import (
	"encoding/json"
	"strings"
	"unsafe"
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
func IsList(body []byte) bool { return len(body) > 0 && body[0] == '[' }

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
// the rest. Strings are parts of body, as Request.Decode has it, but for what is kept
// for longer.
func DecodeBatch(list []Request, client string, body []byte) ([]Request, error) {
	var w wire
	in := readList(body, MaxBatchBody, MaxBatch, MaxShort)
	for in.next(&w) {
		list = append(list, Request{})
		if last := len(list) - 1; !in.passes(list[last].fromBatch(&w, client)) {
			list = list[:last]
		}
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
		if resource, err = DecodeName(w.Name); err != nil {
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
	in := readList(body, MaxBody, MaxBody, MaxBody)
	for in.next(&w) {
		list = append(list, Answer{})
		if last := len(list) - 1; !in.passes(list[last].fill(&w)) {
			list = list[:last]
		}
	}
	return list, in.wrong
}

// listReader reads what a list has, one by one: as far as scan does, and by
// encoding/json from there on.
type listReader struct {
	body  []byte
	count int   // most that it may have
	each  int   // most bytes of one
	wrong error // the first complaint
	over  bool

	scanner scanner
	done    int // read until now
	slow    bool
	rest    []json.RawMessage
}

// readList begins to read a body of at most so many bytes.
func readList(body []byte, most, count, each int) listReader {
	l := listReader{body: body, count: count, each: each}
	l.scanner.s = unsafe.String(unsafe.SliceData(body), len(body)) // nobody changes it: see Decode
	l.wrong = tooLong(len(body), most)
	if l.wrong == nil && !IsList(body) {
		l.wrong = malformed("it is no list")
	}
	l.over = l.wrong != nil
	return l
}

// passes keeps the first complaint, and reports whether there is none here.
func (l *listReader) passes(err error) bool {
	if l.wrong == nil {
		l.wrong = err
	}
	return err == nil
}

// next reads the next one that can be read into w.
func (l *listReader) next(w *wire) bool {
	for !l.over {
		more, err := l.read(w)
		if more && l.done == l.count {
			more, err = false, malformed("more than %d in a list", l.count)
		}
		l.done++
		l.over = !more
		if l.passes(err) && more {
			return true
		}
	}
	return false
}

// read reads the next one, and reports whether there was one.
func (l *listReader) read(w *wire) (more bool, err error) {
	*w = wire{}
	if !l.slow {
		p := &l.scanner
		at := p.element(l.done == 0)
		if at == after && p.i == len(p.s) {
			return false, nil
		}
		from := p.i
		if at == inside && w.object(p) {
			return true, tooLong(p.i-from, l.each)
		}
		l.slow = true
		*w = wire{}
		var all []json.RawMessage // not l.rest: l would have to live on the heap
		if err := json.Unmarshal(l.body, &all); err != nil {
			return false, malformed("%.200v", err)
		}
		l.rest = all[l.done:]
	}
	if len(l.rest) == 0 {
		return false, nil
	}
	one := l.rest[0]
	l.rest = l.rest[1:]
	return true, w.parse(one, l.each)
}
