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

// DecodeBatch appends the requests of a batch to list. What is wrong with one of them
// concerns no other: it is left out, and the first such complaint is returned beside
// the rest. Strings are parts of body, as Request.Decode has it, but for what is kept
// for longer.
func DecodeBatch(list []Request, client string, body []byte) ([]Request, error) {
	if len(body) > MaxBatchBody {
		return list, malformed("%d bytes, at most %d are allowed", len(body), MaxBatchBody)
	}
	if !IsList(body) {
		return list, malformed("a batch is a list")
	}
	var w wire
	var wrong error
	in := listReader{body: body, most: MaxShort}
	for count := 0; ; count++ {
		more, err := in.next(&w)
		if more && count == MaxBatch {
			more, err = false, malformed("more than %d requests", MaxBatch)
		}
		if err == nil && more {
			list = append(list, Request{})
			if err = list[len(list)-1].fromBatch(&w, client); err != nil {
				list = list[:len(list)-1]
			}
		}
		if wrong == nil {
			wrong = err
		}
		if !more {
			return list, wrong
		}
	}
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
	if len(body) > MaxBody {
		return list, malformed("%d bytes, at most %d are allowed", len(body), MaxBody)
	}
	if !IsList(body) {
		return list, malformed("answers to a batch are a list")
	}
	var w wire
	var wrong error
	in := listReader{body: body, most: MaxBody}
	for {
		more, err := in.next(&w)
		if err == nil && more {
			list = append(list, Answer{})
			if err = list[len(list)-1].fill(&w); err != nil {
				list = list[:len(list)-1]
			}
		}
		if wrong == nil {
			wrong = err
		}
		if !more {
			return list, wrong
		}
	}
}

// listReader reads what a list has, one by one: as far as scan does, and by
// encoding/json from there on.
type listReader struct {
	body []byte
	most int // bytes of one

	scanner scanner
	begun   bool
	done    int // read by scan
	slow    bool
	rest    []json.RawMessage
}

// next reads the next one into w. What is wrong with it is no reason not to go on, as
// long as there are more.
func (l *listReader) next(w *wire) (more bool, err error) {
	if !l.slow {
		if !l.begun {
			l.scanner.s = unsafe.String(unsafe.SliceData(l.body), len(l.body)) // nobody changes it: see Decode
		}
		p := &l.scanner
		at := p.element(!l.begun)
		l.begun = true
		if at == after && p.i == len(p.s) {
			return false, nil
		}
		from := p.i
		*w = wire{}
		if at == inside && w.object(p) {
			l.done++
			return true, l.size(p.i - from)
		}
		l.slow = true
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
	*w = wire{}
	return true, w.parse(one, l.most)
}

func (l *listReader) size(n int) error {
	if n > l.most {
		return malformed("%d bytes, at most %d are allowed", n, l.most)
	}
	return nil
}
