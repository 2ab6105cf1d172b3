//go:build unix

package cli

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock/qlocktest"
)

// Requests with a client certificate act as the NATS user of --map-cert. The NATS server
// wants a certificate of every client, and gets that of --auth-tlscert.
func TestGatewayCertificates(t *testing.T) {
	t.Parallel()
	ca := qlocktest.NewAuthority(t, "test authority")
	files := map[string]qlocktest.Files{}
	certs := map[string]tls.Certificate{}
	for _, name := range []string{"server", "gateway", "billing", "stranger"} {
		files[name] = ca.WriteFiles(t, t.TempDir(), name)
		cert, err := tls.LoadX509KeyPair(files[name].Cert, files[name].Key)
		if err != nil {
			t.Fatal(err)
		}
		certs[name] = cert
	}
	pem, err := os.ReadFile(files["server"].CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	start := func(mapped bool) string {
		s := startNATS(t, func(o *server.Options) {
			o.TLS, o.TLSVerify, o.TLSMap, o.TLSTimeout = true, true, mapped, 10
			o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certs["server"]}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
			o.Users = []*server.User{{Username: "node", Password: "pw"}, {Username: "CN=gateway"}, {Username: "svc-a", Password: "pw-a"}}
		})
		return strings.Replace(s.ClientURL(), "nats://", "tls://", 1)
	}
	url := start(false)
	trust := []string{"--tlsca", files["server"].CA, "--tlscert", files["gateway"].Cert, "--tlskey", files["gateway"].Key}
	n := launch(t, bootstrapped(t, append([]string{"node", "--server", url, "--user", "node", "--password", "pw", "--name", "n1", "--nodes", "n1", "--max-lease", testMaxLease}, trust...)...)...)
	n.says(n.err, "ready: this node votes")
	users := filepath.Join(t.TempDir(), "users.json")
	if err := os.WriteFile(users, []byte(`{"CN=billing": {"user": "svc-a", "password": "pw-a"}, "CN=other": {"token": "x", "client": "y"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"gateway", "-s", url, "--user", "node", "--password", "pw", "--http", "127.0.0.1:0", "--auth", "nats", "--http-cert", files["server"].Cert, "--http-key", files["server"].Key,
		"--http-ca", files["server"].CA, "--map-cert", users, "--drain", "1ms"}, trust...)
	door := gatewayURL(t, launch(t, append(args, "--auth-tlscert", files["gateway"].Cert, "--auth-tlskey", files["gateway"].Key)...))
	for _, c := range []struct {
		cert   string
		status int
		words  string
	}{{"billing", 201, `"state":"held"`}, {"stranger", 401, "CN=stranger"}, {"", 401, "Authorization"}} {
		config := &tls.Config{RootCAs: pool}
		if c.cert != "" {
			config.Certificates = []tls.Certificate{certs[c.cert]}
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		a, err := client.Post(door+"/v1/locks/x", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(a.Body)
		_ = a.Body.Close()
		if a.StatusCode != c.status || !strings.Contains(string(body), c.words) {
			t.Errorf("%s: %s %s", c.cert, a.Status, body)
		}
	}
	sees(t, append([]string{"ls", "-s", url, "--user", "node", "--password", "pw"}, trust...), 0, "svc-a")

	// At a server that takes the user from the certificate, any token would do.
	args = append([]string{"gateway", "-s", start(true), "--http", "127.0.0.1:0", "--auth", "nats"}, trust...)
	qlockCmd(t, append(args, "--auth-tlscert", files["gateway"].Cert, "--auth-tlskey", files["gateway"].Key)...).want(t, exitFailed, "--auth-tlscert", "credentials that nobody has")
}

// A NATS server that accepts everybody is no use to --auth nats.
func TestGatewayAuthWithoutUsers(t *testing.T) {
	t.Parallel()
	s := startNATS(t)
	qlockCmd(t, "gateway", "-s", s.ClientURL(), "--http", "127.0.0.1:0", "--auth", "nats").want(t, exitFailed, "--auth nats", "credentials that nobody has")
}

func TestMapCertificates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "map.json")
	load := func(text string) (err error) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = mapCertificates(file)
		return err
	}
	for text, word := range map[string]string{
		`{}`: "", `{"CN=a": {"token": "x"}}`: "", `{"URI:spiffe://a/b": {"jwt": "x", "client": "c"}}`: "",
		`[]`: "JSON object", ``: "JSON object", `{"CN=a": {"pass": "x"}}`: "JSON object", `{} x`: "JSON object",
		`{"CN=a": {}}`: "needs user", `{"CN=a": {"user": "u"}}`: "needs user", `{"CN=a": {"user": "u", "password": "p", "token": "t"}}`: "needs user",
		`{"billing": {"token": "x"}}`: "neither a subject",
	} {
		if err := load(text); (err == nil) != (word == "") || err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := load(`{"CN=a": {"token": "x"}, "DNS:b": {"token": "y"}, "DNS:c": {"token": "x"}}`); err != nil {
		t.Fatal(err)
	}
	find, err := mapCertificates(file)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{DNSNames: []string{"b"}}
	cert.Subject.CommonName = "a"
	if _, err := find(cert); err == nil || !strings.Contains(err.Error(), "several users") {
		t.Error(err)
	}
	cert.DNSNames = []string{"c", "d"}
	if c, err := find(cert); err != nil || c.Token != "x" {
		t.Errorf("%v %v", c, err)
	}
}
