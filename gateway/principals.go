package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Who may do what is decided by NATS. With Config.Connect, the credentials of a request open
// a connection as that NATS user, and everything that the request does is done on it. The
// gateway's own user is never used for such a request.

// Credentials are those of a request over HTTP. Exactly one of User, Token and JWT is set.
type Credentials struct {
	User, Password string // HTTP Basic
	Token          string // HTTP Bearer
	JWT            string // HTTP Bearer, if it is a NATS user JWT. It must be a bearer JWT: no nonce is signed

	// Client is the client's name that the request wishes to have: from the header Qlock-Client,
	// otherwise the user's name, if it can be one, otherwise Config.Client. NATS decides whether
	// it may have that name.
	Client string
}

// Options are the options with which nats.Connect uses the credentials. Inboxes begin with
// _INBOX and the client's name, as docs/security.md has it.
func (c Credentials) Options() []nats.Option {
	opts := []nats.Option{nats.Name("qlock gateway for " + c.Client), nats.CustomInboxPrefix("_INBOX." + c.Client), nats.PermissionErrOnSubscribe(true)}
	switch {
	case c.JWT != "":
		jwt := c.JWT
		opts = append(opts, nats.UserJWT(func() (string, error) { return jwt, nil }, func([]byte) ([]byte, error) { return nil, nil }))
	case c.Token != "":
		opts = append(opts, nats.Token(c.Token))
	default:
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	}
	return opts
}

const (
	idleFor     = time.Minute     // before a connection that nobody uses is closed
	refusedFor  = 5 * time.Second // that a refused login is remembered
	loginTime   = 5 * time.Second
	loginsASec  = 2  // refused ones, of one address: each costs a connection
	loginBursts = 10 // and as many that are being tried
)

// login is a principal whose connection is being made, is there, or was refused.
type login struct {
	ready     chan struct{}
	principal *principal
	why       *Problem
	until     time.Time // a refusal is forgotten then

	use  int // requests; guarded by g.mu
	idle *time.Timer
}

// credentialsOf reads the credentials of a request.
func (g *Gateway) credentialsOf(r *http.Request) (Credentials, *Problem) {
	missing := func(detail string) (Credentials, *Problem) {
		return Credentials{}, problem("unauthenticated", "%s", detail)
	}
	var c Credentials
	values := r.Header.Values("Authorization")
	if cert := certificateOf(r); cert != nil && len(values) == 0 && g.cfg.MapCertificate != nil {
		if now := time.Now(); now.After(cert.NotAfter) { // the connection may be older
			return missing("the client certificate has expired")
		}
		mapped, err := g.cfg.MapCertificate(cert)
		if err != nil {
			return missing(err.Error())
		}
		return g.named(mapped, r)
	}
	if len(values) != 1 {
		return missing("send the credentials of a NATS user in one header Authorization, as Basic or Bearer")
	}
	scheme, value, _ := strings.Cut(values[0], " ")
	value = strings.TrimSpace(value)
	switch strings.ToLower(scheme) {
	case "basic":
		user, password, ok := r.BasicAuth()
		if !ok || user == "" || password == "" {
			return missing("the header Authorization has no user and password")
		}
		c.User, c.Password = user, password
	case "bearer":
		switch {
		case value == "":
			return missing("the header Authorization has no token")
		case isSeed(value):
			return missing("this is a private key, which must not travel: use a user and password, a token, or a bearer JWT, and replace the key")
		case isUserJWT(value):
			if !isBearerJWT(value) {
				return missing("the JWT is not a bearer JWT: its user would have to sign a nonce of the NATS server")
			}
			c.JWT = value
		default:
			c.Token = value
		}
	default:
		return missing("send the credentials of a NATS user in the header Authorization, as Basic or Bearer")
	}
	return g.named(c, r)
}

