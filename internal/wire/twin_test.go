package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"unicode/utf8"
)

// twin is a simple reader of the rules in docs/wire.md. It uses encoding/json, and checks
// one by one the rules that encoding/json does not enforce. The hand-written reader is
// compared with it.
func twin(body []byte, to any) error {
	if err := isText(body); err != nil {
		return err
	}
	return strictly(body, reflect.ValueOf(to).Elem())
}

var (
	backslash = regexp.MustCompile(`\\\\`)
	pair      = regexp.MustCompile(`(?i)\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}`)
	half      = regexp.MustCompile(`(?i)\\ud[89a-f][0-9a-f]{2}`)
	integer   = regexp.MustCompile(`^(0|[1-9][0-9]{0,17})$`)
)

// isText checks what concerns a body as a whole.
func isText(body []byte) error {
	if !json.Valid(body) || !utf8.Valid(body) {
		return errors.New("no JSON, or no UTF-8")
	}
	if half.Match(pair.ReplaceAll(backslash.ReplaceAll(body, []byte("x")), []byte("x"))) {
		return errors.New("half a surrogate pair")
	}
	dec, depth := json.NewDecoder(bytes.NewReader(body)), 0
	for {
		switch token, err := dec.Token(); token {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return errors.New("too deep")
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		case nil:
			if err == io.EOF {
				return nil
			}
		}
	}
}

func strictly(raw []byte, to reflect.Value) error {
	raw = bytes.Trim(raw, " \n\r\t")
	wrong := fmt.Errorf("%s is no %v", raw, to.Type())
	switch to.Kind() {
	case reflect.Pointer:
		to.Set(reflect.New(to.Type().Elem()))
		return strictly(raw, to.Elem())
	case reflect.String:
		if raw[0] != '"' {
			return wrong
		}
		return json.Unmarshal(raw, to.Addr().Interface())
	case reflect.Bool:
		if string(raw) != "true" && string(raw) != "false" {
			return wrong
		}
		to.SetBool(string(raw) == "true")
		return nil
	case reflect.Uint64, reflect.Int64:
		if !integer.Match(raw) {
			return wrong
		}
		return json.Unmarshal(raw, to.Addr().Interface())
	case reflect.Float64:
		if raw[0] == '"' || json.Unmarshal(raw, to.Addr().Interface()) != nil || to.Float() < 0 || string(raw) == "null" {
			return wrong
		}
		return nil
	case reflect.Slice, reflect.Array:
		var parts []json.RawMessage
		if raw[0] != '[' || json.Unmarshal(raw, &parts) != nil || to.Kind() == reflect.Array && len(parts) != to.Len() {
			return wrong
		}
		if to.Kind() == reflect.Slice {
			to.Set(reflect.MakeSlice(to.Type(), len(parts), len(parts)))
		}
		for i, part := range parts {
			if err := strictly(part, to.Index(i)); err != nil {
				return err
			}
		}
		return nil
	}
	if raw[0] != '{' {
		return wrong
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		for field := range to.Type().Fields() {
			if !field.IsExported() || field.Tag.Get("json") != key {
				continue
			}
			if seen[field.Name] {
				return fmt.Errorf("%s comes twice", key)
			}
			seen[field.Name] = true
			if err := strictly(value, to.FieldByIndex(field.Index)); err != nil {
				return err
			}
		}
	}
	return nil
}
