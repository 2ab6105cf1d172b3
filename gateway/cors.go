package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Pages of other origins may call the gateway if Config.Origins lists these (CORS). Browsers
// send no credentials of their own then: a page has to set Authorization itself.

// checkOrigin refuses what is no origin in the one spelling that browsers send.
func checkOrigin(origin string) error {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Contains(u.Host, "*") || u.Scheme+"://"+u.Host != origin || strings.ToLower(origin) != origin {
		return fmt.Errorf("gateway: New: Config.Origins: %.100q is not an origin such as https://locks.example, without a path and without *", origin)
	}
	return nil
}

const (
	corsMethods = "GET, POST, PUT, DELETE"
	corsHeaders = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Prefer, Qlock-Client, Qlock-Gateway, Qlock-Lease, Qlock-TTL, X-Request-Id, traceparent, tracestate"
	corsExposed = "ETag, Location, Preference-Applied, Qlock-Revision, Retry-After, X-Request-Id"
)

// cors sets the headers that browsers look for. It reports whether the request was a
// preflight and is answered.
func (g *Gateway) cors(e *exchange, r *http.Request) (answered bool) {
	if len(g.cfg.Origins) == 0 {
		return false
	}
	h := e.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if !slices.Contains(g.cfg.Origins, origin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", corsExposed)
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", corsMethods)
	h.Set("Access-Control-Allow-Headers", corsHeaders)
	h.Set("Access-Control-Max-Age", "600")
	e.WriteHeader(http.StatusNoContent)
	return true
}
