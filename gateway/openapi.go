package gateway

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qlock/qlock"
)

// The OpenAPI document is made from the table of operations and from the Go types of
// bodies, so it cannot differ from what is served; tests hold every answer against it.

type object = map[string]any

var openAPI = sync.OnceValue(func() []byte {
	schemas := object{}
	ref := func(v any) object {
		t := reflect.TypeOf(v)
		addSchema(schemas, t)
		return object{"$ref": "#/components/schemas/" + t.Name()}
	}
	paths := object{}
	for i := range operations {
		op := &operations[i]
		methods, _ := paths[op.path].(object)
		if methods == nil {
			methods = object{}
			paths[op.path] = methods
		}
		methods[strings.ToLower(op.method)] = operationDocument(op, ref)
	}
	ref(EventMessage{})
	paths["/v1/events"] = object{"get": object{
		"operationId": "events", "summary": "Stream events of locks as server-sent events. The events hello, reset and gap are the gateway's own.",
		"parameters": []object{
			{"name": "pattern", "in": "query", "description": paramQPatter.doc, "schema": object{"type": "string"}},
			{"name": "kinds", "in": "query", "description": "some of acquired, released and lost, separated by commas; default: all", "schema": object{"type": "string"}},
			{"name": "Last-Event-ID", "in": "header", "description": "of the last event before the stream broke: the stream goes on after it, or begins with reset", "schema": object{"type": "string"}},
		},
		"responses": object{
			"200":     object{"description": "a stream; the data of each event is an EventMessage", "content": object{"text/event-stream": object{"schema": object{"type": "string"}}}},
			"default": object{"description": "a problem", "content": object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}}},
		},
	}}
	types := make([]string, 0, len(kinds))
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		types = append(types, ProblemBase+kind)
	}
	ref(Problem{})
	properties := schemas["Problem"].(object)["properties"].(object)
	properties["type"].(object)["enum"] = types
	properties["cause"].(object)["enum"] = causes
	b, err := json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "qlock gateway", "version": qlock.Version(),
			"description": "Distributed locks over NATS, for every language. A caller holds a lock until the moment at which it sent the request, plus handled_ms, plus expires_in_ms, by its own clock, and never longer.",
			"license":     object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers": []object{{"url": "/"}},
		"paths":   paths,
		"components": object{"schemas": schemas, "securitySchemes": object{
			"basic":  object{"type": "http", "scheme": "basic", "description": "user and password of a NATS user, if the gateway asks for credentials"},
			"bearer": object{"type": "http", "scheme": "bearer", "description": "a token or a bearer JWT for NATS, if the gateway asks for credentials"},
		}},
		"security": []object{{}, {"basic": []string{}}, {"bearer": []string{}}},
	}, "", " ")
	if err != nil {
		panic(err)
	}
	return append(b, '\n')
})

func operationDocument(op *operation, ref func(any) object) object {
	doc := object{"operationId": op.id, "summary": op.summary}
	var params []object
	for _, p := range op.params {
		schema := object{"type": "string"}
		if p.integer {
			schema = object{"type": "integer", "minimum": 0}
		}
		params = append(params, object{"name": p.name, "in": p.in, "required": p.required, "description": p.doc, "schema": schema})
	}
	if params != nil {
		doc["parameters"] = params
	}
	if _, ok := op.body.(value); ok {
		doc["requestBody"] = object{"required": false, "content": object{"application/octet-stream": object{"schema": object{}}}}
	} else if op.body != nil {
		doc["requestBody"] = object{"required": false, "content": object{"application/json": object{"schema": ref(op.body)}}}
	}
	responses := object{}
	for _, a := range op.answers {
		r := object{"description": a.doc}
		if v, ok := a.body.(value); ok {
			r["content"] = object{"application/octet-stream": object{"schema": object{}}, "application/json": object{"schema": ref(v.json)}}
		} else if a.body != nil {
			r["content"] = object{"application/json": object{"schema": ref(a.body)}}
		}
		responses[strconv.Itoa(a.status)] = r
	}
	byStatus := map[int][]string{}
	for _, kind := range slices.Concat(op.problems, everyProblem) {
		byStatus[kinds[kind].status] = append(byStatus[kinds[kind].status], kind)
	}
	for status, list := range byStatus {
		slices.Sort(list)
		list = slices.Compact(list)
		responses[strconv.Itoa(status)] = object{
			"description": "problem: " + strings.Join(list, ", "),
			"content":     object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}},
		}
	}
	doc["responses"] = responses
	return doc
}