// certificateOf is the verified certificate of the client.
func certificateOf(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

// named completes credentials with the client's name.
func (g *Gateway) named(c Credentials, r *http.Request) (Credentials, *Problem) {
	if c.Client == "" {
		c.Client = g.cfg.Client
		if isClientName(c.User) {
			c.Client = c.User
		}
	}
	if wish := r.Header.Get("Qlock-Client"); wish != "" {
		if !isClientName(wish) {
			return Credentials{}, invalid("Qlock-Client is not a client's name: 1 to 64 of A-Z a-z 0-9 _ -")
		}
		c.Client = wish
	}
	if c.Client == "" {
		return Credentials{}, invalid("send the header Qlock-Client with the client's name that the NATS user may have")
	}
	return c, nil
}

func isClientName(s string) bool { return isToken(s, 64) && !strings.Contains(s, ".") }

func isSeed(s string) bool {
	return strings.Contains(s, "-----BEGIN") || len(s) == 58 && strings.HasPrefix(s, "SU")
}

func jwtClaims(s string) []byte {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || !strings.HasPrefix(s, "eyJ") {
		return nil
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	return claims
}

func isUserJWT(s string) bool {
	var claims struct {
		NATS struct {
			Type string `json:"type"`
		} `json:"nats"`
	}
	return json.Unmarshal(jwtClaims(s), &claims) == nil && claims.NATS.Type == "user"
}

func isBearerJWT(s string) bool {
	var claims struct {
		NATS struct {
			Bearer bool `json:"bearer_token"`
		} `json:"nats"`
	}
	return json.Unmarshal(jwtClaims(s), &claims) == nil && claims.NATS.Bearer
}

// nameOfPrincipal is the same at all gateways that have the same secret. It tells nobody
// else anything of the credentials.
func (g *Gateway) nameOfPrincipal(c Credentials) string {
	h := hmac.New(sha256.New, g.secret)
	for _, s := range []string{c.User, c.Password, c.Token, c.JWT, c.Client} {
		var n [8]byte
		for i := range n {
			n[i] = byte(len(s) >> (8 * i))
		}
		h.Write(n[:])
		h.Write([]byte(s))
	}
	return "user/" + hex.EncodeToString(h.Sum(nil)[:16])
}

// principalOf is who sent a request. Call leave at the end of the request.
func (g *Gateway) principalOf(r *http.Request) (who *principal, leave func(), _ *Problem) {
	if g.cfg.Connect == nil {
		return g.only, func() {}, nil
	}
	c, p := g.credentialsOf(r)
	if p != nil {
		return nil, nil, p
	}
	name, now := g.nameOfPrincipal(c), time.Now()
	g.mu.Lock()
	l := g.logins[name]
	if l != nil && l.isOver(now) {
		g.dropLogin(name, l)
		l = nil
	}
	if l == nil {
		if p := g.admitLogin(addressOf(r), now); p != nil {
			g.mu.Unlock()
			return nil, nil, p
		}
		l = &login{ready: make(chan struct{})}
		g.logins[name] = l
		g.serving.Add(1) // for the connection; admitLogin has seen that Shutdown does not wait yet
		go g.connect(name, l, c, addressOf(r))
	}
	l.use++
	if l.idle != nil {
		l.idle.Stop()
		l.idle = nil
	}
	g.mu.Unlock()
	leave = func() { g.leaveLogin(name, l) }
	select {
	case <-l.ready:
	case <-r.Context().Done():
		leave()
		return nil, nil, problem("unreachable", "the request has ended")
	}
	if l.why != nil {
		leave()
		why := *l.why
		return nil, nil, &why
	}
	return l.principal, leave, nil
}

// isOver reports whether a login can be forgotten because it was refused long enough ago, or
// because NATS has closed its connection for good. g.mu is held.
func (l *login) isOver(now time.Time) bool {
	select {
	case <-l.ready:
		return l.why != nil && !now.Before(l.until) || l.principal != nil && l.principal.nc.IsClosed()
	default:
		return false
	}
}

// admitLogin makes room for one more connection. g.mu is held.
func (g *Gateway) admitLogin(address string, now time.Time) *Problem {
	if g.closed {
		return problem("draining", "the gateway has stopped")
	}
	if wait := g.refusals.peek(address, loginsASec, loginBursts, now); wait > 0 {
		p := problem("too-many", "NATS has refused too many credentials from this address, or is asked about too many at once")
		p.retryAfter = wait
		return p
	}
	if len(g.logins) < g.limits.Principals {
		g.refusals.spend(address, loginsASec, loginBursts, now)
		return nil
	}
	for name, l := range g.logins {
		if l.use == 0 && (l.isOver(now) || l.principal != nil && l.principal.isIdle() || l.why != nil) {
			g.dropLogin(name, l)
			g.refusals.spend(address, loginsASec, loginBursts, now)
			return nil
		}
	}
	return problem("too-many", "%d NATS users use this gateway, which is the limit", len(g.logins))
}

// connect makes the connection of a principal.
func (g *Gateway) connect(name string, l *login, c Credentials, address string) {
	defer g.serving.Done()
	ctx, cancel := context.WithTimeout(context.Background(), loginTime)
	defer cancel()
	nc, err := g.cfg.Connect(ctx, c)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		g.refusals.giveBack(address, loginBursts)
		l.principal = &principal{g: g, name: name, lockers: &lockers{g: g, nc: nc, client: c.Client}}
	case errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) || strings.Contains(strings.ToLower(err.Error()), "authorization violation"):
		l.why, l.until = problem("unauthenticated", "NATS does not accept these credentials"), time.Now().Add(refusedFor)
		g.counters.refused.Add(1)
	default:
		g.log.Warn("a connection for a request could not be made", "error", err)
		l.why, l.until = problem("unreachable", "NATS could not be reached with these credentials"), time.Now().Add(time.Second)
	}
	close(l.ready)
}

