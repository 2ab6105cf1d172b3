package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

var bodies = []string{
	``, ` `, `{}`, ` { } `, `null`, `[]`, `7`, `"x"`, `{`, `}`, `{}}`, `{} {}`, `{"name"}`, `{"name":}`, `{"name":"x",}`, `{,}`, `{"name":"x" "wait":"1s"}`,
	`{"name":"x"}`, `{"name":"x","name":"y"}`, `{"name":"x","n\u0061me":"y"}`, `{"n\u0061me":"y"}`, `{"Name":"x"}`, `{"nom":{"a":[1,{"b":2}]}}`, `{"name":7}`, `{"name":null}`,
	`{"age":1e3}`, `{"age":"7"}`, `{"age":7}`, `{"age":7,"note":"a\"b\\"}`, "{\"name\":\"\xff\"}", `{"name":"\ud800"}`, `{"name":"\ud83d\ude00"}`, `{"":1}`, `{"-":1}`, "{\"name\":\"a\nb\"}",
	`{"ops":null}`, `{"ops":[]}`, `{"ops":[null]}`, `{"ops":[{"op":"get"}, null ]}`, `{"ops":[{"op":"get","op":"put"}]}`, `{"ops":[{"op":"get","opp":1}]}`, `{"ops":[{"op":7}]}`, `{"ops":[7]}`, `{"ops":{"op":"get"}}`,
	`{"ops":[[{"op":"get"}]]}`, `{"lock":{"name":"x","name":"y"}}`, `{"lock":[{"name":"x","name":"y"}]}`, `{"lock":null}`, `{"lock":{"nom":1}}`, `{"lock":{"name":{"name":1,"name":2}}}`, `{"lock":"x"}`,
	`{"once":"a","lock":{"name":"x","wait":"5s"},"unlock":false,"ops":[{"op":"put","key":"k","value":"]}"},{"op":"add","by":-1}]}`,
	`{"ops":[{"op":"get","key":"a"}],"ops":[]}`, `{"x":` + strings.Repeat("[", 3000) + strings.Repeat("]", 3000) + `}`, `{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
	`{"ops":[{"\u006fp":"get","op":"get"}]}`, `{"unlock":tru}`, `{"unlock":true}`, `{"revision":18446744073709551616}`, `{"name":"x"}` + "\x00",
}

// The decoder refuses what the plain one below refuses, with problems of the same kinds, and reads
// the same from the rest.
func TestDecodeAsTwin(t *testing.T) {
	for _, body := range bodies {
		sameAsTwin[AcquireRequest](t, []byte(body))
		sameAsTwin[TransactionRequest](t, []byte(body))
		sameAsTwin[struct{}](t, []byte(body))
	}
}

func FuzzDecode(f *testing.F) {
	for _, body := range bodies {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sameAsTwin[AcquireRequest](t, body)
		sameAsTwin[TransactionRequest](t, body)
	})
}

func sameAsTwin[T any](t *testing.T, body []byte) {
	t.Helper()
	got, p := decode[T](body)
	want, q := twinDecode[T](body)
	switch {
	case (p == nil) != (q == nil):
		t.Errorf("%.200q: %v, the twin says %v", body, p, q)
	case p == nil && !reflect.DeepEqual(got, want):
		t.Errorf("%.200q: %+v, the twin says %+v", body, got, want)
	case p != nil && json.Valid(body) && (p.Kind() != q.Kind() || p.Detail != q.Detail), p != nil && p.Kind() != "malformed" && p.Kind() != q.Kind():
		t.Errorf("%.200q: %v, the twin says %v", body, p, q)
	}
}

func twinDecode[T any](body []byte) (*T, *Problem) {
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
		if p := twinNested(reflect.TypeFor[T](), key, value); p != nil {
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

// twinNested checks what a field of a request has in it as strictly as decode checks the request.
// It bounds the depth by that of the type: bodies are checked before they are unmarshaled.
func twinNested(t reflect.Type, field string, value json.RawMessage) *Problem {
	for i := range t.NumField() {
		f := t.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == field {
			return twinStrict(f.Type, field, value)
		}
	}
	return nil
}

func twinStrict(t reflect.Type, where string, value json.RawMessage) *Problem {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	value = bytes.TrimSpace(value)
	switch {
	case t.Kind() == reflect.Slice && bytes.HasPrefix(value, []byte("[")):
		var all []json.RawMessage
		if err := json.Unmarshal(value, &all); err != nil {
			return problem("malformed", "the body is not valid JSON: %v", err)
		}
		for i, one := range all {
			if string(bytes.TrimSpace(one)) == "null" {
				return invalid(fmt.Sprintf("%s[%d] is null", where, i))
			}
			if p := twinStrict(t.Elem(), fmt.Sprintf("%s[%d]", where, i), one); p != nil {
				return p
			}
		}
	case t.Kind() == reflect.Struct && bytes.HasPrefix(value, []byte("{")):
		known, seen := fieldsOf(t), map[string]bool{}
		d := json.NewDecoder(bytes.NewReader(value))
		if _, err := d.Token(); err != nil {
			return problem("malformed", "the body is not valid JSON: %v", err)
		}
		for d.More() {
			token, err := d.Token()
			if err != nil {
				return problem("malformed", "the body is not valid JSON: %v", err)
			}
			key, _ := token.(string)
			var one json.RawMessage
			if err := d.Decode(&one); err != nil {
				return problem("malformed", "the body is not valid JSON: %v", err)
			}
			switch {
			case seen[key]:
				return problem("malformed", "%s has the field %.40q twice", where, key)
			case !known[key]:
				return invalid(fmt.Sprintf("%s has an unknown field, %.40q", where, key))
			}
			seen[key] = true
			if p := twinNested(t, key, one); p != nil {
				return p
			}
		}
	}
	return nil
}