// addSchema adds the schema of a struct, and of those in it. A field without omitempty is
// always there.
func addSchema(schemas object, t reflect.Type) {
	if schemas[t.Name()] != nil {
		return
	}
	properties, required := object{}, []string{}
	schemas[t.Name()] = object{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		schema := schemaOf(schemas, f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			schema["description"] = doc
		}
		if enum := f.Tag.Get("enum"); enum != "" {
			schema["enum"] = strings.Split(enum, ",")
		}
		if format := f.Tag.Get("format"); format != "" {
			schema["format"] = format
		}
		if most, err := strconv.Atoi(f.Tag.Get("maxLength")); err == nil {
			schema["maxLength"] = most
		}
		properties[name] = schema
		if !strings.Contains(options, "omitempty") {
			required = append(required, name)
		}
	}
	s := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
	}
	schemas[t.Name()] = s
}

func schemaOf(schemas object, t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		return schemaOf(schemas, t.Elem())
	case t.Kind() == reflect.Struct:
		addSchema(schemas, t)
		return object{"$ref": "#/components/schemas/" + t.Name()}
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "items": schemaOf(schemas, t.Elem())}
	case t.Kind() == reflect.Uint64:
		return object{"type": "integer", "format": "int64", "minimum": 0}
	}
	return object{"type": jsonType(t)}
}

// jsonType is what JSON calls a type.
func jsonType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Slice:
		return "array"
	case reflect.Struct, reflect.Map:
		return "object"
	}
	return "integer"
}

//go:embed web/docs.html
var docsText string

//go:embed web/docs.js
var docsScript []byte

//go:embed web/docs.css
var docsStyle []byte

var docsPage = sync.OnceValue(func() []byte {
	page := template.Must(template.New("docs").Funcs(template.FuncMap{
		"body": func(v any) string {
			if v == nil {
				return ""
			}
			if _, ok := v.(value); ok {
				return "the value, as it is"
			}
			var names []string
			t := reflect.TypeOf(v)
			for i := range t.NumField() {
				name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
				names = append(names, name)
			}
			return strings.Join(names, ", ")
		},
	}).Parse(docsText))
	type parameterView struct {
		Name, In, Doc string
		Required      bool
	}
	type answerView struct {
		Status int
		Doc    string
	}
	type view struct {
		ID, Method, Path, Verb, Summary string
		Params                          []parameterView
		Answers                         []answerView
		Problems                        []string
		Body                            any
	}
	var all []view
	for i := range operations {
		op := &operations[i]
		v := view{op.id, op.method, op.path, op.verb, op.summary, nil, nil, op.problems, op.body}
		for _, p := range op.params {
			v.Params = append(v.Params, parameterView{p.name, p.in, p.doc, p.required})
		}
		for _, a := range op.answers {
			v.Answers = append(v.Answers, answerView{a.status, a.doc})
		}
		all = append(all, v)
	}
	var b bytes.Buffer
	if err := page.Execute(&b, all); err != nil {
		panic(err)
	}
	return b.Bytes()
})

// policy keeps pages of the gateway from loading or running anything from elsewhere.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

// documents serves the OpenAPI document and the page that is made from it.
func (g *Gateway) documents(mux *http.ServeMux) {
	serve := func(path, kind string, text func() []byte) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Content-Type", kind)
			h.Set("Content-Security-Policy", policy)
			h.Set("Referrer-Policy", "no-referrer")
			h.Set("Cross-Origin-Resource-Policy", "same-origin")
			_, _ = w.Write(text())
		})
	}
	serve("/openapi.json", "application/json", openAPI)
	serve("/docs", "text/html; charset=utf-8", docsPage)
	serve("/docs/docs.js", "text/javascript; charset=utf-8", func() []byte { return docsScript })
	serve("/docs/docs.css", "text/css; charset=utf-8", func() []byte { return docsStyle })
}
