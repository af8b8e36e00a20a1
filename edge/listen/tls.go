package listen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// handshakeTimeout bounds the time from the connection to the end of its handshake.
	handshakeTimeout = 10 * time.Second
	// lookAfter is how often the files are looked at, when somebody connects.
	lookAfter = time.Second
)

var clientAuthNames = []string{"none", "optional", "required"}

// String returns the name of the setting.
func (a ClientAuth) String() string { return clientAuthNames[a] }

// MarshalText returns the name of the setting.
func (a ClientAuth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the name of the setting.
func (a *ClientAuth) UnmarshalText(text []byte) error {
	for i, name := range clientAuthNames {
		if strings.EqualFold(string(text), name) {
			*a = ClientAuth(i)
			return nil
		}
	}
	return fmt.Errorf("unknown %q: use none, optional or required", text)
}

// tlsFiles is a server's TLS configuration, read again when its files change. Safe
// for concurrent use.
type tlsFiles struct {
	o        TLSOptions
	variable string
	name     string
	log      *slog.Logger
	stats    *Stats

	outer   *tls.Config // asks for the current one at each handshake
	current atomic.Pointer[tls.Config]

	mu     sync.Mutex
	looked time.Time // guarded by mu
	seen   [3]fileID // the files that were read last, guarded by mu
}

func newTLSFiles(s *Server) (*tlsFiles, error) {
	t := &tlsFiles{o: *s.o.TLS, variable: s.o.Variable, name: s.o.Name, log: s.o.Log, stats: &s.Stats}
	t.outer = &tls.Config{GetConfigForClient: t.config, MinVersion: t.minVersion()}
	if t.o.ClientAuth != ClientNone && t.o.ClientCAFile == "" {
		return nil, fmt.Errorf("%sTLS_CLIENT_AUTH=%v needs %[1]sTLS_CLIENT_CA_FILE: without it no client could be believed", t.variable, t.o.ClientAuth)
	}
	t.seen, t.looked = t.versions(), time.Now()
	if err := t.load(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *tlsFiles) minVersion() uint16 {
	if t.o.MinVersion == 0 {
		return tls.VersionTLS12
	}
	return t.o.MinVersion
}

// config is the configuration of the next handshake.
func (t *tlsFiles) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	if t.mu.TryLock() { // else somebody else is looking
		if now := time.Now(); now.Sub(t.looked) >= lookAfter {
			t.looked = now
			if v := t.versions(); v != t.seen {
				t.seen = v
				if err := t.again(); err != nil {
					t.log.Warn("the TLS files have changed and can't be used; the old ones stay until they change again", "input", t.name, "error", err)
				} else {
					t.log.Info("the TLS files have changed; new connections use the new ones", "input", t.name, "expires", t.expires())
				}
			}
		}
		t.mu.Unlock()
	}
	return t.current.Load(), nil
}

func (t *tlsFiles) expires() string {
	return time.Unix(t.stats.CertificateExpires.Load(), 0).UTC().Format(time.RFC3339)
}

// reload reads the files whether they have changed or not.
func (t *tlsFiles) reload() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looked, t.seen = time.Now(), t.versions()
	return t.again()
}

// again is load, counted.
func (t *tlsFiles) again() error {
	err := t.load()
	if err != nil {
		t.stats.ReloadFailures.Add(1)
	} else {
		t.stats.Reloads.Add(1)
	}
	return err
}

// versions says which files there are now. A missing one is zero.
func (t *tlsFiles) versions() (v [3]fileID) {
	for i, name := range []string{t.o.CertFile, t.o.KeyFile, t.o.ClientCAFile} {
		if info, err := os.Stat(name); err == nil && name != "" {
			v[i] = fileID{size: info.Size(), mtime: info.ModTime().UnixNano()}
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				v[i].dev, v[i].ino = uint64(st.Dev), st.Ino
			}
		}
	}
	return v
}

