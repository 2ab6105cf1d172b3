package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Pages of the origins that are listed may call the gateway, and no others.
func TestOrigins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		const page = "https://locks.example"
		g := w.gateway(func(c *Config) { c.Origins = []string{page} })
		preflight := []string{"Origin", page, "Access-Control-Request-Method", "PUT"}
		a := ask(t, g, "OPTIONS", "/v1/leases/x", "", preflight...).want(t, 204, "")
		if h := a.header; h.Get("Access-Control-Allow-Origin") != page || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization") || h.Get("Vary") != "Origin" || h.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%v", h)
		}
		a = ask(t, g, "POST", "/v1/locks/x", "", "Origin", page, "Sec-Fetch-Site", "cross-site").want(t, 201, "")
		if h := a.header; h.Get("Access-Control-Allow-Origin") != page || !strings.Contains(h.Get("Access-Control-Expose-Headers"), "Location") {
			t.Errorf("%v", h)
		}
		// Errors can be read by the page as well.
		if a = ask(t, g, "POST", "/v1/locks/x", "", "Origin", page).want(t, 409, "held"); a.header.Get("Access-Control-Allow-Origin") != page {
			t.Errorf("%v", a.header)
		}
		for _, other := range []string{"https://evil.example", "http://locks.example", page + ".evil.example", page + ":8443", "null", "*"} {
			if a := ask(t, g, "OPTIONS", "/v1/leases/x", "", "Origin", other, "Access-Control-Request-Method", "PUT"); a.header.Get("Access-Control-Allow-Origin") != "" || a.status == 204 {
				t.Errorf("%s: %s %v", other, a, a.header)
			}
			if a := ask(t, g, "POST", "/v1/locks/y", "", "Origin", other, "Sec-Fetch-Site", "cross-site").want(t, 403, "cross-origin"); a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("Vary") != "Origin" {
				t.Errorf("%s: %v", other, a.header)
			}
		}
		// The name of the host is checked for them too.
		ask(t, g, "OPTIONS", "/v1/leases/x", "", append(preflight, "Host", "evil.example")...).want(t, 421, "wrong-host")
		if a := ask(t, g, "GET", "/v1/locks", ""); a.header.Get("Vary") != "Origin" || a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%v", a.header)
		}
		if a := ask(t, w.gateway(), "OPTIONS", "/v1/leases/x", "", preflight...); a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("Vary") != "" {
			t.Errorf("%v", a.header)
		}
		for _, bad := range []string{"*", "https://*.example", "locks.example", "https://locks.example/", "https://Locks.example", "null", "", "ftp://x"} {
			if _, err := New(t.Context(), Config{Conn: w.connect().Conn, Origins: []string{bad}}); err == nil || !strings.Contains(err.Error(), "Origins") {
				t.Errorf("%q: %v", bad, err)
			}
		}
	})
}

// One address cannot take all streams of a gateway without credentials.
func TestAddressStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway(func(c *Config) { c.Limits.Streams, c.Limits.AddressStreams = 10, 2 })
		ctx, cancel := context.WithCancel(t.Context())
		defer settle()
		defer cancel()
		etag := ask(t, g, "GET", "/v1/locks", "").header.Get("ETag")
		open := func(path, address string) chan int {
			done := make(chan int, 1)
			r := httptest.NewRequestWithContext(ctx, "GET", "http://localhost"+path, nil)
			r.RemoteAddr = address
			r.Header.Set("If-None-Match", etag)
			r.Header.Set("Prefer", "wait=50")
			go func() {
				a := httptest.NewRecorder()
				g.ServeHTTP(a, r)
				done <- a.Code
			}()
			settle()
			return done
		}
		open("/v1/events", "10.0.0.1:1000")
		list := open("/v1/locks", "10.0.0.1:1001")
		for _, path := range []string{"/v1/events", "/v1/locks"} {
			select {
			case code := <-open(path, "10.0.0.1:1002"):
				if code != 429 {
					t.Errorf("%s: %d", path, code)
				}
			default:
				t.Errorf("%s: a third stream is open", path)
			}
		}
		open("/v1/events", "10.0.0.2:1000")
		if s := g.Stats().Streams; s != 3 {
			t.Errorf("%d streams", s)
		}
		time.Sleep(50 * time.Second)
		if code := <-list; code != 304 {
			t.Errorf("%d", code)
		}
		open("/v1/events", "10.0.0.1:1003")
		if s := g.Stats().Streams; s != 3 {
			t.Errorf("%d streams", s)
		}
		cancel()
		settle()
		if len(g.streams) != 0 {
			t.Errorf("%v are left", g.streams)
		}
	})
}

// A client certificate stands for the NATS user that the gateway's configuration names.
func TestCertificates(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := authWorld(t)
		var dials atomic.Int64
		g := w.gatewayForUsers(&dials, func(c *Config) {
			c.MapCertificate = func(cert *x509.Certificate) (Credentials, error) {
				if cert.Subject.CommonName == "billing" {
					return Credentials{User: "svc-a", Password: "pw-svc-a"}, nil
				}
				return Credentials{}, fmt.Errorf("the certificate of %s is nobody's here", cert.Subject)
			}
		})
		send := func(cn string, verified bool, until time.Duration, auth string) *httptest.ResponseRecorder {
			r := httptest.NewRequest("POST", "http://localhost/v1/locks/orders.1", nil)
			cert := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, NotAfter: time.Now().Add(until)}
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
			if verified {
				r.TLS.VerifiedChains = [][]*x509.Certificate{{cert}}
			}
			if auth != "" {
				r.Header.Set("Authorization", auth)
			}
			a := httptest.NewRecorder()
			g.ServeHTTP(a, r)
			return a
		}
		held := send("billing", true, time.Hour, "")
		if held.Code != 201 {
			t.Fatalf("%d %s", held.Code, held.Body)
		}
		// It is the user, with all that is the user's.
		ask(t, g, "GET", held.Header().Get("Location"), "", "Authorization", basic("svc-a", "pw-svc-a")).want(t, 200, "")
		ask(t, g, "GET", held.Header().Get("Location"), "", "Authorization", basic("svc-b", "pw-svc-b")).want(t, 404, "unknown-lease")
		for name, a := range map[string]*httptest.ResponseRecorder{
			"unknown": send("other", true, time.Hour, ""), "unverified": send("billing", false, time.Hour, ""),
			"expired": send("billing", true, -time.Second, ""), "bad credentials": send("billing", true, time.Hour, "Basic x"),
		} {
			if a.Code != 401 {
				t.Errorf("%s: %d %s", name, a.Code, a.Body)
			}
		}
		if a := send("billing", true, time.Hour, basic("svc-b", "pw-svc-b")); a.Code != 409 { // credentials count, not the certificate
			t.Errorf("%d %s", a.Code, a.Body)
		}
		if _, err := New(t.Context(), Config{Conn: w.connect().Conn, MapCertificate: func(*x509.Certificate) (Credentials, error) { return Credentials{}, errors.New("") }}); err == nil {
			t.Error("without Connect it is accepted")
		}
	})
}
