package jetstream

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
)

func TestTaken(t *testing.T) {
	for _, tt := range []struct {
		filters, subject string
		want             bool
	}{
		{"logs.>", "logs.a.b.main", true},
		{"logs.>", "logs", false},
		{">", "logs", true},
		{"logs.*.b.main", "logs.a.b.main", true},
		{"logs.*", "logs.a.b", false},
		{"logs.a.b", "logs.a", false},
		{"logs.a", "logs.b", false},
		{"x y.> logs.a", "logs.a", true},
		{"", "logs.a", false},
	} {
		if got := taken(strings.Fields(tt.filters), tt.subject); got != tt.want {
			t.Errorf("%s takes %s: %t", tt.filters, tt.subject, got)
		}
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{time.Hour: "1h", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", 30 * time.Second: "30s", 90 * time.Second: "1m30s", 720 * time.Hour: "720h", 0: "0s"} {
		if got := short(d); got != want {
			t.Errorf("%d is %s, want %s", d, got, want)
		}
	}
}

func TestFilter(t *testing.T) {
	for subject, want := range map[string]string{"logs.{site}.{agent}.{lane}": "logs.>", "a.b.x{agent}": "a.b.>", "{agent}.logs": ">", "logs": "logs"} {
		o := &Output{c: Config{Subject: subject}}
		if got := o.filter(); got != want {
			t.Errorf("%s: %s, want %s", subject, got, want)
		}
	}
}

// TestRareStreams judges settings that are tedious to have a server for. The others
// are in the conformance tests.
func TestRareStreams(t *testing.T) {
	i := &inspection{Output: &Output{name: "hub", c: Config{Subject: "logs.{lane}"}, l: &link{cluster: true}}, need: outputs.Need{Lanes: []string{"main"}, Kept: 10 * time.Minute}, subjects: []string{"logs.main"}}
	for _, tt := range []struct {
		name   string
		change func(*jetstream.StreamConfig)
		want   string // level, text and hint
	}{
		{"sealed", func(c *jetstream.StreamConfig) { c.Sealed = true },
			"3 LOGS: it is sealed, for ever [make another one: nats stream add LOGS2 --subjects 'logs.>' --storage file --replicas 3 --retention limits --discard old --max-age 30d --dupe-window 1h --allow-direct --defaults]"},
		{"mirror", func(c *jetstream.StreamConfig) { c.Mirror = &jetstream.StreamSource{Name: "HUB"} },
			"3 LOGS: it is a mirror, which takes nothing from anybody else [name the stream that it mirrors in SPILLWAY_OUTPUT_HUB_STREAM]"},
		{"async", func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
			"2 LOGS: its persist_mode is async: it acknowledges before it writes [use the default mode for what must not be lost]"},
		{"nothing kept", func(*jetstream.StreamConfig) {},
			"2 LOGS: a server may acknowledge 2m before it has written to its disk (sync_interval), and delivered batches are kept for 0s: what a power cut takes from it can't be sent again [raise SPILLWAY_BUFFER_KEEP_ACKED to 10m, or set sync_interval: always on the server]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i.need.Kept = 10 * time.Minute
			if tt.name == "nothing kept" {
				i.need.Kept = 0
			}
			info := &streamInfo{}
			info.Config = jetstream.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}, AllowDirect: true, Replicas: 1}
			tt.change(&info.Config)
			all := i.stream(info)
			if len(all) != 2 || all[0].Level != outputs.Good {
				t.Fatalf("%+v", all)
			}
			if f := all[1]; string('0'+rune(f.Level))+" "+f.Text+" ["+f.Hint+"]" != tt.want {
				t.Errorf("%+v", f)
			}
		})
	}
}

// TestClaims is about a user whose credentials say who it is, and for how long.
func TestClaims(t *testing.T) {
	in := time.Now().Add(time.Hour)
	body := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"name":"edge-gw1","sub":"UABC","exp":%d}`, in.Unix()))
	_, creds := user(t, "head."+body+".signature")
	path := filepath.Join(t.TempDir(), "gw1.creds")
	if err := os.WriteFile(path, []byte(creds), 0o600); err != nil {
		t.Fatal(err)
	}
	i := &inspection{Output: &Output{name: "hub", c: Config{Servers: "nats://h", CredsFile: path}}}
	if got, want := i.who(), "user edge-gw1 (UABC, "+path+")"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	ends := i.ends()
	if len(ends) != 1 || ends[0].what != "the user of SPILLWAY_OUTPUT_HUB_CREDS_FILE" || ends[0].at.Unix() != in.Unix() {
		t.Errorf("%+v", ends)
	}
}

// TestWho is about names, and about keeping secrets out of them.
func TestWho(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Servers: "nats://h"}, "nobody (no user, no token, no certificate)"},
		{Config{Servers: "nats://h", User: "gw1", Password: "s3cret"}, "user gw1"},
		{Config{Servers: "nats://h", Token: "s3cret"}, "the holder of a token"},
		{Config{Servers: "nats://gw1:s3cret@h,nats://gw1:s3cret@g"}, "user gw1"},
		{Config{Servers: "nats://s3cret@h"}, "the holder of a token"},
	} {
		i := &inspection{Output: &Output{c: tt.c}}
		if got := i.who(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
		if got := redacted(tt.c.Servers); strings.Contains(got, "s3cret") || strings.Contains(got, "gw1") || !strings.Contains(got, "nats://h") {
			t.Errorf("redacted: %s", got)
		}
	}
}
