package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// nested checks what a field of a request has in it as strictly as decode checks the request.
// It bounds the depth by that of the type: bodies are checked before they are unmarshaled.
func nested(t reflect.Type, field string, value json.RawMessage) *Problem {
	for i := range t.NumField() {
		f := t.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == field {
			return strict(f.Type, field, value)
		}
	}
	return nil
}

func strict(t reflect.Type, where string, value json.RawMessage) *Problem {
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
			if p := strict(t.Elem(), fmt.Sprintf("%s[%d]", where, i), one); p != nil {
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
			if p := nested(t, key, one); p != nil {
				return p
			}
		}
	}
	return nil
}
