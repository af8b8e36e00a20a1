package conformance

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/test/servers"
)

// ask is Last, as soon as the server can be asked.
func ask(t *testing.T, o *jetstream.Output) outputs.Mark {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		m, err := o.Last(t.Context(), "main")
		if err == nil {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// unchecked says whether o refuses to publish before it is asked what it has.
func unchecked(t *testing.T, o *jetstream.Output, f *feed) bool {
	t.Helper()
	n, err := o.Publish(t.Context(), f.run(100))
	if s, a := outputs.Classify(err); err != nil && (n != 0 || s != outputs.StoredNo || a != outputs.Retry) {
		t.Errorf("accepted %d: %v", n, err)
	}
	return errors.Is(err, outputs.ErrUnchecked)
}

// What the stream has last of a lane, whichever way it lets itself be asked; and
// what it lost is seen after the reconnect that every loss comes with.
func TestJetStreamLast(t *testing.T) {
	for _, c := range []struct {
		name   string
		stream servers.StreamConfig
		change func(*jetstream.Config)
	}{
		{"direct", logs, nil},
		{"direct, stream found by its subject", logs, func(c *jetstream.Config) { c.Stream = "" }},
		{"by the leader", stream(func(c *servers.StreamConfig) { c.AllowDirect = false }), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			n := servers.StartNATS(t, dir)
			servers.CreateStream(t, n.URL, c.stream)
			if c.change == nil {
				c.change = func(*jetstream.Config) {}
			}
			o := hub(t, n, func(config *jetstream.Config) { config.Stream = "LOGS"; c.change(config) })
			f := newFeed()
			if !unchecked(t, o, f) {
				t.Error("publishes on a new connection without being asked what it has")
			}
			if m := ask(t, o); m != (outputs.Mark{}) {
				t.Errorf("of an empty stream: %+v", m)
			}
			f = newFeed()
			works(t, o, f.run(times(5, 100)...))
			works(t, hub(t, n, func(config *jetstream.Config) { config.Subject = "logs.{site}.{agent}.{lane}.other" }), newFeed().run(times(9, 100)...)) // another's
			if m := ask(t, o); !m.Found || m.Last != 5 || m.Epoch != f.sealer.Epoch || m.Unknown != "" {
				t.Errorf("after five: %+v", m)
			}
			n.Stop(t)
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			n.Start(t)
			works(t, o, f.run(times(5, 100)...))
			if m := ask(t, o); m.Last != 10 {
				t.Errorf("after ten: %+v", m)
			}
			// The server is restored from the copy.
			n.Stop(t)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(dir, os.DirFS(copied)); err != nil {
				t.Fatal(err)
			}
			disconnects(t, o)
			n.Start(t)
			if m := ask(t, o); !m.Found || m.Last != 5 {
				t.Errorf("after the restore: %+v", m)
			}
			servers.JetStream(t, n.URL, func(ctx context.Context, js natsjs.JetStream) error {
				s, err := js.Stream(ctx, "LOGS")
				if err == nil {
					err = s.Purge(ctx)
				}
				return err
			})
			if m := ask(t, o); m != (outputs.Mark{}) {
				t.Errorf("of a purged stream: %+v", m)
			}
		})
	}
}

// Where a right or an option is missing, the mark says so, and nothing waits for it.
func TestJetStreamLastUnknown(t *testing.T) {
	n, change := withUsers(t, account{"secret", "logs.default.gw1.>", "_INBOX_gw1.>"})
	patient := func(c *jetstream.Config) { c.AckTimeout = time.Hour }
	o := hub(t, n, as("gw1", "secret"), patient, func(c *jetstream.Config) { c.Stream = "LOGS" })
	m := ask(t, o)
	if !strings.Contains(m.Unknown, "grant publish on $JS.API.DIRECT.GET.LOGS.logs.default.gw1.main") {
		t.Errorf("without the right: %+v", m)
	}
	f := newFeed()
	works(t, o, f.run(times(3, 100)...))
	nameless := hub(t, n, as("gw1", "secret"), patient, func(c *jetstream.Config) { c.Stream = "" })
	if m := ask(t, nameless); !strings.Contains(m.Unknown, "set SPILLWAY_OUTPUT_HUB_STREAM") {
		t.Errorf("without the stream's name: %+v", m)
	}
	change(account{"secret", "logs.default.gw1.> $JS.API.DIRECT.GET.LOGS.logs.default.gw1.>", "_INBOX_gw1.>"})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if m = ask(t, o); m.Found && m.Last == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with the right: %+v", m)
		}
	}
}
