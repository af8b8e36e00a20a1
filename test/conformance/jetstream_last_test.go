package conformance

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/test/faults"
	"spillway/test/servers"
)

// last is Last, as soon as o is connected.
func last(t *testing.T, o *jetstream.Output) outputs.Mark {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		m, err := o.Last(t.Context(), "main")
		if err == nil {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// mustCheck fails unless o wants Last to be asked before it publishes, and says
// that nothing was sent.
func mustCheck(t *testing.T, o *jetstream.Output) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		n, err := o.Publish(t.Context(), newFeed().run(100))
		s, a := outputs.Classify(err)
		if n == 0 && errors.Is(err, outputs.ErrUnchecked) && s == outputs.StoredNo && a == outputs.Retry {
			return
		}
		if err == nil || time.Now().After(deadline) {
			t.Fatalf("accepted %d over a connection over which nothing was compared, stored %v, %v: %v", n, s, a, err)
		}
	}
}

func restore(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// What a stream has last of a lane; and that it has less after its server was
// restored from a copy, however the copy was made.
func TestJetStreamLast(t *testing.T) {
	copies := map[string]func(t *testing.T, n *servers.NATS, f func()){
		"of a stopped server": func(t *testing.T, n *servers.NATS, f func()) { n.Stop(t); f(); n.Start(t) },
		"of a halted server":  func(t *testing.T, n *servers.NATS, f func()) { n.Pause(t); f(); n.Resume(t) },
	}
	for _, c := range []struct {
		name, copy string
		server     []servers.Option
		change     func(*jetstream.Config)
	}{
		{"stream by name", "of a stopped server", nil, func(*jetstream.Config) {}},
		{"stream by name", "of a halted server", nil, func(*jetstream.Config) {}},
		{"stream by subject", "of a stopped server", nil, func(c *jetstream.Config) { c.Stream = "" }},
		{"no allow_direct", "of a stopped server", nil, func(*jetstream.Config) {}},
		{"domain", "of a stopped server", []servers.Option{servers.Domain("hub")}, func(c *jetstream.Config) { c.Domain = "hub" }},
		{"domain, stream by subject", "of a stopped server", []servers.Option{servers.Domain("hub")}, func(c *jetstream.Config) { c.Domain, c.Stream = "hub", "" }},
	} {
		t.Run(c.name+", copy "+c.copy, func(t *testing.T) {
			dir, copied := t.TempDir(), t.TempDir()
			n := servers.StartNATS(t, dir, c.server...)
			logs := stream(func(s *servers.StreamConfig) { s.AllowDirect = c.name != "no allow_direct" })
			servers.CreateStream(t, n.URL, logs)
			o := hub(t, n, c.change)
			mustCheck(t, o)
			if m := last(t, o); m != (outputs.Mark{}) {
				t.Errorf("of an empty stream: %+v", m)
			}
			f := newFeed()
			works(t, o, f.run(times(5, 100)...))
			works(t, hub(t, n, func(c *jetstream.Config) { c.Subject = "logs.{site}.{agent}.{lane}.x" }), newFeed().run(times(9, 100)...))
			has := func(when string, want uint64) {
				t.Helper()
				if m := last(t, o); m != (outputs.Mark{Found: true, Epoch: f.sealer.Epoch, Last: want}) {
					t.Errorf("%s: %+v, want epoch %v, last %d", when, m, f.sealer.Epoch, want)
				}
			}
			has("after 5", 5)
			copies[c.copy](t, n, func() { restore(t, dir, copied) })
			works(t, o, f.run(times(5, 100)...))
			has("after 10", 10)

			n.Stop(t)
			restore(t, copied, dir)
			disconnects(t, o)
			n.Start(t)
			mustCheck(t, o)
			if got := messages(t, n); got != 14 {
				t.Errorf("%d messages before anything was compared, want 14", got)
			}
			has("restored", 5)

			other := newFeed() // the agent's buffer was lost, it has another epoch
			other.next = 3
			works(t, hub(t, n, c.change), other.run(100))
			if m := last(t, o); m != (outputs.Mark{Found: true, Epoch: other.sealer.Epoch, Last: 3}) {
				t.Errorf("of another epoch: %+v", m)
			}
			servers.JetStream(t, n.URL, func(ctx context.Context, js natsjs.JetStream) error {
				if c.server != nil {
					return js.DeleteStream(ctx, "LOGS")
				}
				s, err := js.Stream(ctx, "LOGS")
				if err == nil {
					err = s.Purge(ctx)
				}
				return err
			})
			if c.server != nil { // made anew
				servers.CreateStream(t, n.URL, logs)
			}
			if m := last(t, o); m != (outputs.Mark{}) {
				t.Errorf("of a stream that was emptied: %+v", m)
			}
		})
	}
}

// grants is the text of a publish permission with several subjects, for account.
func grants(subjects ...string) string { return strings.Join(subjects, `", "`) }

// A stream that can't be asked is no reason to hold the lane up: the mark says what
// to do about it, at once, and what follows is published.
func TestJetStreamLastUnknown(t *testing.T) {
	const own, direct = "logs.default.gw1.>", "$JS.API.DIRECT.GET.LOGS.logs.default.gw1.>"
	nameless := func(c *jetstream.Config) { c.Stream = "" }
	named := func(*jetstream.Config) {}
	for _, c := range []struct {
		name    string
		publish string
		stream  servers.StreamConfig
		change  func(*jetstream.Config)
		want    string // "": it is known
	}{
		{"all is granted", grants(own, direct), logs, named, ""},
		{"no permission", own, logs, named, "grant publish on $JS.API.DIRECT.GET.LOGS.logs.default.gw1.main"},
		{"no allow_direct", grants(own, direct), stream(func(c *servers.StreamConfig) { c.AllowDirect = false }), named, "allow-direct"},
		{"no name", grants(own, direct), logs, nameless, "set SPILLWAY_OUTPUT_HUB_STREAM"},
		{"names are granted", grants(own, direct, "$JS.API.STREAM.NAMES"), logs, nameless, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, _ := withUsers(t, account{"secret", c.publish, least.subscribe})
			servers.CreateStream(t, n.URL, c.stream)
			o := hub(t, n, as("gw1", "secret"), func(c *jetstream.Config) { c.AckTimeout = time.Minute }, c.change)
			begin := time.Now()
			m := last(t, o)
			t.Logf("%+v", m)
			if c.want == "" && m != (outputs.Mark{}) || !strings.Contains(m.Unknown, c.want) || m.Found {
				t.Errorf("%+v, want %q", m, c.want)
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
			if n, err := o.Publish(t.Context(), newFeed().run(times(5, 100)...)); err != nil {
				t.Errorf("accepted %d: %v", n, err)
			}
			// An acknowledgement has named the stream.
			if c.name == "no name" {
				if m := last(t, o); m.Last != 5 {
					t.Errorf("after an acknowledgement: %+v", m)
				}
			}
		})
	}
	t.Run("a stranger's message", func(t *testing.T) {
		n := servers.StartNATS(t, t.TempDir())
		servers.CreateStream(t, n.URL, logs)
		servers.JetStream(t, n.URL, func(ctx context.Context, js natsjs.JetStream) error {
			_, err := js.Publish(ctx, "logs.default.gw1.main", []byte("hello"))
			return err
		})
		o := hub(t, n)
		if m := last(t, o); !strings.Contains(m.Unknown, "not a batch of spillway") {
			t.Errorf("%+v", m)
		}
		if n, err := o.Publish(t.Context(), newFeed().run(100)); err != nil {
			t.Errorf("accepted %d: %v", n, err)
		}
	})
}

// A stream that can't be asked because nothing works fails as a Publish does.
func TestJetStreamLastFails(t *testing.T) {
	fails := func(t *testing.T, o *jetstream.Output, action outputs.Action, patience time.Duration, text string) {
		t.Helper()
		begin := time.Now()
		m, err := o.Last(t.Context(), "main")
		t.Log(err)
		var e *outputs.Error
		if !errors.As(err, &e) || m != (outputs.Mark{}) || e.Stored != outputs.StoredNo || e.Action != action || e.Patience != patience || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: %#v", m, err)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("took %v", took)
		}
	}
	t.Run("no stream", func(t *testing.T) {
		n := servers.StartNATS(t, t.TempDir())
		for _, name := range []string{"LOGS", ""} {
			o := hub(t, n, func(c *jetstream.Config) { c.Stream = name })
			fails(t, o, outputs.Retry, 10*time.Second, "nats stream add LOGS")
		}
	})
	t.Run("silent and down", func(t *testing.T) {
		n := servers.StartNATS(t, t.TempDir())
		servers.CreateStream(t, n.URL, logs)
		o := hub(t, n)
		last(t, o)
		n.Pause(t)
		fails(t, o, outputs.Retry, 0, "no answer within 2s")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, err := o.Last(ctx, "main"); err == nil || time.Since(begin) > 1900*time.Millisecond { // ACK_TIMEOUT is 2s
			t.Errorf("its time over: %v after %v", err, time.Since(begin))
		}
		n.Resume(t)
		last(t, o)
		n.Kill(t)
		disconnects(t, o)
		fails(t, o, outputs.Retry, 0, "not connected")
	})
	t.Run("no inbox", func(t *testing.T) {
		n, _ := withUsers(t, account{"secret", least.publish, "_INBOX_gw2.>"})
		fails(t, hub(t, n, as("gw1", "secret")), outputs.Misconfigured, 0, "grant subscribe on _INBOX_gw1.>")
	})
}

