package jetstream

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/outputs"
)

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty := file("empty", "")
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // the problems' beginnings, in order; "" is none
	}{
		{"defaults", func(*Config) {}, ""},
		{"cluster", func(c *Config) { c.Servers = "nats://a:4222, b:4222,nats://c" }, ""},
		{"user in URL", func(c *Config) { c.Servers = "tls://u:p%40ss@hub:4222" }, ""},
		{"websocket path", func(c *Config) { c.Servers = "wss://hub/nats" }, ""},
		{"no URL", func(c *Config) { c.Servers = "" }, "URL:"},
		{"scheme", func(c *Config) { c.Servers = "http://hub" }, `URL: "http" is no scheme`},
		{"no host", func(c *Config) { c.Servers = "nats://:4222" }, "URL: names no host"},
		{"stream in URL", func(c *Config) { c.Servers = "nats://hub/LOGS" }, "URL: has something behind"},
		{"mixed", func(c *Config) { c.Servers = "ws://a,nats://b" }, "URL: mixes"},
		{"password not escaped", func(c *Config) { c.Servers = "nats://u:p%ss@hub" }, "URL: not a URL"},
		{"stream", func(c *Config) { c.Stream = "my.logs" }, `STREAM: "my.logs"`},
		{"domain", func(c *Config) { c.Domain = "a b" }, "DOMAIN:"},
		{"field", func(c *Config) { c.Subject = "logs.{dataset}" }, `SUBJECT: "logs.{dataset}" has the field {dataset}`},
		{"open field", func(c *Config) { c.Subject = "logs.{lane" }, "SUBJECT:"},
		{"wildcard", func(c *Config) { c.Subject = "logs.>" }, "SUBJECT:"},
		{"empty token", func(c *Config) { c.Subject = "logs..{lane}" }, "SUBJECT:"},
		{"system subject", func(c *Config) { c.Subject = "$JS.{lane}" }, "SUBJECT:"},
		{"inbox", func(c *Config) { c.InboxPrefix = "_INBOX_{lane}" }, "INBOX_PREFIX:"},
		{"inflight 0", func(c *Config) { c.MaxInflight = 0 }, "MAX_INFLIGHT:"},
		{"inflight", func(c *Config) { c.MaxInflight = 257 }, "MAX_INFLIGHT:"},
		{"inflight bytes", func(c *Config) { c.MaxInflightBytes = 2 << 30 }, "MAX_INFLIGHT_BYTES:"},
		{"ack timeout", func(c *Config) { c.AckTimeout = time.Millisecond }, "ACK_TIMEOUT:"},
		{"reconnect", func(c *Config) { c.ReconnectMin, c.ReconnectMax = time.Minute, time.Second }, "RECONNECT_MAX:"},
		{"two ways", func(c *Config) { c.User, c.Token = "u", "t" }, "TOKEN: one way of authentication is enough, and USER is set too"},
		{"URL and user", func(c *Config) { c.Servers, c.User = "nats://u:p@hub", "u" }, "USER: one way"},
		{"password alone", func(c *Config) { c.Password = "p" }, "PASSWORD: set without USER"},
		{"no creds", func(c *Config) { c.CredsFile = filepath.Join(dir, "none") }, "CREDS_FILE: open "},
		{"no seed", func(c *Config) { c.NkeyFile = empty }, "NKEY_FILE: " + empty + " holds no seed"},
		{"no CA", func(c *Config) { c.TLSCAFile = empty }, "TLS_CA_FILE: " + empty + " holds no certificate"},
		{"no key", func(c *Config) { c.TLSCertFile = empty }, "TLS_KEY_FILE: not set"},
		{"no cert", func(c *Config) { c.TLSKeyFile = empty }, "TLS_CERT_FILE: not set"},
		{"bad cert", func(c *Config) { c.TLSCertFile, c.TLSKeyFile = empty, empty }, "TLS_CERT_FILE:"},
		{"TLS first", func(c *Config) { c.TLSFirst = true }, "TLS_FIRST: changes nothing"},
		{"several", func(c *Config) { c.Stream, c.MaxInflight = "a b", -1 }, "STREAM:\nMAX_INFLIGHT:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := Config{Servers: "nats://hub:4222"}.withDefaults()
			c.change(&config)
			err := config.Validate()
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatalf("no problem; want %q", c.want)
			}
			got := strings.Split(err.Error(), "\n")
			want := strings.Split(c.want, "\n")
			if len(got) != len(want) {
				t.Fatalf("problems\n%v\nwant %d", err, len(want))
			}
			for i := range want {
				if !strings.HasPrefix(got[i], want[i]) {
					t.Errorf("problem %q, want it to begin with %q", got[i], want[i])
				}
			}
			if strings.Contains(err.Error(), "p%ss") {
				t.Errorf("the password is shown: %v", err)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct{ site, agent, url string }{{"a.b", "gw1", "nats://hub"}, {"default", "gw 1", "nats://hub"}, {"default", "gw1", "x://hub"}} {
		if _, err := New("hub", c.site, c.agent, Config{Servers: c.url}, log); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

func TestSourceURL(t *testing.T) {
	for _, c := range []struct{ url, servers, stream, subject, err string }{
		{"nats://hub:4222/LOGS", "nats://hub:4222", "LOGS", "", ""},
		{"tls://u:p@a:1,b:2/LOGS?subject=logs.*.gw1.%3E", "tls://u:p@a:1,tls://b:2", "LOGS", "logs.*.gw1.>", ""},
		{"wss://hub/nats/LOGS", "wss://hub/nats", "LOGS", "", ""},
		{"nats://hub:4222", "", "", "", "names no stream"},
		{"nats://hub:4222/", "", "", "", "names no stream"},
		{"nats://hub:4222/a.b", "", "", "", "names no stream"},
		{"nats://hub:4222/LOGS?from=1", "", "", "", "from is no option"},
	} {
		s, err := NewSource(t.Context(), c.url, Config{})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %s", c.url, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		if s := s.(*source); s.c.Servers != c.servers || s.stream != c.stream || s.subject != c.subject {
			t.Errorf("%s: servers %q, stream %q, subject %q", c.url, s.c.Servers, s.stream, s.subject)
		}
	}
	var _ outputs.Source = (*source)(nil)
}