// load reads the files. Its errors name the variable and the file.
func (t *tlsFiles) load() error {
	file := func(variable, name string) ([]byte, error) {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("%s%s: %w: name a PEM file that the agent may read", t.variable, variable, err)
		}
		return b, nil
	}
	cert, err := file("TLS_CERT_FILE", t.o.CertFile)
	if err != nil {
		return err
	}
	key, err := file("TLS_KEY_FILE", t.o.KeyFile)
	if err != nil {
		return err
	}
	for b, rest := pem.Decode(key); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != "" {
			return fmt.Errorf("%sTLS_KEY_FILE: %s: the key is encrypted: decrypt it (openssl pkey -in %[2]s -out KEY) and let only the agent read it", t.variable, t.o.KeyFile)
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%sTLS_CERT_FILE: %s with the key %s: %w", t.variable, t.o.CertFile, t.o.KeyFile, err)
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: t.minVersion(),
		// Senders connect seldom; without tickets each handshake asks for a certificate
		// that is good now.
		SessionTicketsDisabled: true,
	}
	if t.o.ClientCAFile != "" {
		b, err := file("TLS_CLIENT_CA_FILE", t.o.ClientCAFile)
		if err != nil {
			return err
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(b) {
			return fmt.Errorf("%sTLS_CLIENT_CA_FILE: %s: no certificate in it: name a PEM file", t.variable, t.o.ClientCAFile)
		}
		c.ClientAuth = [...]tls.ClientAuthType{tls.NoClientCert, tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert}[t.o.ClientAuth]
	}
	if leaf := pair.Leaf; leaf != nil {
		t.stats.CertificateExpires.Store(leaf.NotAfter.Unix())
		if time.Now().After(leaf.NotAfter) {
			t.log.Warn("the certificate is expired; senders that look will refuse it", "input", t.name, "file", t.o.CertFile, "expired", leaf.NotAfter)
		}
	}
	t.current.Store(c)
	return nil
}

// errPlain is a handshake that does not begin like one.
var errPlain = errors.New("not TLS")

// handshake shakes hands with c, whose first byte is there, and returns whether it is
// a connection now.
func (s *Server) handshake(ctx context.Context, c *conn, began time.Time) bool {
	t := tls.Server(&c.sock, s.tls.outer)
	c.Conn.SetDeadline(began.Add(s.handshakeTime))
	if ctx.Err() != nil {
		return false // the kick may have come before the deadline; nothing was sent yet
	}
	c.wait = true
	err := t.Handshake()
	c.wait = false
	c.Conn.SetDeadline(time.Time{})
	if err != nil {
		if ctx.Err() == nil || !errors.Is(err, os.ErrDeadlineExceeded) { // else it is the stop that ended it
			s.handshakeFailed(c, err)
		}
		return false
	}
	c.tls, c.armed, c.last = t, false, time.Now()
	return true
}

// handshakeFailed counts and tells why.
func (s *Server) handshakeFailed(c *conn, err error) {
	var (
		header tls.RecordHeaderError
		bad    *tls.CertificateVerificationError
		remote *net.OpError
	)
	kind, count, hint := "other", &s.Stats.HandshakeOther, ""
	attrs := []any{"input", s.o.Name, "peer", c.name()}
	switch {
	case err == errPlain || errors.As(err, &header):
		kind, count, hint = "plain", &s.Stats.HandshakePlain, "this port takes TLS only: set the sender to TLS, or send to a tcp:// input"
		err = errPlain
	case errors.Is(err, os.ErrDeadlineExceeded):
		kind, count = "timeout", &s.Stats.HandshakeTimeout
		err = fmt.Errorf("not finished within %v", s.handshakeTime)
	case errors.As(err, &bad):
		kind, count, hint = "certificate", &s.Stats.HandshakeCertificate, "give the sender a certificate that is valid now and signed by a CA in "+s.o.Variable+"TLS_CLIENT_CA_FILE"
		if len(bad.UnverifiedCertificates) > 0 {
			leaf := bad.UnverifiedCertificates[0]
			kind += ": " + leaf.SerialNumber.String() // each certificate is told
			attrs = append(attrs, "subject", leaf.Subject.String(), "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		err = bad.Err
	case strings.Contains(err.Error(), "client didn't provide a certificate"): // crypto/tls has no value for it
		kind, count, hint = "no certificate", &s.Stats.HandshakeCertificate, "give the sender a certificate, or set "+s.o.Variable+"TLS_CLIENT_AUTH=optional"
	case errors.As(err, &remote) && remote.Op == "remote error":
		hint = "the sender refused: it may not know the CA of " + s.o.Variable + "TLS_CERT_FILE, or the name it uses for this host is not in the certificate"
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		err = errors.New("the sender went away")
	}
	count.Add(1)
	if n, due := s.notices.due("handshake " + kind); due {
		attrs = append(attrs, "error", err, "times", n)
		if hint != "" {
			attrs = append(attrs, "hint", hint)
		}
		s.o.Log.Warn("a TLS handshake failed", attrs...)
	}
}
