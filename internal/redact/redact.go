// Package redact removes user names, passwords and tokens from server addresses before they
// are shown. An address may be malformed in any way, for example because a password was not
// encoded, so nothing here relies on an address that can be parsed. If a text can be read
// in two ways, more is removed. All functions are safe for concurrent use.
package redact

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
)

// URL returns one address without its userinfo.
func URL(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "", s
	} else {
		scheme += "://"
	}
	return scheme + rest[strings.LastIndexByte(rest, '@')+1:]
}

// URLs returns a list of addresses, separated by commas, without their userinfo.
func URLs(s string) string {
	var list []string
	for _, part := range strings.Split(s, ",") {
		// A part without a scheme may be the rest of a password that contains a comma.
		if n := len(list); n > 0 && strings.Contains(part, "@") && !strings.Contains(part, "://") && !strings.Contains(list[n-1], "@") {
			list[n-1] += "," + part
			continue
		}
		list = append(list, part)
	}
	for i := range list {
		list[i] = URL(list[i])
	}
	return strings.Join(list, ",")
}

// Misread reports whether a part of a password may be outside of the userinfo of a parsed
// address. That happens if the password contains a character that ends the userinfo, such
// as / or #. Another part of the password is then taken for the host, and looked up in the
// network.
func Misread(u *url.URL) bool {
	return strings.Contains(u.Path+u.RawQuery+u.Fragment, "@")
}

var userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)\S*@`)

// Text returns s without the userinfo of the addresses in it.
func Text(s string) string { return userinfo.ReplaceAllString(s, "$1") }

// Error returns an error whose text has no userinfo, or nil if err is nil. The result wraps
// err, so errors.Is and errors.As have the same results as for err.
func Error(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	var parse *url.Error
	if errors.As(err, &parse) && parse.Op == "parse" {
		// This error quotes the address, and its reason quotes a part of it.
		text = strings.ReplaceAll(text, parse.Error(), "an address cannot be read")
	}
	if text = Text(text); text == err.Error() {
		return err
	}
	return &redacted{err, text}
}

type redacted struct {
	error
	text string
}

func (e *redacted) Error() string { return e.text }
func (e *redacted) Unwrap() error { return e.error }
