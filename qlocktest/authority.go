package qlocktest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority issues certificates for tests. They are valid for a day, for servers and for
// clients, and for the addresses 127.0.0.1, localhost and the name in the certificate.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// NewAuthority creates an authority. Its name appears in error messages.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	a, err := newAuthority(name)
	if err != nil {
		t.Fatalf("qlocktest: NewAuthority: %v", err)
	}
	return a
}

func newAuthority(name string) (*Authority, error) {
	template, err := template(name)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &Authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a, nil
}

func template(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
	}, nil
}

// Pool returns a pool with the authority's own certificate, for tls.Config.RootCAs and
// ClientCAs.
func (a *Authority) Pool() *x509.CertPool { return a.pool.Clone() }

// Certificate issues a certificate with a new key.
func (a *Authority) Certificate(t testing.TB, name string) tls.Certificate {
	t.Helper()
	cert, err := a.issue(name)
	if err != nil {
		t.Fatalf("qlocktest: a certificate for %s: %v", name, err)
	}
	return cert
}

func (a *Authority) issue(name string) (tls.Certificate, error) {
	template, err := template(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.IPAddresses, template.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{name, "localhost"}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Config returns a configuration for a server or a client. It has a certificate for name,
// and trusts the certificates of the authority. A server that requires certificates of its
// clients needs ClientAuth as well.
func (a *Authority) Config(t testing.TB, name string) *tls.Config {
	t.Helper()
	c, err := a.config(name)
	if err != nil {
		t.Fatalf("qlocktest: a certificate for %s: %v", name, err)
	}
	return c
}

func (a *Authority) config(name string) (*tls.Config, error) {
	cert, err := a.issue(name)
	if err != nil {
		return nil, err
	}
	c := a.trust()
	c.Certificates, c.ClientCAs = []tls.Certificate{cert}, a.pool
	return c, nil
}

// trust returns a configuration for a client without a certificate.
func (a *Authority) trust() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.pool}
}

// Files are the paths of PEM files.
type Files struct{ Cert, Key, CA string }

// WriteFiles issues a certificate for name and writes it to dir, as cert.pem, key.pem and
// ca.pem. It overwrites existing files.
func (a *Authority) WriteFiles(t testing.TB, dir, name string) Files {
	t.Helper()
	f, err := a.writeFiles(dir, name)
	if err != nil {
		t.Fatalf("qlocktest: a certificate for %s: %v", name, err)
	}
	return f
}

func (a *Authority) writeFiles(dir, name string) (Files, error) {
	cert, err := a.issue(name)
	if err != nil {
		return Files{}, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return Files{}, err
	}
	f := Files{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")}
	for path, block := range map[string]*pem.Block{
		f.Cert: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		f.Key:  {Type: "PRIVATE KEY", Bytes: key},
		f.CA:   {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			return Files{}, fmt.Errorf("write %s: %w", path, err)
		}
	}
	return f, nil
}
