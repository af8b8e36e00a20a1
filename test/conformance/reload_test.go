package conformance

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/test/certs"
	"spillway/test/servers"
)

// logText is what an output logged. Safe for concurrent use.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// logged is hub with a log.
func logged(t *testing.T, n *servers.NATS, change func(*jetstream.Config)) (*jetstream.Output, *logText) {
	t.Helper()
	c := jetstream.Config{Servers: n.URL, Stream: "LOGS", AckTimeout: 2 * time.Second, ConnectTimeout: time.Second,
		ReconnectMin: 10 * time.Millisecond, ReconnectMax: 100 * time.Millisecond}
	change(&c)
	text := &logText{}
	o, err := jetstream.New("hub", "default", "gw1", c, slog.New(slog.NewTextHandler(text, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(text)
		}
	})
	return o, text
}

// TestReloadTriesNow is about an operator who replaced what was refused and does not
// want to wait for the next attempt.
func TestReloadTriesNow(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	put(t, token, "guess\n")
	n := servers.StartNATS(t, t.TempDir(), servers.Config(`authorization: { token: s3cret }`))
	o, text := logged(t, n, func(c *jetstream.Config) {
		c.Token, c.TokenFile, c.ReconnectMin, c.ReconnectMax = "guess", token, time.Hour, time.Hour
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := o.Probe(ctx, "main"); err == nil || !strings.Contains(err.Error(), "Authorization Violation") {
		t.Fatalf("a wrong token: %v", err)
	}
	put(t, token, "s3cret\n")
	if err := o.Reload(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); !o.Connected(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not connected:\n%s", text)
		}
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, with string) {
	t.Helper()
	text, err := os.ReadFile(with)
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, string(text))
}

// TestPasswordReplaced is about a password that changes at the server first. The
// file is read with each attempt to connect; a signal is not needed.
func TestPasswordReplaced(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	config := func(gw1 string) string {
		return `accounts: { EDGE: { jetstream: enabled, users: [ { user: admin, password: admin }, { user: gw1, password: ` + gw1 + ` } ] } }`
	}
	n := servers.StartNATS(t, t.TempDir(), servers.Config(config("one")))
	servers.CreateStream(t, strings.Replace(n.URL, "://", "://admin:admin@", 1), logs)
	put(t, password, "one\n")
	o, text := logged(t, n, func(c *jetstream.Config) { c.User, c.Password, c.PasswordFile = "gw1", "one", password })
	f := newFeed()
	works(t, o, f.run(100))

	// The connection lives, and is left alone.
	put(t, password, "two\n")
	if err := o.Reload(); err != nil {
		t.Error(err)
	}
	works(t, o, f.run(100))
	if c := strings.Count(text.String(), "msg=connected"); c != 1 {
		t.Errorf("%d connections", c)
	}

	// The server ends it, and takes the new one only.
	n.Reload(t, config("two"))
	disconnects(t, o)
	works(t, o, f.run(100))

	// A file that can't be used is no reason to forget a password that works.
	put(t, password, "")
	if err := o.Reload(); err == nil || !strings.HasPrefix(err.Error(), "SPILLWAY_OUTPUT_HUB_PASSWORD_FILE: ") {
		t.Errorf("an empty file: %v", err)
	}
	n.Restart(t)
	works(t, o, f.run(100))
	if c := strings.Count(text.String(), "SPILLWAY_OUTPUT_HUB_PASSWORD_FILE: "); c != 1 {
		t.Errorf("the log names the file %d times", c)
	}
}

// TestCertificatesReplaced is about a new authority, as when one ends: server and
// agent get new certificates one after the other, and the agent goes on.
func TestCertificatesReplaced(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	issue := func(a *certs.Authority, name string) {
		t.Helper()
		cert, key := a.Issue(name, time.Now().Add(time.Hour))
		replace(t, at(name+".pem"), cert)
		replace(t, at(name+".key"), key)
	}
	first, second := certs.New(t), certs.New(t)
	replace(t, at("server-ca.pem"), first.File)
	replace(t, at("ca.pem"), first.File)
	issue(first, "server")
	issue(first, "gw1")
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	n.Reload(t, fmt.Sprintf("tls: {cert_file: %q, key_file: %q, ca_file: %q, verify: true}", at("server.pem"), at("server.key"), at("server-ca.pem")))
	n.Restart(t)
	o, text := logged(t, n, func(c *jetstream.Config) {
		c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = at("ca.pem"), at("gw1.pem"), at("gw1.key")
	})
	f := newFeed()
	works(t, o, f.run(100))

	// Half of a new pair is there, and the connection has to be made again.
	cert, key := second.Issue("gw1", time.Now().Add(time.Hour))
	replace(t, at("gw1.pem"), cert)
	n.Restart(t)
	works(t, o, f.run(100))
	if said := text.String(); strings.Count(said, "SPILLWAY_OUTPUT_HUB_TLS_CERT_FILE: tls: private key does not match") != 1 {
		t.Error("the log does not name half of a pair once")
	}

	// The other half, and everything else that is new.
	replace(t, at("gw1.key"), key)
	replace(t, at("ca.pem"), second.File)
	if err := o.Reload(); err != nil {
		t.Error(err)
	}
	replace(t, at("server-ca.pem"), second.File)
	issue(second, "server")
	n.Restart(t)
	works(t, o, f.run(100))
	inspectCertificate(t, o)
}

// inspectCertificate holds that check tells which certificate is used.
func inspectCertificate(t *testing.T, o *jetstream.Output) {
	t.Helper()
	for _, f := range o.Inspect(t.Context(), need) {
		switch {
		case f.What == "connect" && f.Level == outputs.Good:
			if !strings.Contains(f.Text, "as certificate CN=gw1") || !strings.Contains(f.Text, "TLS 1.3 with CN=server") {
				t.Errorf("%s", f.Text)
			}
		case f.What == "connect":
			if !strings.Contains(f.Text, "the certificate of SPILLWAY_OUTPUT_HUB_TLS_CERT_FILE ends ") {
				t.Errorf("%s", f.Text)
			}
		}
	}
}
