package listen

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a CA that a test makes.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serials int64

func (a *authority) sign(name string, notAfter time.Time, isCA bool) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	serials++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(0xabc000 + serials), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter,
		IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
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

// shake is a client's handshake and the first answer: with TLS 1.3 that is where it
// learns that it was refused.
func shake(c net.Conn, o *tls.Config) (*tls.Conn, error) {
	tc := tls.Client(c, o)
	if err := tc.Handshake(); err != nil {
		return tc, err
	}
	tc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	_, err := tc.Read(make([]byte, 1))
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		err = nil
	}
	return tc, err
}

func TestTLSClients(t *testing.T) {
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
			raw := dial(t, s)
			c, err := shake(raw, conf)
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
	c.SetReadDeadline(time.Time{})
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
	a := newAuthority(t)
	o, _ := tlsOptions(t, a)
	r, log := newRecorder(), &logs{}
	s, err := Listen(Options{Network: "tcp", Address: "127.0.0.1:0", TLS: o, Open: r.open, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	s.handshakeTime = 300 * time.Millisecond
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
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "not finished within 300ms") {
		t.Errorf("log\n%s", log)
	}
	cancel()
	<-done
}
