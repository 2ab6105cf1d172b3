package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"
)

// decode reads the body of a request: a flat JSON object, or nothing. It is stricter than
// encoding/json, which takes the last of repeated fields, ignores the case of their names,
// and puts U+FFFD in the place of what is no character. Each of these could make a request
// name another lock than a proxy or a log before the gateway has read.
func decode[T any](body []byte) (*T, *Problem) {
	in := new(T)
	if len(bytes.TrimSpace(body)) == 0 {
		return in, nil
	}
	if !utf8.Valid(body) {
		return nil, problem("malformed", "the body is not valid UTF-8: give a name that is not in the field encoded")
	}
	if loneSurrogate(body) {
		return nil, problem("malformed", `the body has a \u escape of one half of a character`)
	}
	known := fieldsOf(reflect.TypeFor[T]())
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, problem("malformed", "the body is not a JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, problem("malformed", "the body is not valid JSON: %v", err)
		}
		key, _ := t.(string)
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, problem("malformed", "the body is not valid JSON: %v", err)
		}
		switch {
		case seen[key]:
			return nil, problem("malformed", "the body has the field %.40q twice", key)
		case !known[key]:
			return nil, invalid(fmt.Sprintf("the body has an unknown field, %.40q", key))
		}
		seen[key] = true
		if p := nested(reflect.TypeFor[T](), key, value); p != nil {
			return nil, p
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, problem("malformed", "the body is not valid JSON: %v", err)
	}
	if d.More() {
		return nil, problem("malformed", "the body goes on after the JSON object")
	}
	if err := json.Unmarshal(body, in); err != nil {
		if e, ok := err.(*json.UnmarshalTypeError); ok { // its text quotes the value
			return nil, invalid(fmt.Sprintf("the field %.40q must be of type %s", e.Field, jsonType(e.Type)))
		}
		return nil, problem("malformed", "the body is not valid JSON: %v", err)
	}
	return in, nil
}

func fieldsOf(t reflect.Type) map[string]bool {
	out := map[string]bool{}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" {
			out[name] = true
		}
	}
	return out
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
