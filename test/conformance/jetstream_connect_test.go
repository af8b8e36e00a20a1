package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/outputs/outputtest"
	"spillway/test/certs"
	"spillway/test/servers"
)

// Every way to reach a server, with what is said when it is the wrong one.
func TestJetStreamConnects(t *testing.T) {
	a := certs.New(t)
	serverCert, serverKey := a.Issue("server", time.Now().Add(time.Hour))
	oldCert, oldKey := a.Issue("old", time.Now().Add(-time.Minute))
	otherCert, otherKey := a.Issue("other", time.Now().Add(time.Hour), "hub.example")
	clientCert, clientKey := a.Issue("client", time.Now().Add(time.Hour))
	tls := func(cert, key, more string) servers.Option {
		return servers.Config(fmt.Sprintf("tls: {cert_file: %q, key_file: %q, ca_file: %q, %s}", cert, key, a.File, more))
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	seedFile := filepath.Join(t.TempDir(), "gw1.nk")
	if err := os.WriteFile(seedFile, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	websocket := freePort(t)
	scheme := func(s string) func(*jetstream.Config) {
		return func(c *jetstream.Config) { c.Servers = strings.Replace(c.Servers, "nats://", s+"://", 1) }
	}
	for _, c := range []struct {
		name   string
		server []servers.Option
		change func(*jetstream.Config)
		action outputs.Action // 0: it works
		text   string
	}{
		{"several servers, the first is down", nil, func(c *jetstream.Config) { c.Servers = "nats://127.0.0.1:1," + c.Servers }, 0, ""},
		{"name", nil, func(c *jetstream.Config) { c.Servers = strings.Replace(c.Servers, "127.0.0.1", "localhost", 1) }, 0, ""},
		{"user in the URL", []servers.Option{servers.Config("authorization: {user: u, password: \"p@ss\"}")},
			func(c *jetstream.Config) { c.Servers = strings.Replace(c.Servers, "://", "://u:p%40ss@", 1) }, 0, ""},
		{"token", []servers.Option{servers.Config("authorization: {token: secret}")}, func(c *jetstream.Config) { c.Token = "secret" }, 0, ""},
		{"nkey", []servers.Option{servers.Config(fmt.Sprintf("authorization: {users: [{nkey: %s}]}", public))},
			func(c *jetstream.Config) { c.NkeyFile = seedFile }, 0, ""},
		{"domain", []servers.Option{servers.Domain("hub")}, func(c *jetstream.Config) { c.Domain = "hub" }, 0, ""},
		{"websocket", []servers.Option{servers.Config(fmt.Sprintf("websocket: {listen: \"127.0.0.1:%s\", no_tls: true}", websocket))},
			func(c *jetstream.Config) { c.Servers = "ws://127.0.0.1:" + websocket }, 0, ""},

		{"tls", []servers.Option{tls(serverCert, serverKey, "")}, func(c *jetstream.Config) { scheme("tls")(c); c.TLSCAFile = a.File }, 0, ""},
		{"tls asked for by the server", []servers.Option{tls(serverCert, serverKey, "")}, func(c *jetstream.Config) { c.TLSCAFile = a.File }, 0, ""},
		{"tls first", []servers.Option{tls(serverCert, serverKey, "handshake_first: true")},
			func(c *jetstream.Config) { scheme("tls")(c); c.TLSCAFile, c.TLSFirst = a.File, true }, 0, ""},
		{"client certificate", []servers.Option{tls(serverCert, serverKey, "verify: true")},
			func(c *jetstream.Config) { c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = a.File, clientCert, clientKey }, 0, ""},
		{"unknown authority", []servers.Option{tls(serverCert, serverKey, "")}, scheme("tls"), outputs.Misconfigured, "TLS_CA_FILE"},
		{"expired", []servers.Option{tls(oldCert, oldKey, "")}, func(c *jetstream.Config) { c.TLSCAFile = a.File }, outputs.Misconfigured, "expired"},
		{"other name", []servers.Option{tls(otherCert, otherKey, "")}, func(c *jetstream.Config) { c.TLSCAFile = a.File }, outputs.Misconfigured, "127.0.0.1"},
		{"no TLS there", nil, func(c *jetstream.Config) { scheme("tls")(c); c.TLSCAFile = a.File }, outputs.Misconfigured, "secure connection not available"},
		{"wrong token", []servers.Option{servers.Config("authorization: {token: secret}")}, func(c *jetstream.Config) { c.Token = "guess" }, outputs.Failover, "Authorization Violation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			plain := servers.StartNATS(t, t.TempDir(), c.server...)
			o := hub(t, plain, func(config *jetstream.Config) { config.Stream = ""; c.change(config) })
			run := newFeed().run(times(3, 100)...)
			if c.action != 0 {
				fails(t, o, run, 0, outputs.StoredNo, c.action, c.text)
				return
			}
			// Without a stream: that it says so is proof of the whole way.
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
				_, err := outputtest.Publish(t.Context(), o, run)
				if err == nil {
					t.Fatal("accepted without a stream")
				}
				if strings.Contains(err.Error(), "nats stream add") {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
		})
	}
}

// freePort is servers.FreePort as text.
func freePort(t *testing.T) string {
	t.Helper()
	return strconv.Itoa(servers.FreePort(t))
}
