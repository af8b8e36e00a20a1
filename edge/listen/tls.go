package listen

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/youmark/pkcs8"
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
	seen   [4]fileID // the files that were read last, guarded by mu
}

func newTLSFiles(s *Server) (*tlsFiles, error) {
	t := &tlsFiles{o: *s.o.TLS, variable: s.o.Variable, name: s.o.Name, log: s.o.Log, stats: &s.Stats}
	if t.o.MinVersion == 0 {
		t.o.MinVersion = tls.VersionTLS12
	}
	if err := t.o.validate(t.variable); err != nil {
		return nil, err
	}
	t.outer = &tls.Config{GetConfigForClient: t.config}
	t.weak()
	t.seen, t.looked = t.versions(), time.Now()
	if err := t.load(); err != nil {
		return nil, err
	}
	return t, nil
}

// validate finds options that can't go together.
func (o *TLSOptions) validate(variable string) error {
	client := o.ClientCAFile != "" || len(o.ClientFingerprints) > 0
	switch {
	case o.MaxVersion != 0 && o.MaxVersion < o.MinVersion:
		return fmt.Errorf("%sTLS_MAX_VERSION: %s is below %[1]sTLS_MIN_VERSION, %[3]s: no version is left", variable, version(o.MaxVersion), version(o.MinVersion))
	case len(o.CipherSuites) > 0 && o.MinVersion >= tls.VersionTLS13:
		return fmt.Errorf("%sTLS_CIPHERS: changes nothing with %[1]sTLS_MIN_VERSION=1.3, whose suites are fixed: remove one of them", variable)
	case slices.Equal(o.Curves, []tls.CurveID{tls.X25519MLKEM768}) && o.MaxVersion == tls.VersionTLS12:
		return fmt.Errorf("%sTLS_CURVES: X25519MLKEM768 is of TLS 1.3, and %[1]sTLS_MAX_VERSION is 1.2: add another", variable)
	case o.ClientAuth != ClientNone && !client:
		return fmt.Errorf("%sTLS_CLIENT_AUTH=%v needs %[1]sTLS_CLIENT_CA_FILE or %[1]sTLS_CLIENT_FINGERPRINTS: without them no client could be believed", variable, o.ClientAuth)
	case o.ClientAuth == ClientNone && len(o.ClientFingerprints) > 0:
		return fmt.Errorf("%sTLS_CLIENT_FINGERPRINTS: changes nothing with %[1]sTLS_CLIENT_AUTH=none: set that to required or optional", variable)
	case len(o.ClientNames) > 0 && (o.ClientCAFile == "" || o.ClientAuth == ClientNone):
		return fmt.Errorf("%sTLS_CLIENT_NAMES needs %[1]sTLS_CLIENT_CA_FILE, and %[1]sTLS_CLIENT_AUTH=required or optional: anybody can write a name into a certificate of his own", variable)
	}
	return nil
}

// weak tells of cipher suites that are set and not secure.
func (t *tlsFiles) weak() {
	for _, suite := range tls.InsecureCipherSuites() {
		if slices.Contains(t.o.CipherSuites, suite.ID) {
			t.log.Warn("a cipher suite that is not secure is allowed", "input", t.name, "suite", suite.Name, "hint", "remove it from "+t.variable+"TLS_CIPHERS once no sender needs it")
		}
	}
}

// version is the number of a TLS version, 1.2.
func version(v uint16) string { return strings.TrimPrefix(tls.VersionName(v), "TLS ") }

// ParseVersion reads a version of TLS, 1.2 or 1.3.
func ParseVersion(text string) (uint16, error) {
	switch strings.TrimPrefix(strings.ToLower(strings.TrimSpace(text)), "tlsv") {
	case "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("unknown %q: use 1.2 or 1.3", text)
}

// ParseCipherSuite reads the name of a cipher suite of TLS 1.2, as IANA and crypto/tls
// list it, and reports whether it is one of those that are not secure.
func ParseCipherSuite(name string) (id uint16, insecure bool, err error) {
	var possible []string
	for _, suite := range tls.CipherSuites() {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS12) {
			if strings.EqualFold(suite.Name, name) {
				return suite.ID, false, nil
			}
			possible = append(possible, suite.Name)
		} else if strings.EqualFold(suite.Name, name) {
			return 0, false, fmt.Errorf("%s is of TLS 1.3, whose suites are fixed: name those of TLS 1.2, or set TLS_MIN_VERSION=1.3 instead", suite.Name)
		}
	}
	for _, suite := range tls.InsecureCipherSuites() {
		if strings.EqualFold(suite.Name, name) {
			return suite.ID, true, nil
		}
	}
	return 0, false, fmt.Errorf("unknown %q: use %s", name, strings.Join(possible, ", "))
}

