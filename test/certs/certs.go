// Package certs makes certificates for tests.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates; only who is given its File trusts them.
type Authority struct {
	File string // PEM

	t    testing.TB
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// New returns an authority whose files are in a directory of the test's own.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, dir: t.TempDir()}
	a.File, _ = a.Issue("ca", time.Now().Add(time.Hour))
	return a
}

// Issue writes a certificate for 127.0.0.1, ::1 and localhost and its key, in PEM.
// It is valid until until, from an hour ago or from an hour before that, whichever
// is earlier. An earlier one of the same name is replaced. With hosts it is for these
// names instead.
func (a *Authority) Issue(name string, until time.Time, hosts ...string) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	a.must(err)
	from := time.Now()
	if until.Before(from) {
		from = until
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: from.Add(-time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if len(hosts) > 0 {
		c.IPAddresses, c.DNSNames = nil, hosts
	}
	if a.cert == nil { // the authority's own
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		a.cert, a.key = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	a.must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	a.must(err)
	certFile, keyFile = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		a.must(os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	}
	return certFile, keyFile
}

// Client is the configuration of a client that trusts the authority, with the
// certificate of that name unless it is "".
func (a *Authority) Client(name string) *tls.Config {
	a.t.Helper()
	pemCA, err := os.ReadFile(a.File)
	a.must(err)
	c := &tls.Config{RootCAs: x509.NewCertPool()}
	c.RootCAs.AppendCertsFromPEM(pemCA)
	if name != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key"))
		a.must(err)
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

func (a *Authority) must(err error) {
	if err != nil {
		a.t.Helper()
		a.t.Fatal(err)
	}
}
