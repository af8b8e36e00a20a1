package listen

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority is a CA that a test makes.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	names []string // of the next certificates; nil: 127.0.0.1
}

var serials atomic.Int64

func (a *authority) sign(name string, notAfter time.Time, isCA bool) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(0xabc000 + serials.Add(1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter,
		IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if a.names != nil {
		c.IPAddresses = nil
	}
	for _, name := range a.names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	der, key := a.sign("test CA", time.Now().Add(time.Hour), true)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	return a
}

func (a *authority) issue(name string, notAfter time.Time) tls.Certificate {
	der, key := a.sign(name, notAfter, false)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// put writes a certificate and its key for a server, as one atomic step each.
func put(t *testing.T, dir string, c tls.Certificate) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	write(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func tlsOptions(t *testing.T, a *authority) (*TLSOptions, string) {
	dir := t.TempDir()
	put(t, dir, a.issue("server 1", time.Now().Add(time.Hour)))
	write(t, filepath.Join(dir, "ca.pem"), a.pem())
	return &TLSOptions{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}, dir
}

// shake is a client's handshake.
func shake(c net.Conn, o *tls.Config) (*tls.Conn, error) {
	tc := tls.Client(c, o)
	return tc, tc.Handshake()
}

// shakeInVain is a client's handshake and the first answer: with TLS 1.3 that is where
// it learns that it was refused.
func shakeInVain(c net.Conn, o *tls.Config) (*tls.Conn, error) {
	tc, err := shake(c, o)
	if err == nil {
		tc.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err = tc.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
	}
	return tc, err
}

func TestTLSClients(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	hour := time.Now().Add(time.Hour)
	good, expired, untrusted := a.issue("gw7", hour), a.issue("gw8", time.Now().Add(-time.Hour)), other.issue("gw9", hour)
	for _, tt := range []struct {
		name    string
		auth    ClientAuth
		cert    *tls.Certificate
		min     uint16 // of the server
		max     uint16 // of the client; 0: newest
		refused bool
		told    []string
	}{
		{name: "no client certificates", auth: ClientNone},
		{name: "one that nobody asked for", auth: ClientNone, cert: &untrusted},
		{name: "optional, none", auth: ClientOptional},
		{name: "optional, good", auth: ClientOptional, cert: &good},
		{name: "optional, untrusted", auth: ClientOptional, cert: &untrusted, refused: true, told: []string{"subject=\"CN=gw9\"", "unknown authority"}},
		{name: "required, none", auth: ClientRequired, refused: true, told: []string{"didn't provide a certificate", "TLS_CLIENT_AUTH=optional"}},
		{name: "required, good", auth: ClientRequired, cert: &good},
		{name: "required, good, TLS 1.2", auth: ClientRequired, cert: &good, max: tls.VersionTLS12},
		{name: "required, expired", auth: ClientRequired, cert: &expired, refused: true, told: []string{"CN=gw8", "serial=abc", "not_after=" + time.Now().Add(-time.Hour).UTC().Format("2006-01-02T15"), "expired"}},
		{name: "required, expired, TLS 1.2", auth: ClientRequired, cert: &expired, max: tls.VersionTLS12, refused: true, told: []string{"CN=gw8"}},
		{name: "too old", auth: ClientNone, min: tls.VersionTLS13, max: tls.VersionTLS12, refused: true, told: []string{"unsupported versions"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, dir := tlsOptions(t, a)
			o.ClientAuth, o.MinVersion = tt.auth, tt.min
			if tt.auth != ClientNone {
				o.ClientCAFile = filepath.Join(dir, "ca.pem")
			}
			r, log := newRecorder(), &logs{}
			s, stop := serve(t, Options{Network: "tcp", TLS: o, Open: r.open, Log: log.logger()})
			conf := &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1", MaxVersion: tt.max}
			if tt.cert != nil {
				conf.Certificates = []tls.Certificate{*tt.cert}
				// Go's client keeps a certificate to itself that the server's list of CAs does not fit.
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
			}
			raw, try := dial(t, s), shake
			if tt.refused {
				try = shakeInVain
			}
			c, err := try(raw, conf)
			if (err != nil) != tt.refused {
				t.Fatalf("the client's handshake: %v", err)
			}
			if !tt.refused {
				fmt.Fprint(c, "one\ntwo\n")
				eventually(t, "the messages", func() bool { return r.len() == 2 })
				if r.from[raw.LocalAddr().(*net.TCPAddr).AddrPort()] != 2 {
					t.Errorf("from %v", r.from)
				}
			}
			stop()
			failed := s.Stats.HandshakeCertificate.Load() + s.Stats.HandshakeOther.Load()
			if (failed == 1) != tt.refused || s.Stats.HandshakePlain.Load()+s.Stats.HandshakeTimeout.Load() != 0 {
				t.Errorf("%d failures counted", failed)
			}
			if n := strings.Count(log.String(), "\n"); tt.refused != (n == 1) {
				t.Errorf("%d log lines:\n%s", n, log)
			}
			for _, want := range append(tt.told, raw.LocalAddr().String()) {
				if tt.refused && !strings.Contains(log.String(), want) {
					t.Errorf("no %q in %s", want, log)
				}
			}
		})
	}
}

// What a TLS sender writes arrives whole, in records of any size, also what it wrote
// just before the stop, and the stop is told to it.
func TestTLSStream(t *testing.T) {
	a := newAuthority(t)
	o, _ := tlsOptions(t, a)
	r := newRecorder()
	s, stop := serve(t, Options{Network: "tcp", TLS: o, Open: r.open})
	c, err := shake(dial(t, s), &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	send := func(line string, step int) {
		want = append(want, line)
		for b := line + "\n"; b != ""; {
			n := min(step, len(b))
			if _, err := c.Write([]byte(b[:n])); err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
	}
	send("in single bytes", 1)
	eventually(t, "the first line", func() bool { return r.len() == 1 })
	send(strings.Repeat("x", 1<<20), 1<<20)
	for i := range 100 {
		send(fmt.Sprint("line ", i), 1000)
	}
	stop()
	if strings.Join(r.got, "|") != strings.Join(want, "|") {
		t.Errorf("%d messages, want %d", len(r.got), len(want))
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the end is not told: %v", err)
	}
}

// New connections get the new certificate, old ones go on, and files that can't be
// used change nothing.
func TestTLSReload(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	o, dir := tlsOptions(t, a)
	r, log := newRecorder(), &logs{}
	s, _ := serve(t, Options{Network: "tcp", TLS: o, Open: r.open, Log: log.logger()})
	conf := &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"}
	serverOf := func() string {
		t.Helper()
		c, err := shake(dial(t, s), conf)
		if err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	old, err := shake(dial(t, s), conf)
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(3 * time.Hour)
	put(t, dir, a.issue("server 2", later))
	s.tls.mu.Lock()
	s.tls.looked = time.Now()
	s.tls.mu.Unlock()
	if got := serverOf(); got != "server 1" {
		t.Errorf("%s: looked again within a second", got)
	}
	s.tls.mu.Lock()
	s.tls.looked = time.Time{} // as if a second had passed
	s.tls.mu.Unlock()
	if got := serverOf(); got != "server 2" || s.Stats.Reloads.Load() != 1 || s.Stats.CertificateExpires.Load() != later.Unix() {
		t.Errorf("%s, %d reloads, expires %d", got, s.Stats.Reloads.Load(), s.Stats.CertificateExpires.Load())
	}
	if err := s.Reload(); err != nil || s.Stats.Reloads.Load() != 2 {
		t.Errorf("reload of the same: %v", err)
	}

	write(t, o.CertFile, []byte("no certificate"))
	for range 3 {
		s.tls.mu.Lock()
		s.tls.looked = time.Time{}
		s.tls.mu.Unlock()
		if got := serverOf(); got != "server 2" {
			t.Errorf("%s after a broken file", got)
		}
	}
	if s.Stats.ReloadFailures.Load() != 1 || strings.Count(log.String(), "can't be used") != 1 {
		t.Errorf("%d failures, log\n%s", s.Stats.ReloadFailures.Load(), log)
	}
	if err := s.Reload(); err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_TLS_CERT_FILE: "+o.CertFile) {
		t.Errorf("reload of a broken file: %v", err)
	}
	put(t, dir, a.issue("server 3", later))
	if err := s.Reload(); err != nil || serverOf() != "server 3" {
		t.Errorf("after repair: %v", err)
	}
	fmt.Fprint(old, "still here\n")
	eventually(t, "a message on the old connection", func() bool { return r.len() == 1 })
}

func TestTLSFiles(t *testing.T) {
	a := newAuthority(t)
	for _, tt := range []struct {
		name   string
		change func(o *TLSOptions, dir string)
		want   string
	}{
		{"no certificate file", func(o *TLSOptions, dir string) { os.Remove(o.CertFile) }, "TLS_CERT_FILE: open "},
		{"no key file", func(o *TLSOptions, dir string) { os.Remove(o.KeyFile) }, "TLS_KEY_FILE: open "},
		{"key of another", func(o *TLSOptions, dir string) {
			b, _ := os.ReadFile(o.CertFile)
			put(t, dir, a.issue("other", time.Now().Add(time.Hour)))
			write(t, o.CertFile, b)
		}, "does not match"},
		{"encrypted key", func(o *TLSOptions, dir string) {
			write(t, o.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))
		}, "the key is encrypted: write its passphrase into a file and name that in SPILLWAY_INPUT_IN_TLS_KEY_PASSPHRASE_FILE"},
		{"old encrypted key", func(o *TLSOptions, dir string) {
			write(t, o.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES"}, Bytes: []byte("x")}))
		}, "the key is encrypted: write its passphrase into a file and name that in SPILLWAY_INPUT_IN_TLS_KEY_PASSPHRASE_FILE"},
		{"empty CA", func(o *TLSOptions, dir string) {
			o.ClientCAFile, o.ClientAuth = filepath.Join(dir, "ca.pem"), ClientRequired
			write(t, o.ClientCAFile, nil)
		}, "TLS_CLIENT_CA_FILE: "},
		{"auth without CA", func(o *TLSOptions, dir string) { o.ClientAuth = ClientOptional }, "TLS_CLIENT_AUTH=optional needs SPILLWAY_INPUT_IN_TLS_CLIENT_CA_FILE"},
		{"fingerprints without auth", func(o *TLSOptions, dir string) { o.ClientFingerprints = make([]Fingerprint, 1) }, "TLS_CLIENT_FINGERPRINTS: changes nothing"},
		{"names without CA", func(o *TLSOptions, dir string) {
			o.ClientFingerprints, o.ClientNames, o.ClientAuth = make([]Fingerprint, 1), make([]ClientName, 1), ClientRequired
		}, "TLS_CLIENT_NAMES needs"},
		{"no version left", func(o *TLSOptions, dir string) { o.MinVersion, o.MaxVersion = tls.VersionTLS13, tls.VersionTLS12 }, "TLS_MAX_VERSION: 1.2 is below SPILLWAY_INPUT_IN_TLS_MIN_VERSION, 1.3"},
		{"no curve left", func(o *TLSOptions, dir string) {
			o.MaxVersion, o.Curves = tls.VersionTLS12, []tls.CurveID{tls.X25519MLKEM768}
		}, "TLS_CURVES: X25519MLKEM768 is of TLS 1.3"},
		{"no suite for the key", func(o *TLSOptions, dir string) {
			o.MaxVersion, o.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}, "TLS_CIPHERS: none of them goes with the key of "},
		{"suites of nothing", func(o *TLSOptions, dir string) { o.MinVersion, o.CipherSuites = tls.VersionTLS13, []uint16{1} }, "TLS_CIPHERS: changes nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, dir := tlsOptions(t, a)
			tt.change(o, dir)
			s, err := Listen(Options{Network: "tcp", Address: "127.0.0.1:0", Variable: "SPILLWAY_INPUT_IN_", TLS: o, Log: quietLog})
			if err == nil {
				s.Close()
				t.Fatal("no error")
			}
			if !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_TLS_") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
	if s, err := Listen(Options{Network: "udp", Address: "127.0.0.1:0", Variable: "SPILLWAY_INPUT_IN_", TLS: first(tlsOptions(t, a)), Log: quietLog}); err == nil {
		s.Close()
		t.Error("TLS over udp is accepted")
	}
}

func first[A, B any](a A, _ B) A { return a }

// Who speaks the wrong language is told apart, counted, and makes no record.
func TestWrongPort(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	o, _ := tlsOptions(t, a)
	r, log := newRecorder(), &logs{}
	s, stop := serve(t, Options{Network: "tcp", TLS: o, Open: r.open, Log: log.logger()})
	for range 3 { // told once
		c := dial(t, s)
		fmt.Fprint(c, "<13>plain text\n")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("plain text is answered")
		}
	}
	c := dial(t, s) // looks like TLS and is none
	c.Write([]byte{22, 3, 1, 0, 4, 'j', 'u', 'n', 'k'})
	io.Copy(io.Discard, c)
	c = dial(t, s) // goes away in the middle
	c.Write([]byte{22, 3, 1, 0, 200, 1})
	c.Close()
	dial(t, s).Close() // looks whether the port is open
	eventually(t, "six connections", func() bool { return s.Stats.Connections.Load() == 6 && s.Stats.Open.Load() == 0 })
	stop()
	if s.Stats.HandshakePlain.Load() != 3 || s.Stats.HandshakeOther.Load() != 2 || strings.Count(log.String(), "takes TLS only") != 1 || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("%d plain, %d other, log\n%s", s.Stats.HandshakePlain.Load(), s.Stats.HandshakeOther.Load(), log)
	}

	log = &logs{}
	s, stop = serve(t, Options{Network: "tcp", Open: r.open, Log: log.logger()})
	if _, err := shake(dial(t, s), &tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Error("a handshake without TLS")
	}
	dial(t, s).Close()
	eventually(t, "both", func() bool { return s.Stats.Connections.Load() == 2 && s.Stats.Open.Load() == 0 })
	stop()
	if s.Stats.TLSOnPlain.Load() != 1 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "speaks TLS and this port does not") {
		t.Errorf("%d counted, log\n%s", s.Stats.TLSOnPlain.Load(), log)
	}
	if r.len() != 0 || len(r.from) != 0 {
		t.Errorf("records: %q", r.got)
	}
}

// A handshake that does not get on ends in time, and nobody waits for it meanwhile.
func TestTLSSlowHandshake(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	o, _ := tlsOptions(t, a)
	r, log := newRecorder(), &logs{}
	s, err := Listen(Options{Network: "tcp", Address: "127.0.0.1:0", TLS: o, Open: r.open, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	s.handshakeTime = 3 * time.Second
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, context.Background()); close(done) }()
	began := time.Now()
	silent, slow := dial(t, s), dial(t, s)
	slow.Write([]byte{22, 3, 1, 0, 200, 1})
	c, err := shake(dial(t, s), &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "meanwhile\n")
	eventually(t, "a message", func() bool { return r.len() == 1 })
	for _, c := range []net.Conn{silent, slow} {
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(began) < s.handshakeTime {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	}
	eventually(t, "the count", func() bool { return s.Stats.HandshakeTimeout.Load() == 2 })
	// The one that has shaken hands is not bound by it.
	fmt.Fprint(c, "later\n")
	eventually(t, "another message", func() bool { return r.len() == 2 })
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "not finished within 3s") {
		t.Errorf("log\n%s", log)
	}
	cancel()
	<-done
}

// The certificate of a client must be one of those that are listed, with a CA and without.
func TestTLSClientLists(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	hour := time.Now().Add(time.Hour)
	names := func(of *authority, cn string, names ...string) tls.Certificate {
		of.names = append([]string{}, names...)
		defer func() { of.names = nil }()
		return of.issue(cn, hour)
	}
	sum := func(c tls.Certificate, form string) string {
		if form == "sha-1" {
			return fmt.Sprintf("SHA-1:% X", sha1.Sum(c.Certificate[0]))
		}
		return fmt.Sprintf("sha-256:% x", sha256.Sum256(c.Certificate[0]))
	}
	plain, second := names(a, "gw7.example.com"), names(a, "gw8.example.com")
	expired, foreign := a.issue("gw9", time.Now().Add(-time.Hour)), names(other, "gw7.example.com")
	san := names(a, "cn.example.com", "gw7.example.com", "gw8.example.com")
	wild := names(a, "x", "*.gw.example.com")
	address := names(a, "gw7.example.com", "192.0.2.7")
	for _, tt := range []struct {
		name         string
		ca           bool
		auth         ClientAuth
		fingerprints []string
		names        []string
		cert         *tls.Certificate // nil: none
		refused      string           // what the log says; "": it is not
	}{
		{name: "SHA-256", ca: true, auth: ClientRequired, fingerprints: []string{sum(second, ""), sum(plain, "")}, cert: &plain},
		{name: "SHA-1", ca: true, auth: ClientRequired, fingerprints: []string{sum(plain, "sha-1")}, cert: &plain},
		{name: "another's fingerprint", ca: true, auth: ClientRequired, fingerprints: []string{sum(second, "")}, cert: &plain, refused: "add sha-256:" + strings.ToUpper(strings.ReplaceAll(sum(plain, "")[8:], " ", ":")) + " to SPILLWAY_INPUT_IN_TLS_CLIENT_FINGERPRINTS"},
		{name: "listed, but of another CA", ca: true, auth: ClientRequired, fingerprints: []string{sum(foreign, "")}, cert: &foreign, refused: "unknown authority"},
		{name: "listed, but expired", ca: true, auth: ClientRequired, fingerprints: []string{sum(expired, "")}, cert: &expired, refused: "expired"},
		{name: "without a CA", auth: ClientRequired, fingerprints: []string{sum(foreign, "")}, cert: &foreign},
		{name: "without a CA, SHA-1", auth: ClientRequired, fingerprints: []string{sum(foreign, "sha-1")}, cert: &foreign},
		{name: "without a CA, another's", auth: ClientRequired, fingerprints: []string{sum(foreign, "")}, cert: &plain, refused: "none of those that may send"},
		{name: "without a CA, none", auth: ClientRequired, fingerprints: []string{sum(foreign, "")}, refused: "didn't provide a certificate"},
		{name: "without a CA, optional, none", auth: ClientOptional, fingerprints: []string{sum(foreign, "")}},
		{name: "without a CA, optional, another's", auth: ClientOptional, fingerprints: []string{sum(foreign, "")}, cert: &plain, refused: "none of those that may send"},
		{name: "a name, common", ca: true, auth: ClientRequired, names: []string{"GW7.example.com"}, cert: &plain},
		{name: "another name", ca: true, auth: ClientRequired, names: []string{"gw8.example.com"}, cert: &plain, refused: "add gw7.example.com to SPILLWAY_INPUT_IN_TLS_CLIENT_NAMES"},
		{name: "a name, the second SAN", ca: true, auth: ClientRequired, names: []string{"gw9.example.com", "gw8.example.com"}, cert: &san},
		{name: "with SANs the common name is none", ca: true, auth: ClientRequired, names: []string{"cn.example.com"}, cert: &san, refused: "gw7.example.com,gw8.example.com"},
		{name: "nor with an address", ca: true, auth: ClientRequired, names: []string{"gw7.example.com"}, cert: &address, refused: "192.0.2.7"},
		{name: "an address", ca: true, auth: ClientRequired, names: []string{"192.0.2.7"}, cert: &address},
		{name: "another address", ca: true, auth: ClientRequired, names: []string{"192.0.2.8"}, cert: &address, refused: "none of the names"},
		{name: "any name under one", ca: true, auth: ClientRequired, names: []string{"*.example.com"}, cert: &plain},
		{name: "one label only", ca: true, auth: ClientRequired, names: []string{"*.com"}, cert: &plain, refused: "none of the names"},
		{name: "a certificate for any name", ca: true, auth: ClientRequired, names: []string{"a.gw.example.com"}, cert: &wild},
		{name: "but for one label", ca: true, auth: ClientRequired, names: []string{"a.b.gw.example.com"}, cert: &wild, refused: "none of the names"},
		{name: "a name, but of another CA", ca: true, auth: ClientRequired, names: []string{"gw7.example.com"}, cert: &foreign, refused: "unknown authority"},
		{name: "name and fingerprint", ca: true, auth: ClientRequired, names: []string{"gw7.example.com"}, fingerprints: []string{sum(plain, "")}, cert: &plain},
		{name: "name without fingerprint", ca: true, auth: ClientRequired, names: []string{"gw7.example.com"}, fingerprints: []string{sum(second, "")}, cert: &plain, refused: "TLS_CLIENT_FINGERPRINTS"},
		{name: "fingerprint without name", ca: true, auth: ClientRequired, names: []string{"gw8.example.com"}, fingerprints: []string{sum(plain, "")}, cert: &plain, refused: "TLS_CLIENT_NAMES"},
	} {
		for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(tt.name+", "+version(max), func(t *testing.T) {
				o, dir := tlsOptions(t, a)
				o.ClientAuth = tt.auth
				if tt.ca {
					o.ClientCAFile = filepath.Join(dir, "ca.pem")
				}
				for _, text := range tt.fingerprints {
					f, err := ParseFingerprint(strings.ReplaceAll(text, " ", ":"))
					if err != nil {
						t.Fatal(err)
					}
					o.ClientFingerprints = append(o.ClientFingerprints, f)
				}
				for _, text := range tt.names {
					n, err := ParseClientName(text)
					if err != nil {
						t.Fatal(err)
					}
					o.ClientNames = append(o.ClientNames, n)
				}
				r, log := newRecorder(), &logs{}
				s, stop := serve(t, Options{Network: "tcp", TLS: o, Open: r.open, Log: log.logger()})
				conf := &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1", MaxVersion: max}
				if tt.cert != nil {
					conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
				}
				try := shake
				if tt.refused != "" {
					try = shakeInVain
				}
				c, err := try(dial(t, s), conf)
				if (err != nil) != (tt.refused != "") {
					t.Fatalf("the client's handshake: %v", err)
				}
				if tt.refused == "" {
					fmt.Fprint(c, "one\n")
					eventually(t, "the message", func() bool { return r.len() == 1 })
					f := r.conn(0).TLS
					if f == nil || f.Version != version(max) || f.Cipher != tls.CipherSuiteName(c.ConnectionState().CipherSuite) {
						t.Errorf("facts %+v", f)
					}
					if (f.Client != nil) != (tt.cert != nil) || f.Client != nil && string(f.Client.Raw) != string(tt.cert.Certificate[0]) {
						t.Error("another certificate is told")
					}
				}
				stop()
				failed := s.Stats.HandshakeCertificate.Load()
				if (failed == 1) != (tt.refused != "") || s.Stats.HandshakeOther.Load() != 0 {
					t.Errorf("%d and %d failures counted", failed, s.Stats.HandshakeOther.Load())
				}
				if tt.refused != "" && (strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), tt.refused)) {
					t.Errorf("no %q in\n%s", tt.refused, log)
				}
			})
		}
	}
}

func TestParseFingerprint(t *testing.T) {
	pairs := strings.Repeat(":0A", 20)[1:]
	for _, tt := range []struct{ text, want string }{
		{"sha-1:" + pairs, "sha-1:" + pairs},
		{"sha-1:E1:2D:53:2B:7C:6B:8A:29:A2:76:C8:64:36:0B:08:4B:7A:F1:9E:9D", "sha-1:E1:2D:53:2B:7C:6B:8A:29:A2:76:C8:64:36:0B:08:4B:7A:F1:9E:9D"}, // of RFC 5425
		{"sha1 Fingerprint=" + pairs, "sha-1:" + pairs},
		{"SHA256 Fingerprint=" + strings.Repeat(":AB", 32)[1:], "sha-256" + strings.Repeat(":AB", 32)},
		{"SHA1:" + strings.ToLower(pairs), "sha-1:" + pairs},
		{"sha-1:" + strings.ReplaceAll(pairs, ":", ""), "sha-1:" + pairs},
		{"sha256:" + strings.Repeat("ab", 32), "sha-256" + strings.Repeat(":AB", 32)},
		{" sha-256: " + strings.Repeat("ab", 32) + " ", "sha-256" + strings.Repeat(":AB", 32)},
		{"sha-256:" + pairs, ""},
		{"sha-1:" + pairs + ":0A", ""},
		{"sha-1:" + pairs[1:], ""},
		{"sha-1:" + strings.Replace(pairs, ":", "", 1) + ":", ""},
		{"sha-1:" + strings.ReplaceAll(pairs, "A", "G"), ""},
		{"sha-512:" + pairs, ""},
		{"md5:" + pairs, ""},
		{pairs, ""},
		{"", ""},
	} {
		f, err := ParseFingerprint(tt.text)
		if (err != nil) != (tt.want == "") || err == nil && f.String() != tt.want {
			t.Errorf("%q: %v, %v, want %s", tt.text, f, err, tt.want)
		}
		if err == nil {
			if again, err := ParseFingerprint(f.String()); err != nil || again != f {
				t.Errorf("%v is not read as it is written: %v", f, err)
			}
		}
	}
}

func TestParseClientName(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"GW7.Example.com.", "gw7.example.com"},
		{"*.example.com", "*.example.com"},
		{"gw7", "gw7"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"192.0.2.7", "192.0.2.7"},
		{"::ffff:192.0.2.7", "192.0.2.7"},
		{"2001:DB8::7", "2001:db8::7"},
		{"bücher.example", ""},
		{"a.*.example.com", ""},
		{"gw*.example.com", ""},
		{"*", ""},
		{"", ""},
		{"a..b", ""},
		{strings.Repeat("x", 64) + ".example", ""},
		{"CN=gw7", ""},
	} {
		if n, err := ParseClientName(tt.text); (err != nil) != (tt.want == "") || err == nil && n.String() != tt.want {
			t.Errorf("%q: %v, %v, want %s", tt.text, n, err, tt.want)
		}
	}
}