// A line on which one message takes longer than ACK_TIMEOUT: neither a batch on its
// way nor the answer to Last, which is a whole message, is taken for silence, or
// sent twice.
func TestJetStreamSlowLine(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	p := faults.New(t, n.URL)
	o := hub(t, n, func(c *jetstream.Config) { c.Servers, c.AckTimeout = "nats://"+p.Address, 3*time.Second })
	f := newFeed()
	works(t, o, f.run(100))
	p.Slow(200_000, 0) // 900 kB take 4.5 s
	var moved, longest atomic.Int64
	begin := time.Now()
	mark := func() {
		now := time.Since(begin).Nanoseconds()
		longest.Store(max(longest.Load(), now-moved.Swap(now)))
	}
	ctx := outputs.WithMoved(t.Context(), mark)
	if n, err := o.Publish(ctx, f.run(times(3, 900_000)...)); err != nil {
		t.Errorf("accepted %d: %v", n, err)
	}
	published := time.Since(begin)
	if m, err := o.Last(ctx, "main"); err != nil || m.Last != 4 {
		t.Errorf("%+v, %v", m, err)
	}
	mark()
	t.Logf("published within %v, asked within %v; nothing moved for up to %v", published, time.Since(begin)-published, time.Duration(longest.Load()))
	if longest.Load() > int64(3*time.Second) {
		t.Error("longer without a sign of life than ACK_TIMEOUT")
	}
	if c := o.Counts(); c.AlreadyThere > 0 {
		t.Errorf("counted %+v", c)
	}
}

// Whatever happens to the connection, what is published is accepted only over one
// over which Last was asked before.
func TestJetStreamSessions(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	p := faults.New(t, n.URL)
	o := hub(t, n, func(c *jetstream.Config) { c.Servers = "nats://" + p.Address })
	f := newFeed()
	works(t, o, f.run(100))
	for i := range 3 {
		p.Reset()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if _, ever := p.Connections(); ever >= i+2 && o.Connected() {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("no new connection")
			}
		}
		mustCheck(t, o)
		works(t, o, f.run(100))
	}
	// Another lane is not checked with it.
	other := newFeed().run(100)
	other.Lane = "audit"
	if _, err := o.Publish(t.Context(), other); !errors.Is(err, outputs.ErrUnchecked) {
		t.Errorf("another lane: %v", err)
	}
	// Nor is a connection good for ever: a stream that was away may come back with less.
	servers.DeleteStream(t, n.URL, "LOGS")
	fails(t, o, f.run(100), 0, outputs.StoredNo, outputs.Retry, "no stream takes")
	servers.CreateStream(t, n.URL, logs)
	mustCheck(t, o)
	stored(t, n, 0)
}
