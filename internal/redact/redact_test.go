package redact

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func TestURLs(t *testing.T) {
	for in, want := range map[string]string{
		"":                                      "",
		"127.0.0.1:4222":                        "127.0.0.1:4222",
		"nats://h:4222":                         "nats://h:4222",
		"nats://u:pw@h:4222":                    "nats://h:4222",
		"nats://tok@h":                          "nats://h",
		"u:pw@h":                                "h",
		"tls://u:p@w@h,nats://h2":               "tls://h,nats://h2",
		"nats://u:p/w@h":                        "nats://h",
		"nats://u:p,w@h":                        "nats://h",
		"nats://u:p://w@h":                      "nats://h",
		"nats://u:%zz@h:4222,nats://u:pw@[::1]": "nats://h:4222,nats://[::1]",
	} {
		if got := URLs(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestMisread(t *testing.T) {
	for address, want := range map[string]bool{
		"nats://h:4222": false, "nats://u:p@h": false, "wss://u:p@h/path?x=y#z": false, "nats://u:p%40%23w@h": false,
		"nats://u:p@w#x@h": true, "nats://u:12/x@h": true, "nats://u:12?x@h": true, "nats://u:p@w/x@h": true,
	} {
		u, err := url.Parse(address)
		if err != nil || Misread(u) != want {
			t.Errorf("%s: %v, want %v; %v", address, !want, want, err)
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"dial tcp 127.0.0.1:6222: refused":             "dial tcp 127.0.0.1:6222: refused",
		`route "nats://u:pw@h:6222" and nats://t@h2 x`: `route "nats://h:6222" and nats://h2 x`,
	} {
		if got := Text(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestError(t *testing.T) {
	plain := errors.New("plain")
	if Error(nil) != nil || Error(plain) != plain {
		t.Error("an error without an address is another")
	}
	for _, address := range []string{"nats://u:S3cret/x@h", "nats://u:S3cret%zz@h", "nats://u:S3 cret@h", "nats://u:S3cret\x7f@h", "%S3cret"} {
		_, err := url.Parse(address)
		if err == nil {
			t.Fatalf("%q can be parsed", address)
		}
		got := Error(fmt.Errorf("connect: %w: %w", err, plain))
		if strings.Contains(got.Error(), "S3") || !strings.HasSuffix(got.Error(), ": plain") {
			t.Errorf("%q: %v", address, got)
		}
		if !errors.Is(got, plain) {
			t.Errorf("%v is not found in %v", plain, got)
		}
	}
}