// Versions, suites and key exchanges are what is asked for and nothing else.
func TestTLSParameters(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	const weak = "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256"
	for _, tt := range []struct {
		name           string
		min, max       string
		suites, curves []string
		client         *tls.Config
		version        uint16 // 0: refused
		suite          string
		curve          tls.CurveID
		warned         bool
	}{
		{name: "newest", version: tls.VersionTLS13},
		{name: "at most 1.2", max: "1.2", version: tls.VersionTLS12},
		{name: "at most 1.2, at least 1.3 wanted", max: "1.2", client: &tls.Config{MinVersion: tls.VersionTLS13}},
		{name: "1.3 only", min: "1.3", max: "1.3", version: tls.VersionTLS13},
		{name: "never 1.1", client: &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}},
		{name: "a suite", suites: []string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}, client: &tls.Config{MaxVersion: tls.VersionTLS12}, version: tls.VersionTLS12, suite: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"},
		{name: "another suite", suites: []string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}, client: &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}},
		{name: "suites leave 1.3 alone", suites: []string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}, version: tls.VersionTLS13},
		{name: "a weak suite that is named", suites: []string{weak}, client: &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256}}, version: tls.VersionTLS12, suite: weak, warned: true},
		{name: "a weak suite that is not", client: &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256}}},
		{name: "a curve", curves: []string{"p-384"}, version: tls.VersionTLS13, curve: tls.CurveP384},
		{name: "the second", curves: []string{"P-521", "secp256r1"}, client: &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}}, version: tls.VersionTLS13, curve: tls.CurveP256},
		{name: "hybrid", curves: []string{"X25519MLKEM768"}, version: tls.VersionTLS13, curve: tls.X25519MLKEM768},
		{name: "no curve in common", curves: []string{"P-384"}, client: &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, _ := tlsOptions(t, a)
			var err error
			if tt.min != "" {
				if o.MinVersion, err = ParseVersion(tt.min); err != nil {
					t.Fatal(err)
				}
			}
			if tt.max != "" {
				if o.MaxVersion, err = ParseVersion(tt.max); err != nil {
					t.Fatal(err)
				}
			}
			insecure := false
			for _, name := range tt.suites {
				id, weak, err := ParseCipherSuite(name)
				if err != nil {
					t.Fatal(err)
				}
				insecure = insecure || weak
				o.CipherSuites = append(o.CipherSuites, id)
			}
			for _, name := range tt.curves {
				id, err := ParseCurve(name)
				if err != nil {
					t.Fatal(err)
				}
				o.Curves = append(o.Curves, id)
			}
			log := &logs{}
			s, stop := serve(t, Options{Network: "tcp", TLS: o, Open: newRecorder().open, Log: log.logger()})
			conf := tt.client.Clone()
			if conf == nil {
				conf = &tls.Config{}
			}
			conf.RootCAs, conf.ServerName = a.pool(), "127.0.0.1"
			try := shake
			if tt.version == 0 {
				try = shakeInVain
			}
			c, err := try(dial(t, s), conf)
			if (err == nil) != (tt.version != 0) {
				t.Fatalf("the client's handshake: %v", err)
			}
			if insecure != tt.warned || strings.Contains(log.String(), "suite="+weak) != tt.warned {
				t.Errorf("insecure %v, log\n%s", insecure, log)
			}
			if err != nil {
				stop()
				if s.Stats.HandshakeOther.Load() != 1 {
					t.Error("not counted")
				}
				return
			}
			state := c.ConnectionState()
			if state.Version != tt.version || tt.suite != "" && tls.CipherSuiteName(state.CipherSuite) != tt.suite || tt.curve != 0 && state.CurveID != tt.curve {
				t.Errorf("%s, %s, %v", version(state.Version), tls.CipherSuiteName(state.CipherSuite), state.CurveID)
			}
		})
	}
}

