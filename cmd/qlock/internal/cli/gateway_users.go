package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/gateway"
)

// connectAs makes connections to the servers of a link as other users. Nothing is left of
// what tells the servers who the link's own user is, so that no request can act as that.
// cert, if it is not nil, is the certificate that servers want of every client.
func connectAs(l *link, cert *tls.Certificate) func(context.Context, gateway.Credentials) (*nats.Conn, error) {
	return func(_ context.Context, c gateway.Credentials) (*nats.Conn, error) {
		o := nats.GetDefaultOptions()
		own := &l.Opts
		for _, s := range own.Servers {
			u, err := parseServer(s)
			if err != nil {
				return nil, err
			}
			u.User = nil
			o.Servers = append(o.Servers, u.String())
		}
		o.Secure, o.TLSHandshakeFirst, o.RootCAsCB = own.Secure, own.TLSHandshakeFirst, own.RootCAsCB
		if own.TLSConfig != nil { // without its certificate, which a server may map to its user
			o.TLSConfig = own.TLSConfig.Clone()
			o.TLSConfig.Certificates, o.TLSConfig.GetClientCertificate = nil, nil
		}
		if cert != nil {
			if o.TLSConfig == nil {
				o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
			}
			o.Secure, o.TLSConfig.Certificates = true, []tls.Certificate{*cert}
		}
		o.Timeout, o.PingInterval, o.MaxPingsOut, o.CustomReconnectDelayCB, o.MaxReconnect = own.Timeout, own.PingInterval, own.MaxPingsOut, own.CustomReconnectDelayCB, -1
		o.AsyncErrorCB = func(*nats.Conn, *nats.Subscription, error) {} // the gateway answers 403
		for _, set := range c.Options() {
			if err := set(&o); err != nil {
				return nil, err
			}
		}
		return o.Connect()
	}
}

// connectUsers is how requests with credentials connect. A server that maps certificates to
// users (verify_and_map) takes the user from the certificate, and then compares the passwords:
// that user's is empty as a rule, and so is that of a client with a token. Every such request
// would act as the certificate's user. A server without users accepts everybody. So the gateway
// first tries credentials that nobody has.
func (d *httpDoor) connectUsers(ctx context.Context, l *link) (func(context.Context, gateway.Credentials) (*nats.Conn, error), error) {
	var own *tls.Certificate
	if d.authCert != "" {
		cert, err := tls.LoadX509KeyPair(d.authCert, d.authKey)
		if err != nil {
			return nil, usage("--auth-tlscert and --auth-tlskey: %v", err)
		}
		own = &cert
	}
	connect := connectAs(l, own)
	for _, nobody := range []gateway.Credentials{{Token: rand.Text(), Client: "probe"}, {User: "nobody-" + rand.Text(), Password: rand.Text(), Client: "probe"}} {
		nc, err := connect(ctx, nobody)
		switch {
		case err == nil && own != nil:
			nc.Close()
			return nil, errors.New("--auth-tlscert: the NATS server accepts this certificate with credentials that nobody has, so every request would act as the user of the certificate: use a certificate that the server maps to nobody, or turn off its verify_and_map")
		case err == nil:
			nc.Close()
			return nil, errors.New("--auth nats: the NATS server accepts credentials that nobody has, so every request would be served: give the server users")
		case !errors.Is(err, nats.ErrAuthorization):
			return nil, fmt.Errorf("--auth nats: the NATS server did not say whether it accepts credentials that nobody has: %w", err)
		}
	}
	return connect, nil
}

// mappedUser is an entry of --map-cert.
type mappedUser struct {
	User     string `json:"user"`
	Password string `json:"password"`
	Token    string `json:"token"`
	JWT      string `json:"jwt"`
	Client   string `json:"client"`
}

// mapCertificates reads --map-cert: a JSON object whose keys are names of certificates.
func mapCertificates(file string) (func(*x509.Certificate) (gateway.Credentials, error), error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--map-cert: %w", err)
	}
	var all map[string]mappedUser
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil || d.More() {
		return nil, usage("--map-cert: %s is not a JSON object such as {\"CN=billing\": {\"user\": \"svc-a\", \"password\": \"…\"}}", file)
	}
	for name, u := range all {
		ways := 0
		for _, s := range []string{u.User, u.Token, u.JWT} {
			if s != "" {
				ways++
			}
		}
		if ways != 1 || (u.User == "") != (u.Password == "") {
			return nil, usage("--map-cert: %q needs user and password, or token, or jwt", name)
		}
		if kind, _, _ := strings.Cut(name, ":"); !strings.Contains(name, "=") && kind != "DNS" && kind != "URI" && kind != "email" {
			return nil, usage("--map-cert: %q is neither a subject such as CN=billing,O=Acme nor begins with DNS:, URI: or email:", name)
		}
	}
	return func(cert *x509.Certificate) (gateway.Credentials, error) {
		var found *mappedUser
		for _, name := range certificateNames(cert) {
			u, ok := all[name]
			if ok && found != nil && u != *found {
				return gateway.Credentials{}, errors.New("the names in the client certificate belong to several users at this gateway")
			}
			if ok {
				found = &u
			}
		}
		if found == nil {
			return gateway.Credentials{}, fmt.Errorf("this gateway knows no user for the client certificate with the subject %.200q", cert.Subject.String())
		}
		return gateway.Credentials{User: found.User, Password: found.Password, Token: found.Token, JWT: found.JWT, Client: found.Client}, nil
	}, nil
}

// certificateNames are the names of a certificate as --map-cert has them.
func certificateNames(cert *x509.Certificate) []string {
	names := []string{cert.Subject.String()}
	for _, s := range cert.DNSNames {
		names = append(names, "DNS:"+s)
	}
	for _, u := range cert.URIs {
		names = append(names, "URI:"+u.String())
	}
	for _, s := range cert.EmailAddresses {
		names = append(names, "email:"+s)
	}
	return names
}

// tlsConfig is what clients over HTTPS may show.
func (d *httpDoor) tlsConfig() (*tls.Config, error) {
	if d.clientCA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(d.clientCA)
	if err != nil {
		return nil, fmt.Errorf("--http-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, usage("--http-ca: %s has no certificate", d.clientCA)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}, nil
}
