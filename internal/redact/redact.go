// Package redact takes user names, passwords and tokens out of what is shown of
// server addresses. An address may be wrong in any way, as one is whose password was
// not encoded, so nothing here relies on an address that can be parsed. Where a text can
// be read in two ways, more is left out.
package redact

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
)

// URL is one address without its userinfo.
func URL(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "", s
	} else {
		scheme += "://"
	}
	return scheme + rest[strings.LastIndexByte(rest, '@')+1:]
}

// URLs is a list of addresses, separated by commas, without userinfo.
func URLs(s string) string {
	var list []string
	for _, part := range strings.Split(s, ",") {
		// What has no scheme may be the rest of a password that has a comma.
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

// Misread reports whether what was read of an address has a part of a password outside
// of its userinfo: one with a character that ends it, as / and # do, of which another
// part is taken for the host, and asked of the network.
func Misread(u *url.URL) bool {
	return strings.Contains(u.Path+u.RawQuery+u.Fragment, "@")
}

var userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)\S*@`)

// Text is a text without the userinfo of the addresses in it.
func Text(s string) string { return userinfo.ReplaceAllString(s, "$1") }

// Error is an error whose text has no userinfo; errors.Is and errors.As find what they
// found before.
func Error(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	var parse *url.Error
	if errors.As(err, &parse) && parse.Op == "parse" {
		// It quotes the address, and the reason quotes a part of it.
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