// A suite goes with the kind of key that its name says.
func TestSuiteGoesWith(t *testing.T) {
	for _, tt := range []struct {
		suite uint16
		key   crypto.PublicKey
		want  bool
	}{
		{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, &rsa.PublicKey{}, true},
		{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, &rsa.PublicKey{}, true},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, &rsa.PublicKey{}, false},
		{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, &ecdsa.PublicKey{}, true},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, ed25519.PublicKey{}, true},
		{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, ed25519.PublicKey{}, false},
	} {
		if got := suiteGoesWith(tt.suite, tt.key); got != tt.want {
			t.Errorf("%s with %T: %t", tls.CipherSuiteName(tt.suite), tt.key, got)
		}
	}
}

// An error lists what is possible.
func TestTLSNames(t *testing.T) {
	for _, tt := range []struct {
		parse func(string) error
		text  string
		want  []string
	}{
		{func(s string) error { _, err := ParseVersion(s); return err }, "1.1", []string{`"1.1"`, "1.2 or 1.3"}},
		{func(s string) error { _, _, err := ParseCipherSuite(s); return err }, "ECDHE-RSA-AES128-GCM-SHA256", []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"}},
		{func(s string) error { _, _, err := ParseCipherSuite(s); return err }, "TLS_AES_128_GCM_SHA256", []string{"TLS 1.3", "TLS_MIN_VERSION=1.3"}},
		{func(s string) error { _, err := ParseCurve(s); return err }, "brainpoolP256r1", []string{"X25519MLKEM768, X25519, P-256, P-384, P-521"}},
		{func(s string) error { _, err := ParseFingerprint(s); return err }, "x", []string{"sha-256:", "openssl x509"}},
		{func(s string) error { _, err := ParseClientName(s); return err }, "a b", []string{"*.example.com", "xn--"}},
	} {
		err := tt.parse(tt.text)
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", tt.text, err, want)
			}
		}
	}
	if _, _, err := ParseCipherSuite("TLS_RSA_WITH_AES_128_CBC_SHA"); err != nil {
		t.Error(err)
	}
}

