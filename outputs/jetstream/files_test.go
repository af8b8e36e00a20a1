package jetstream

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// pair is a certificate and its key in PEM.
func pair(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// user is a seed, and a file of credentials with it.
func user(t *testing.T, jwt string) (seed, creds string) {
	t.Helper()
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	s, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return string(s), "-----BEGIN NATS USER JWT-----\n" + jwt + "\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n" + string(s) + "\n------END USER NKEY SEED------\n"
}

// TestFiles is about what a connection is made with as the files change: what they
// hold now, or, while they can't be used, what they held before.
func TestFiles(t *testing.T) {
	cert1, key1 := pair(t)
	cert2, key2 := pair(t)
	seed1, creds1 := user(t, "jwt.one.x")
	seed2, creds2 := user(t, "jwt.two.x")
	signature := func(t *testing.T, sign nats.SignatureHandler) string {
		t.Helper()
		sig, err := sign([]byte("nonce"))
		if err != nil {
			t.Fatal(err)
		}
		for name, seed := range map[string]string{"one": seed1, "two": seed2} {
			if key, err := nkeys.FromSeed([]byte(seed)); err != nil {
				t.Fatal(err)
			} else if key.Verify([]byte("nonce"), sig) == nil {
				return name
			}
		}
		return "nobody"
	}
	for _, tt := range []struct {
		name, variable string
		change         func(c *Config, path string)
		first, second  string // contents of the file
		broken, why    string
		used           func(t *testing.T, o *nats.Options) string // "one" or "two"
	}{
		{"creds", "CREDS_FILE", func(c *Config, p string) { c.CredsFile = p }, creds1, creds2, "jwt", "holds no JWT and seed of a user",
			func(t *testing.T, o *nats.Options) string {
				jwt, err := o.UserJWT()
				if err != nil {
					t.Fatal(err)
				}
				if by := signature(t, o.SignatureCB); jwt != "jwt."+by+".x" {
					t.Errorf("%s signed by %s", jwt, by)
				}
				return strings.Split(jwt, ".")[1]
			}},
		{"nkey", "NKEY_FILE", func(c *Config, p string) { c.NkeyFile = p }, seed1, "# the same\n" + seed1, seed2, "holds the seed of another user",
			func(t *testing.T, o *nats.Options) string { return signature(t, o.SignatureCB) }},
		{"password", "PASSWORD_FILE", func(c *Config, p string) { c.User, c.Password, c.PasswordFile = "u", "one", p }, "one\n", "two\r\n", "", "is empty",
			func(_ *testing.T, o *nats.Options) string { _, password := o.UserInfo(); return password }},
		{"token", "TOKEN_FILE", func(c *Config, p string) { c.Token, c.TokenFile = "one", p }, "one", "two\n", "", "is empty",
			func(_ *testing.T, o *nats.Options) string { return o.TokenHandler() }},
		{"certificate", "TLS_CERT_FILE", func(c *Config, p string) { c.TLSCertFile, c.TLSKeyFile = p, p }, cert1 + key1, key2 + cert2, cert2 + key1, "private key does not match",
			func(t *testing.T, o *nats.Options) string {
				c, err := o.TLSCertCB()
				if err != nil {
					t.Fatal(err)
				}
				b, _ := pem.Decode([]byte(cert1))
				if bytes.Equal(c.Certificate[0], b.Bytes) {
					return "one"
				}
				return "two"
			}},
		{"CA", "TLS_CA_FILE", func(c *Config, p string) { c.TLSCAFile = p }, cert1, cert2, "nonsense", "holds no certificate",
			func(t *testing.T, o *nats.Options) string {
				roots, err := o.RootCAsCB()
				if err != nil {
					t.Fatal(err)
				}
				b, _ := pem.Decode([]byte(cert1))
				c, err := x509.ParseCertificate(b.Bytes)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
					return "one"
				}
				return "two"
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			write := func(text string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(tt.first)
			c := Config{Servers: "tls://127.0.0.1:1"}
			tt.change(&c, path)
			var log bytes.Buffer
			o, err := New("hub", "plant", "gw1", c, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			// A link of its own would ask at any time.
			files, err := o.c.files(o.variable, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			var n nats.Options
			for _, set := range files.options {
				if err := set(&n); err != nil {
					t.Fatal(err)
				}
			}
			second := "two"
			if tt.name == "nkey" {
				second = "one" // the user stays
			}
			if got := tt.used(t, &n); got != "one" {
				t.Errorf("at first: %s", got)
			}
			write(tt.second)
			if got := tt.used(t, &n); got != second {
				t.Errorf("without a reload: %s", got)
			}
			write(tt.broken)
			log.Reset()
			for range 3 {
				if got := tt.used(t, &n); got != second {
					t.Errorf("broken: %s, want what was there before", got)
				}
			}
			variable := "SPILLWAY_OUTPUT_HUB_" + tt.variable
			if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, variable+": ") || !strings.Contains(s, tt.why) {
				t.Errorf("said of it: %q", s)
			}
			if err := o.Reload(); err == nil || !strings.HasPrefix(err.Error(), variable+": ") || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("Reload: %v", err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := o.Reload(); err == nil || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("Reload without the file: %v", err)
			}
			write(tt.first)
			if err := o.Reload(); err != nil {
				t.Error(err)
			}
			if got := tt.used(t, &n); got != "one" {
				t.Errorf("mended: %s", got)
			}
		})
	}
}