// leaveLogin is for the end of a request.
func (g *Gateway) leaveLogin(name string, l *login) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.use--
	if l.use == 0 && g.logins[name] == l && l.idle == nil {
		l.idle = time.AfterFunc(idleFor, func() { g.idleLogin(name, l) })
	}
}

// idleLogin closes a connection that nobody uses.
func (g *Gateway) idleLogin(name string, l *login) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case l.use > 0 || g.logins[name] != l:
	case l.principal != nil && !l.principal.isIdle() && !l.principal.nc.IsClosed():
		l.idle = time.AfterFunc(idleFor, func() { g.idleLogin(name, l) })
	default:
		g.dropLogin(name, l)
	}
}

// dropLogin forgets a login, and closes its connection. g.mu is held.
func (g *Gateway) dropLogin(name string, l *login) {
	if g.closed {
		return // Shutdown does it
	}
	delete(g.logins, name)
	if l.idle != nil {
		l.idle.Stop()
	}
	if l.principal == nil {
		return
	}
	g.serving.Add(1)
	go func() {
		defer g.serving.Done()
		_ = l.principal.end() // its leases are over, or lost with its connection
	}()
}

// isIdle reports whether nothing needs the connection. g.mu is held.
func (p *principal) isIdle() bool { return p.leases+p.kept+p.streams == 0 }

// end closes what a principal with credentials has.
func (p *principal) end() error {
	err := p.close()
	p.nc.Close()
	return err
}

// closeLogins ends all connections of principals. No request is being served.
func (g *Gateway) closeLogins() []error {
	g.mu.Lock()
	all := g.logins
	g.logins = map[string]*login{}
	for _, l := range all {
		if l.idle != nil {
			l.idle.Stop()
		}
	}
	g.mu.Unlock()
	var errs []error
	for _, l := range all {
		if <-l.ready; l.principal != nil {
			errs = append(errs, l.principal.end())
		}
	}
	return errs
}

// caller is a principal of the NATS door. It acts as the gateway's own NATS user, and its
// leases are its own.
func (g *Gateway) caller(name string) (*principal, func(), *Problem) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.callers[name]
	if p == nil {
		if len(g.callers) >= g.limits.Principals {
			return nil, nil, problem("too-many", "%d callers use this gateway, which is the limit", len(g.callers))
		}
		p = &principal{g: g, name: "caller/" + name, prefix: name + ": ", lockers: g.only.lockers}
		g.callers[name] = p
	}
	p.use++
	return p, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if p.use--; p.isIdle() && p.use == 0 && g.callers[name] == p {
			delete(g.callers, name)
		}
	}, nil
}