// encrypt writes o's key anew as openssl encrypts it.
func encrypt(t *testing.T, o *TLSOptions, passphrase string, args ...string) {
	t.Helper()
	cmd := exec.Command("openssl", append(args, "-in", o.KeyFile, "-out", o.KeyFile+".new", "-passout", "pass:"+passphrase)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	if err := os.Rename(o.KeyFile+".new", o.KeyFile); err != nil {
		t.Fatal(err)
	}
}

func TestTLSEncryptedKey(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is needed: ", err)
	}
	a := newAuthority(t)
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"PKCS #8", []string{"pkcs8", "-topk8", "-v2", "aes-256-cbc", "-iter", "2048"}},
		{"PKCS #8, AES-128 and SHA-1", []string{"pkcs8", "-topk8", "-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA1"}},
		{"PKCS #8, scrypt", []string{"pkcs8", "-topk8", "-scrypt"}},
		{"PKCS #8, 3DES", []string{"pkcs8", "-topk8", "-v2", "des3"}},
		{"legacy PEM", []string{"ec", "-aes256"}},
		{"legacy PEM, 3DES", []string{"ec", "-des3"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, _ := tlsOptions(t, a)
			encrypt(t, o, "opensesame", tt.args...)
			given, asked := "opensesame", 0
			o.Passphrase = func() ([]byte, error) { asked++; return []byte(given), nil }
			log := &logs{}
			s, _ := serve(t, Options{Network: "tcp", TLS: o, Open: newRecorder().open, Log: log.logger()})
			if _, err := shake(dial(t, s), &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"}); err != nil {
				t.Fatal(err)
			}
			// It is asked for again, and a wrong one changes nothing.
			for _, given = range []string{"wrong", "", "opensesam"} {
				err := s.Reload()
				if err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_TLS_KEY_PASSPHRASE: ") || !strings.Contains(err.Error(), o.KeyFile) || strings.Contains(err.Error(), "opensesame") {
					t.Errorf("%q: %v", given, err)
				}
			}
			if _, err := shake(dial(t, s), &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"}); err != nil {
				t.Error(err)
			}
			given = "opensesame"
			if err := s.Reload(); err != nil || asked != 5 {
				t.Errorf("asked %d times: %v", asked, err)
			}
			if log.String() != "" {
				t.Errorf("log\n%s", log)
			}
			// A damaged file is an error too.
			b, err := os.ReadFile(o.KeyFile)
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(b)
			var info struct {
				Algorithm pkix.AlgorithmIdentifier
				Data      []byte
			}
			if _, err := asn1.Unmarshal(block.Bytes, &info); err == nil { // half a block, as it says
				info.Data = info.Data[:len(info.Data)-1]
				cut, err := asn1.Marshal(info)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := decryptKey(&pem.Block{Type: block.Type, Bytes: cut}, []byte("opensesame")); err != errPassphrase {
					t.Errorf("half a block: %v", err)
				}
			}
			for n := range len(block.Bytes) {
				cut := *block
				cut.Bytes = append(bytes.Clone(block.Bytes[:n]), block.Bytes[n+1:]...)
				if n%7 == 0 { // each costs a key derivation
					if _, err := decryptKey(&cut, []byte("opensesame")); err == nil {
						t.Errorf("without byte %d it can be decrypted", n)
					}
				}
			}
		})
	}
	t.Run("replaced last", func(t *testing.T) {
		o, dir := tlsOptions(t, a)
		o.PassphraseFile = filepath.Join(dir, "passphrase")
		o.Passphrase = func() ([]byte, error) { return os.ReadFile(o.PassphraseFile) }
		write(t, o.PassphraseFile, []byte("one"))
		encrypt(t, o, "one", "ec", "-aes128")
		s, _ := serve(t, Options{Network: "tcp", TLS: o, Open: newRecorder().open})
		is := func(want string) {
			t.Helper()
			s.tls.mu.Lock()
			s.tls.looked = time.Time{} // as if a second had passed
			s.tls.mu.Unlock()
			c, err := shake(dial(t, s), &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
				t.Errorf("the certificate of %s, want %s", got, want)
			}
		}
		put(t, dir, a.issue("server 2", time.Now().Add(time.Hour)))
		encrypt(t, o, "two", "ec", "-aes128")
		is("server 1") // somebody connects in between
		write(t, o.PassphraseFile, []byte("two"))
		is("server 2")
	})
	t.Run("not encrypted", func(t *testing.T) {
		o, _ := tlsOptions(t, a)
		o.Passphrase = func() ([]byte, error) { return []byte("x"), nil }
		log := &logs{}
		serve(t, Options{Network: "tcp", TLS: o, Open: newRecorder().open, Log: log.logger()})
		if strings.Count(log.String(), "the key is not encrypted") != 1 {
			t.Errorf("log\n%s", log)
		}
	})
	t.Run("no passphrase to be had", func(t *testing.T) {
		o, _ := tlsOptions(t, a)
		encrypt(t, o, "x", "ec", "-aes128")
		o.Passphrase = func() ([]byte, error) { return nil, os.ErrNotExist }
		_, err := Listen(Options{Network: "tcp", Address: "127.0.0.1:0", Variable: "SPILLWAY_INPUT_IN_", TLS: o, Log: quietLog})
		if !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "SPILLWAY_INPUT_IN_TLS_KEY_PASSPHRASE: ") {
			t.Error(err)
		}
	})
}

