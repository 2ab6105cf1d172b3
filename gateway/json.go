package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// decode reads the body of a request: a JSON object, or nothing. It is stricter than
// encoding/json, which takes the last of repeated fields, ignores the case of their names,
// and puts U+FFFD in the place of what is no character. Each of these could make a request
// name another lock than a proxy or a log before the gateway has read.
func decode[T any](body []byte) (*T, *Problem) {
	in := new(T)
	trimmed := bytes.TrimSpace(body)
	if len(trimmed) == 0 {
		return in, nil
	}
	if !utf8.Valid(body) {
		return nil, problem("malformed", "the body is not valid UTF-8: give a name that is not in the field encoded")
	}
	if loneSurrogate(body) {
		return nil, problem("malformed", `the body has a \u escape of one half of a character`)
	}
	if trimmed[0] != '{' {
		return nil, problem("malformed", "the body is not a JSON object")
	}
	if json.Valid(body) { // otherwise Unmarshal says why not
		s := strictness{body: body}
		if p := s.value(reflect.TypeFor[T](), nil); p != nil {
			return nil, p
		}
	}
	if err := json.Unmarshal(body, in); err != nil {
		if e, ok := err.(*json.UnmarshalTypeError); ok { // its text quotes the value
			return nil, invalid(fmt.Sprintf("the field %.40q must be of type %s", e.Field, jsonType(e.Type)))
		}
		return nil, problem("malformed", "the body is not valid JSON: %v", err)
	}
	return in, nil
}

// strictness walks through valid JSON, and checks the names of fields and the elements of lists
// against the types that they are for. What does not fit a type otherwise is for Unmarshal to
// refuse. It allocates nothing.
type strictness struct {
	body []byte
	at   int
}

// place is a value within the request, for problems: that of a field or of an element.
type place struct {
	in    *place
	field string
	index int // if field is empty
}

func (p *place) String() string {
	switch {
	case p == nil:
		return "the body"
	case p.field == "":
		return p.in.String() + "[" + strconv.Itoa(p.index) + "]"
	}
	return p.field
}

// shape is what a request may have in an object: at most 64 fields.
type shape map[string]shapeField

type shapeField struct {
	bit uint64
	of  reflect.Type
}

var shapes sync.Map // of *shape by reflect.Type

func shapeOf(t reflect.Type) shape {
	if s, ok := shapes.Load(t); ok {
		return s.(shape)
	}
	s := shape{}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" {
			if i >= 64 {
				panic("gateway: a request has more than 64 fields")
			}
			s[name] = shapeField{1 << i, t.Field(i).Type}
		}
	}
	shapes.Store(t, s)
	return s
}

// next skips white space, and returns the byte behind it.
func (s *strictness) next() byte {
	for {
		switch c := s.body[s.at]; c {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return c
		}
	}
}

// text passes a string, and returns it with its quotes.
func (s *strictness) text() []byte {
	from := s.at
	for s.at++; s.body[s.at] != '"'; s.at++ {
		if s.body[s.at] == '\\' {
			s.at++
		}
	}
	s.at++
	return s.body[from:s.at]
}

// skip passes a value of any kind.
func (s *strictness) skip() {
	for depth := 0; ; {
		switch c := s.next(); c {
		case '"':
			s.text()
		case '{', '[':
			depth++
			s.at++
		case '}', ']':
			depth--
			s.at++
		case ',', ':':
			s.at++
			continue
		default: // a number or a word
			for s.at < len(s.body) && !strings.ContainsRune(",:]} \t\r\n", rune(s.body[s.at])) {
				s.at++
			}
		}
		if depth == 0 {
			return
		}
	}
}

// value checks a value that is for the type.
func (s *strictness) value(t reflect.Type, where *place) *Problem {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch c := s.next(); {
	case t.Kind() == reflect.Slice && c == '[':
		return s.list(t.Elem(), where)
	case t.Kind() == reflect.Struct && c == '{':
		return s.object(shapeOf(t), where)
	}
	s.skip()
	return nil
}

func (s *strictness) list(t reflect.Type, where *place) *Problem {
	s.at++
	for i := 0; ; i++ {
		switch s.next() {
		case ']':
			s.at++
			return nil
		case ',':
			s.at++
		}
		here := place{in: where, index: i}
		if s.next() == 'n' {
			return invalid(here.String() + " is null")
		}
		if p := s.value(t, &here); p != nil {
			return p
		}
	}
}

func (s *strictness) object(known shape, where *place) *Problem {
	s.at++
	for seen := uint64(0); ; {
		switch s.next() {
		case '}':
			s.at++
			return nil
		case ',':
			s.at++
			s.next()
		}
		quoted := s.text()
		name := quoted[1 : len(quoted)-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			var plain string
			_ = json.Unmarshal(quoted, &plain) // it is valid
			name = []byte(plain)
		}
		f, ok := known[string(name)]
		switch {
		case !ok:
			return invalid(fmt.Sprintf("%s has an unknown field, %.40q", where, name))
		case seen&f.bit != 0:
			return problem("malformed", "%s has the field %.40q twice", where, name)
		}
		seen |= f.bit
		s.next()
		s.at++ // the colon
		here := place{in: where, field: string(name)}
		if p := s.value(f.of, &here); p != nil {
			return p
		}
	}
}

// loneSurrogate reports whether a \u escape is half of a character without the other half.
func loneSurrogate(body []byte) bool {
	hex := func(i int) (v int) {
		if i+6 > len(body) || body[i] != '\\' || body[i+1] != 'u' {
			return -1
		}
		for _, c := range body[i+2 : i+6] {
			switch {
			case '0' <= c && c <= '9':
				v = v<<4 | int(c-'0')
			case 'a' <= c|0x20 && c|0x20 <= 'f':
				v = v<<4 | int(c|0x20-'a'+10)
			default:
				return -1
			}
		}
		return v
	}
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		switch v := hex(i); {
		case 0xD800 <= v && v < 0xDC00:
			if next := hex(i + 6); next < 0xDC00 || next > 0xDFFF {
				return true
			}
			i += 11
		case 0xDC00 <= v && v <= 0xDFFF:
			return true
		default:
			i++ // an escaped backslash begins no other escape
		}
	}
	return false
}