// suiteGoesWith reports whether a suite of TLS 1.2 can be used with a certificate's key:
// the name of each says how the server signs, and Ed25519 counts as ECDSA (RFC 8422
// section 5.10).
func suiteGoesWith(id uint16, key crypto.PublicKey) bool {
	_, isRSA := key.(*rsa.PublicKey)
	return strings.Contains(tls.CipherSuiteName(id), "_ECDSA_") != isRSA
}

// curves are the key exchanges of crypto/tls that can be asked for, by name.
var curves = []struct {
	id    tls.CurveID
	names []string // the first is the name, the others will do
}{
	{tls.X25519MLKEM768, []string{"X25519MLKEM768"}},
	{tls.X25519, []string{"X25519"}},
	{tls.CurveP256, []string{"P-256", "P256", "prime256v1", "secp256r1"}},
	{tls.CurveP384, []string{"P-384", "P384", "secp384r1"}},
	{tls.CurveP521, []string{"P-521", "P521", "secp521r1"}},
}

// ParseCurve reads the name of a key exchange: X25519MLKEM768, X25519, P-256, P-384,
// P-521; the names of openssl will do.
func ParseCurve(name string) (tls.CurveID, error) {
	var possible []string
	for _, c := range curves {
		if slices.ContainsFunc(c.names, func(n string) bool { return strings.EqualFold(n, name) }) {
			return c.id, nil
		}
		possible = append(possible, c.names[0])
	}
	return 0, fmt.Errorf("unknown %q: use %s", name, strings.Join(possible, ", "))
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
func (t *tlsFiles) versions() (v [4]fileID) {
	for i, name := range []string{t.o.CertFile, t.o.KeyFile, t.o.PassphraseFile, t.o.ClientCAFile} {
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
	if key, err = t.decrypt(key); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%sTLS_CERT_FILE: %s with the key %s: %w", t.variable, t.o.CertFile, t.o.KeyFile, err)
	}
	if len(t.o.CipherSuites) > 0 && t.o.MaxVersion == tls.VersionTLS12 &&
		!slices.ContainsFunc(t.o.CipherSuites, func(id uint16) bool { return suiteGoesWith(id, pair.Leaf.PublicKey) }) {
		return fmt.Errorf("%sTLS_CIPHERS: none of them goes with the key of %s, and %[1]sTLS_MAX_VERSION is 1.2: name some with ECDSA for such a key or Ed25519, with RSA for RSA", t.variable, t.o.CertFile)
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: t.o.MinVersion, MaxVersion: t.o.MaxVersion,
		CipherSuites: t.o.CipherSuites, CurvePreferences: t.o.Curves, VerifyConnection: t.believe,
		ClientAuth: [...]tls.ClientAuthType{tls.NoClientCert, tls.RequestClientCert, tls.RequireAnyClientCert}[t.o.ClientAuth],
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
	t.stats.CertificateExpires.Store(pair.Leaf.NotAfter.Unix())
	if time.Now().After(pair.Leaf.NotAfter) {
		t.log.Warn("the certificate is expired; senders that look will refuse it", "input", t.name, "file", t.o.CertFile, "expired", pair.Leaf.NotAfter)
	}
	t.current.Store(c)
	return nil
}

// decrypt returns the key that b, a PEM file, holds: as it is, or decrypted.
func (t *tlsFiles) decrypt(b []byte) ([]byte, error) {
	var block *pem.Block
	for rest := b; ; {
		if block, rest = pem.Decode(rest); block == nil {
			if t.o.Passphrase != nil {
				t.log.Warn("a passphrase is set, and the key is not encrypted", "input", t.name, "file", t.o.KeyFile, "hint", "encrypt the key, or remove "+t.variable+"TLS_KEY_PASSPHRASE")
			}
			return b, nil
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			break
		}
	}
	if t.o.Passphrase == nil {
		return nil, fmt.Errorf("%sTLS_KEY_FILE: %s: the key is encrypted: write its passphrase into a file and name that in %[1]sTLS_KEY_PASSPHRASE_FILE", t.variable, t.o.KeyFile)
	}
	passphrase, err := t.o.Passphrase()
	if err != nil {
		return nil, fmt.Errorf("%sTLS_KEY_PASSPHRASE: %w", t.variable, err)
	}
	if len(passphrase) == 0 {
		return nil, fmt.Errorf("%sTLS_KEY_PASSPHRASE: empty, and the key %s is encrypted: give its passphrase", t.variable, t.o.KeyFile)
	}
	key, err := decryptKey(block, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%sTLS_KEY_PASSPHRASE: the key %s can't be decrypted with it: %w", t.variable, t.o.KeyFile, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("%sTLS_KEY_FILE: %s: %w", t.variable, t.o.KeyFile, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

var errPassphrase = errors.New("the passphrase is wrong, or the file is damaged")

// decryptKey decrypts a key as openssl writes it: PKCS #8 (RFC 8018, PBES2) and, from
// before version 1.0, PEM with DEK-Info (RFC 1421 section 4.6.1.3).
func decryptKey(block *pem.Block, passphrase []byte) (key crypto.PrivateKey, err error) {
	if block.Type == "ENCRYPTED PRIVATE KEY" {
		defer func() {
			if recover() != nil { // package pkcs8 gives lengths that the file says to package cipher
				key, err = nil, errPassphrase
			}
		}()
		key, err = pkcs8.ParsePKCS8PrivateKey(block.Bytes, passphrase)
		if err != nil && strings.HasPrefix(err.Error(), "pkcs8: incorrect password") { // it has no value for it
			err = errPassphrase
		}
		return key, err
	}
	//lint:ignore SA1019 the format proves nothing, and none of that is relied on: the file is the agent's own
	der, err := x509.DecryptPEMBlock(block, passphrase)
	if err != nil {
		if err == x509.IncorrectPasswordError {
			err = errPassphrase
		}
		return nil, err
	}
	if key, err = x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err = x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	if key, err = x509.ParsePKCS8PrivateKey(der); err == nil {
		return key, nil
	}
	return nil, errPassphrase // one of 256 wrong ones decrypts to something that looks padded
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
	c.about.TLS = facts(t.ConnectionState())
	return true
}

// facts are what of a handshake goes into records.
func facts(state tls.ConnectionState) *TLSFacts {
	f := &TLSFacts{Version: version(state.Version), Cipher: tls.CipherSuiteName(state.CipherSuite)}
	if len(state.PeerCertificates) > 0 {
		f.Client = state.PeerCertificates[0]
	}
	return f
}

// handshakeFailed counts and tells why.
func (s *Server) handshakeFailed(c *conn, err error) {
	var (
		header tls.RecordHeaderError
		bad    *tls.CertificateVerificationError
		other  *clientError
		leaf   *x509.Certificate // of the client
		remote *net.OpError
	)
	kind, count, hint, level := "other", &s.Stats.HandshakeOther, "", slog.LevelWarn
	attrs := []any{"input", s.o.Name, "peer", c.name()}
	switch {
	case err == errPlain || errors.As(err, &header):
		kind, count, hint = "plain", &s.Stats.HandshakePlain, "this port takes TLS only: set the sender to TLS, or send to an input without it"
		err = errPlain
	case errors.Is(err, os.ErrDeadlineExceeded):
		kind, count = "timeout", &s.Stats.HandshakeTimeout
		err = fmt.Errorf("not finished within %v", s.handshakeTime)
	case errors.As(err, &bad):
		kind, count, hint = "certificate", &s.Stats.HandshakeCertificate, "give the sender a certificate that is valid now and signed by a CA in "+s.o.Variable+"TLS_CLIENT_CA_FILE"
		if len(bad.UnverifiedCertificates) > 0 {
			leaf = bad.UnverifiedCertificates[0]
		}
		err = bad.Err
	case errors.As(err, &other):
		kind, count, leaf = "certificate", &s.Stats.HandshakeCertificate, other.cert
		if hint = "add " + other.value + " to " + s.o.Variable + other.variable + " if it may send"; other.value == "" {
			hint = "give the sender a certificate with one of the names of " + s.o.Variable + other.variable
		}
	case strings.Contains(err.Error(), "client didn't provide a certificate"): // crypto/tls has no value for it
		kind, count, hint = "no certificate", &s.Stats.HandshakeCertificate, "give the sender a certificate, or set "+s.o.Variable+"TLS_CLIENT_AUTH=optional"
	case errors.As(err, &remote) && remote.Op == "remote error":
		hint = "the sender refused: it may not know the CA of " + s.o.Variable + "TLS_CERT_FILE, or the name it uses for this host is not in the certificate"
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		kind, level, err = "gone", slog.LevelInfo, errors.New("the sender went away") // as some checks of health do
	}
	if leaf != nil {
		kind += ": " + leaf.SerialNumber.String() // each certificate is told
		attrs = append(attrs, "subject", leaf.Subject.String(), "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	count.Add(1)
	if n, due := s.notices.due("handshake " + kind); due {
		attrs = append(attrs, "error", err, "times", n)
		if hint != "" {
			attrs = append(attrs, "hint", hint)
		}
		s.o.Log.Log(context.Background(), level, "a TLS handshake failed", attrs...)
	}
}