// What looks whether the port is open, in the ways of checks of health, is no error
// and no warning.
func TestTLSHealthChecks(t *testing.T) {
	a := newAuthority(t)
	o, _ := tlsOptions(t, a)
	r, log := newRecorder(), &logs{}
	s, stop := serve(t, Options{Network: "tcp", TLS: o, Open: r.open, Log: log.logger()})
	dial(t, s).Close()
	reset := dial(t, s).(*net.TCPConn)
	reset.SetLinger(0)
	reset.Close()
	whole, err := shake(dial(t, s), &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	whole.Close()
	abrupt := dial(t, s).(*net.TCPConn)
	if c, err := shake(abrupt, &tls.Config{RootCAs: a.pool(), ServerName: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	} else {
		fmt.Fprintln(c) // an empty line is no message, and comes behind the handshake
	}
	eventually(t, "its handshake", func() bool { return s.Stats.Bytes.Load() == 1 })
	abrupt.SetLinger(0)
	abrupt.Close()
	hello := dial(t, s) // takes the server's answer and goes
	tls.Client(onlyFirst{hello}, &tls.Config{InsecureSkipVerify: true}).Handshake()
	hello.Close()
	eventually(t, "five have gone", func() bool { return s.Stats.Connections.Load() == 5 && s.Stats.Open.Load() == 0 })
	stop()
	if strings.Contains(log.String(), "level=WARN") || strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("log\n%s", log)
	}
	if s.Stats.HandshakeOther.Load() != 1 || r.len() != 0 {
		t.Errorf("%d handshakes failed, messages %q", s.Stats.HandshakeOther.Load(), r.got)
	}
}

// onlyFirst is a connection that says one thing and hears nothing.
type onlyFirst struct{ net.Conn }

func (onlyFirst) Read([]byte) (int, error) { return 0, io.EOF }
