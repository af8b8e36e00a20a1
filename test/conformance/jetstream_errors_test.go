package conformance

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"spillway/buffer/batch"
	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/outputs/outputtest"
	"spillway/test/servers"
)

// feed makes the batches of one lane. They are plain lines: what they hold is of
// no concern here.
type feed struct {
	sealer batch.Sealer
	next   uint64
}

func newFeed() *feed {
	return &feed{sealer: batch.Sealer{Epoch: batch.Epoch(rand.Uint64())}, next: 1}
}

// run returns a run of one batch of each size, in bytes.
func (f *feed) run(sizes ...int) *batch.Run {
	run := &batch.Run{Lane: "main", Agent: "gw1", Epoch: f.sealer.Epoch, Before: f.sealer.Prev, Attempt: 1}
	for _, size := range sizes {
		text := fmt.Appendf(nil, "%d ", f.next)
		p := append(bytes.Repeat(text, size/len(text)+1)[:size-1], '\n')
		b := batch.Batch{Payload: p, Header: batch.Header{Length: uint32(size), Raw: uint32(size), First: f.next, Count: 1,
			FirstTime: time.Now().UnixNano(), LastTime: time.Now().UnixNano(), CRC: batch.CRC32C(p), Sum: sha256.Sum256(p)}}
		f.sealer.Seal(&b)
		run.Batches = append(run.Batches, b)
		f.next++
	}
	return run
}

// times returns n times size.
func times(n, size int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = size
	}
	return s
}

// fails publishes run and holds the answer to what is wanted.
func fails(t *testing.T, o outputs.Output, run *batch.Run, accepted int, stored outputs.Stored, action outputs.Action, text ...string) {
	t.Helper()
	n, err := outputtest.Publish(t.Context(), o, run)
	if err == nil {
		t.Fatalf("all %d batches are accepted", n)
	}
	t.Log(err)
	if s, a := outputs.Classify(err); n != accepted || s != stored || a != action {
		t.Errorf("accepted %d, stored %v, %v; want %d, %v, %v: %v", n, s, a, accepted, stored, action, err)
	}
	for _, want := range text {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

// works publishes run until it is accepted, as an agent would.
func works(t *testing.T, o outputs.Output, run *batch.Run) {
	t.Helper()
	rest := *run
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		n, err := outputtest.Publish(t.Context(), o, &rest)
		if err == nil {
			return
		}
		if n > 0 {
			rest.Before, rest.Batches = rest.BeforeOf(n), rest.Batches[n:]
		}
		if rest.Attempt++; time.Now().After(deadline) {
			t.Fatalf("not accepted: %v", err)
		}
	}
}

// disconnects waits until o says that it is not connected.
func disconnects(t *testing.T, o *jetstream.Output) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); o.Connected(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still connected")
		}
	}
}

// messages returns how many messages the stream holds.
func messages(t *testing.T, n *servers.NATS) (count uint64) {
	t.Helper()
	servers.JetStream(t, n.URL, func(ctx context.Context, js natsjs.JetStream) error {
		s, err := js.Stream(ctx, "LOGS")
		if err == nil {
			count = s.CachedInfo().State.Msgs
		}
		return err
	})
	return count
}

// What is sent again goes alone until it is acknowledged, so that nothing is stored
// before it that belongs behind it.
func TestJetStreamSentAgain(t *testing.T) {
	for attempt, want := range map[int]uint64{1: 2, 2: 0} {
		n := servers.StartNATS(t, t.TempDir())
		servers.CreateStream(t, n.URL, stream(func(c *servers.StreamConfig) { c.MaxMsgSize = 5000 }))
		run := newFeed().run(9000, 100, 100)
		run.Attempt = attempt
		if accepted, err := outputtest.Publish(t.Context(), hub(t, n), run); accepted != 0 || err == nil {
			t.Errorf("attempt %d: %d accepted, %v", attempt, accepted, err)
		}
		if got := messages(t, n); got != want {
			t.Errorf("attempt %d: the stream holds %d messages behind one that it refused, want %d", attempt, got, want)
		}
	}
}

// stored reads LOGS back and fails unless it holds the records 1 to last, each
// once, chained by their seals, with the bytes that were sealed, and in order but for
// those that say that they were sent again.
func stored(t *testing.T, n *servers.NATS, last uint64) {
	t.Helper()
	src, err := jetstream.NewSource(t.Context(), n.URL+"/LOGS", jetstream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var all []*outputs.Object
	var high uint64
	for o, err := range src.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var body bytes.Buffer
		if _, err := body.ReadFrom(o.Body); err != nil {
			t.Fatal(err)
		}
		if crc := batch.CRC32C(body.Bytes()); crc != o.CRC {
			t.Fatalf("%s %s: CRC %08x of %08x", o.Duplicate, o.Name, crc, o.CRC)
		}
		if o.First <= high && o.Attempt < 2 {
			t.Errorf("%s %s: records %d-%d come after %d, and were sent once", o.Duplicate, o.Name, o.First, o.Last, high)
		}
		high = max(high, o.Last)
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *outputs.Object) int { return cmp.Compare(a.First, b.First) })
	var next uint64 = 1
	var seal batch.Seal
	for _, o := range all {
		if o.First != next || o.Before != seal {
			t.Fatalf("%s %s: records %d-%d after %d, seal before %s, want %s", o.Duplicate, o.Name, o.First, o.Last, next-1, o.Before, seal)
		}
		next, seal = o.Last+1, o.Seal
	}
	if next-1 != last {
		t.Errorf("records 1 to %d are stored, want to %d", next-1, last)
	}
}

// stream is logs with changes.
func stream(f func(*servers.StreamConfig)) servers.StreamConfig {
	c := logs
	f(&c)
	return c
}

// What a stream that refuses says, and what is accepted before it does.
func TestJetStreamRefuses(t *testing.T) {
	const no, maybe, unfit, failover, misconfigured = outputs.StoredNo, outputs.StoredMaybe, outputs.Unfit, outputs.Failover, outputs.Misconfigured
	full := func(f func(*servers.StreamConfig)) servers.StreamConfig {
		return stream(func(c *servers.StreamConfig) { c.Discard = natsjs.DiscardNew; f(c) })
	}
	for _, c := range []struct {
		name     string
		stream   servers.StreamConfig // none when it has no name
		change   func(*jetstream.Config)
		sizes    []int
		accepted int
		stored   outputs.Stored
		action   outputs.Action
		text     []string
	}{
		{"no stream", servers.StreamConfig{}, nil, times(5, 100), 0, no, outputs.Retry, []string{"logs.default.gw1.main", "nats stream add LOGS --subjects 'logs.>'"}},
		{"full of messages", full(func(c *servers.StreamConfig) { c.MaxMsgs = 3 }), nil, times(10, 100), 3, no, failover, []string{"maximum messages exceeded", "LOGS"}},
		{"full of bytes", full(func(c *servers.StreamConfig) { c.MaxBytes = 10_000 }), nil, times(10, 4000), 2, no, failover, []string{"maximum bytes exceeded"}},
		{"full of a subject", full(func(c *servers.StreamConfig) { c.MaxMsgsPerSubject, c.DiscardNewPerSubject = 2, true }), nil, times(10, 100), 2, no, failover, []string{"per subject"}},
		{"message too large", stream(func(c *servers.StreamConfig) { c.MaxMsgSize = 5000 }), nil, []int{100, 100, 9000, 100}, 2, no, unfit, []string{"max_msg_size"}},
		{"another stream", logs, func(c *jetstream.Config) { c.Stream = "OTHER" }, times(3, 100), 0, no, misconfigured, []string{"SPILLWAY_OUTPUT_HUB_STREAM"}},
		{"another domain", logs, func(c *jetstream.Config) { c.Domain = "hub" }, times(1, 100), 0, outputs.StoredYes, misconfigured, []string{"SPILLWAY_OUTPUT_HUB_DOMAIN"}},
		{"sealed", logs, nil, times(3, 100), 0, no, misconfigured, []string{"sealed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := servers.StartNATS(t, t.TempDir())
			if c.stream.Name != "" {
				servers.CreateStream(t, n.URL, c.stream)
			}
			if c.name == "sealed" {
				servers.CreateStream(t, n.URL, stream(func(c *servers.StreamConfig) { c.Sealed = true }))
			}
			if c.change == nil {
				c.change = func(*jetstream.Config) {}
			}
			o := hub(t, n, c.change)
			fails(t, o, newFeed().run(c.sizes...), c.accepted, c.stored, c.action, c.text...)
			if s := o.Counts(); s.Delivered != uint64(c.accepted) {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// Behind a batch that does not fit, all others do.
func TestJetStreamStepsOverUnfit(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, stream(func(c *servers.StreamConfig) { c.MaxMsgSize = 5000 }))
	o := hub(t, n)
	run := newFeed().run(100, 9000, 100, 100)
	fails(t, o, run, 1, outputs.StoredNo, outputs.Unfit)
	rest := *run
	rest.Before, rest.Batches, rest.Attempt = run.BeforeOf(2), run.Batches[2:], 2
	works(t, o, &rest)
	if got := messages(t, n); got != 3 {
		t.Errorf("%d messages are stored, want 3", got)
	}
	if s := o.Counts(); s != (outputs.Counts{Delivered: 1, AlreadyThere: 2, Bytes: 100}) {
		t.Errorf("counted %+v: the two behind were stored while nobody waited", s)
	}
}

// A stream that comes to be full holds what was accepted and nothing else, and
// goes on where it stopped when there is room.
func TestJetStreamFullThenRoom(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	small := stream(func(c *servers.StreamConfig) { c.MaxMsgs, c.Discard = 5, natsjs.DiscardNew })
	servers.CreateStream(t, n.URL, small)
	o := hub(t, n)
	run := newFeed().run(times(40, 300)...)
	fails(t, o, run, 5, outputs.StoredNo, outputs.Failover)
	servers.CreateStream(t, n.URL, logs)
	run.Attempt = 2
	works(t, o, run) // all again, as after a restart: the first five are known
	stored(t, n, 40)
}

// A server with a smaller max_payload says so at connect, and Limits follows.
func TestJetStreamMaxPayload(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir(), servers.Config("max_payload: 64KB"))
	servers.CreateStream(t, n.URL, logs)
	o := hub(t, n)
	f := newFeed()
	works(t, o, f.run(100))
	lim := o.Limits().BatchBytes
	if lim != 64<<10-2<<10 {
		t.Fatalf("BatchBytes %d", lim)
	}
	works(t, o, f.run(int(lim)))
	fails(t, o, f.run(100, int(lim)+1, 100), 1, outputs.StoredNo, outputs.Unfit, "max_payload")
	if got := messages(t, n); got != 3 {
		t.Errorf("%d messages are stored, want 3: nothing is sent behind one that does not fit", got)
	}
}

// A server whose max_payload is lowered may end the connection for what it took
// before, in words that nats.go takes for final. The output goes on all the same.
func TestJetStreamPayloadLowered(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	o := hub(t, n)
	f := newFeed()
	works(t, o, f.run(200_000))
	n.Reload(t, "max_payload: 64KB")
	large := f.run(200_000)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		accepted, err := outputtest.Publish(t.Context(), o, large)
		if err != nil {
			t.Log(accepted, err)
		}
		if s, a := outputs.Classify(err); err != nil && s == outputs.StoredNo && a == outputs.Unfit {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("never unfit")
		}
	}
	works(t, o, f.run(100))
}

// account is what the server knows of the user gw1.
type account struct{ password, publish, subscribe string }

// withUsers starts a server that wants a login, with users admin and gw1. The
// returned function changes gw1 while the server runs.
func withUsers(t *testing.T, gw1 account) (n *servers.NATS, change func(account)) {
	t.Helper()
	users := func(a account) string {
		return fmt.Sprintf("authorization: {users: [{user: admin, password: admin}, {user: gw1, password: %s, permissions: {publish: [\"%s\"], subscribe: [%q]}}]}",
			a.password, a.publish, a.subscribe)
	}
	n = servers.StartNATS(t, t.TempDir(), servers.Config(users(gw1)))
	n.URL = strings.Replace(n.URL, "://", "://admin:admin@", 1)
	servers.CreateStream(t, n.URL, logs)
	return n, func(a account) { n.Reload(t, users(a)) }
}

// as makes an output log in as user.
func as(user, password string) func(*jetstream.Config) {
	return func(c *jetstream.Config) {
		_, host, _ := strings.Cut(c.Servers, "@")
		c.Servers, c.User, c.Password = "nats://"+host, user, password
	}
}

// least is the least that gw1 must be permitted.
var least = account{"secret", grants("logs.default.gw1.>", "$JS.API.DIRECT.GET.LOGS.logs.default.gw1.>"), "_INBOX_gw1.>"}

func TestJetStreamLeastPrivilege(t *testing.T) {
	n, _ := withUsers(t, least)
	o := hub(t, n, as("gw1", "secret"))
	works(t, o, newFeed().run(times(20, 100)...))
	if err := o.Probe(t.Context(), "main"); err != nil {
		t.Error(err)
	}
	if m := last(t, o); m.Last != 20 {
		t.Errorf("%+v", m)
	}
	stored(t, n, 20)
}

// A missing permission is told at once, not after a timeout, and its grant is
// noticed without a restart of the agent.
func TestJetStreamPermissions(t *testing.T) {
	for _, c := range []struct {
		name   string
		has    account
		stored outputs.Stored
		text   string
	}{
		{"publish", account{"secret", "logs.default.gw2.>", least.subscribe}, outputs.StoredMaybe, "grant publish on logs.default.gw1.main"},
		{"subscribe", account{"secret", least.publish, "_INBOX_gw2.>"}, outputs.StoredNo, "grant subscribe on _INBOX_gw1.>"}, // found out before anything is sent
	} {
		t.Run(c.name, func(t *testing.T) {
			n, change := withUsers(t, c.has)
			o := hub(t, n, as("gw1", "secret"), func(c *jetstream.Config) { c.AckTimeout = time.Hour })
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			run := newFeed().run(times(3, 100)...)
			for range 3 {
				accepted, err := outputtest.Publish(ctx, o, run)
				t.Log(err)
				if s, a := outputs.Classify(err); err == nil || ctx.Err() != nil || accepted != 0 || s != c.stored || a != outputs.Misconfigured || !strings.Contains(err.Error(), c.text) {
					t.Errorf("accepted %d, stored %v, %v: %v", accepted, s, a, err)
				}
				run.Attempt++
				c.stored = outputs.StoredNo // it begins with one batch, and that is the one that was refused
			}
			if err := o.Probe(ctx, "main"); err == nil || ctx.Err() != nil {
				t.Errorf("probe: %v", err)
			}
			change(least)
			works(t, o, run)
			// In which order is not said: it may have been granted between two of them.
			if got := messages(t, n); got != 3 {
				t.Errorf("%d messages are stored, want 3", got)
			}
		})
	}
}

// A refused login is told as such, and a new password on the server is enough.
func TestJetStreamLogin(t *testing.T) {
	n, change := withUsers(t, least)
	o := hub(t, n, as("gw1", "another"))
	run := newFeed().run(times(3, 100)...)
	for range 3 {
		fails(t, o, run, 0, outputs.StoredNo, outputs.Failover, "Authorization Violation", "SPILLWAY_OUTPUT_HUB_CREDS_FILE")
	}
	if err := o.Probe(t.Context(), "main"); err == nil {
		t.Error("the probe succeeds without a login")
	}
	change(account{"another", least.publish, least.subscribe})
	works(t, o, run)
	// The server throws out a user whose password changed.
	change(least)
	disconnects(t, o)
	fails(t, o, newFeed().run(100), 0, outputs.StoredNo, outputs.Failover, "Authorization Violation")
	stored(t, n, 3)
}

// A server that is restarted costs a moment, one that is killed an error that says
// so, until it is there again.
func TestJetStreamRestart(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	o := hub(t, n)
	f := newFeed()
	works(t, o, f.run(times(4, 100)...))
	n.Restart(t)
	works(t, o, f.run(times(4, 100)...))
	n.Kill(t)
	down := f.run(times(4, 100)...)
	accepted, err := outputtest.Publish(t.Context(), o, down)
	t.Log(err)
	if s, a := outputs.Classify(err); err == nil || accepted != 0 || s == outputs.StoredYes || a != outputs.Retry {
		t.Errorf("killed: accepted %d, stored %v, %v: %v", accepted, s, a, err)
	}
	disconnects(t, o)
	n.Start(t)
	works(t, o, down)
	stored(t, n, 12)
}

// Nothing is lost, doubled or out of order while the server is killed again and
// again under load: what was accepted before is there, the rest is sent again.
func TestJetStreamKilledUnderLoad(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	o := hub(t, n)
	f := newFeed()
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Second)
	defer stop()
	done := make(chan int)
	go func() {
		kills := 0
		defer func() { done <- kills }()
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(100+rand.IntN(400)) * time.Millisecond):
			}
			n.Kill(t)
			n.Start(t)
			kills++
		}
	}()
	for ctx.Err() == nil {
		works(t, o, f.run(times(1+rand.IntN(30), 1+rand.IntN(20_000)+10)...))
	}
	t.Logf("%d kills, %d batches, %+v", <-done, f.next-1, o.Counts())
	stored(t, n, f.next-1)
}

// A server that hangs: Publish ends by its own deadline, also when the socket is
// full and the write itself hangs, and soon when ctx ends. The payloads are the
// caller's from then on: what it does to them is not seen by the stream.
func TestJetStreamSilent(t *testing.T) {
	for _, c := range []struct {
		name    string
		batches int
		size    int
		cancel  bool
	}{{"few bytes", 3, 1000, false}, {"full socket", 64, 800 << 10, false}, {"few bytes, cancelled", 3, 1000, true}, {"full socket, cancelled", 64, 800 << 10, true}} {
		t.Run(c.name, func(t *testing.T) {
			n := servers.StartNATS(t, t.TempDir())
			servers.CreateStream(t, n.URL, logs)
			o := hub(t, n, func(config *jetstream.Config) {
				config.MaxInflight, config.MaxInflightBytes = 64, 64<<20
				if c.cancel {
					config.AckTimeout = time.Hour
				}
			})
			f := newFeed()
			works(t, o, f.run(100))
			run := f.run(times(c.batches, c.size)...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			n.Pause(t)
			lent := *run
			lent.Batches = nil
			for _, b := range run.Batches {
				b.Payload = bytes.Clone(b.Payload)
				lent.Batches = append(lent.Batches, b)
			}
			if c.cancel {
				time.AfterFunc(300*time.Millisecond, cancel)
			}
			begin := time.Now()
			accepted, err := outputtest.Publish(ctx, o, &lent)
			took := time.Since(begin)
			for _, b := range lent.Batches {
				for i := range b.Payload {
					b.Payload[i] = 'X'
				}
			}
			n.Resume(t)
			t.Logf("after %v: %v", took.Round(time.Millisecond), err)
			if s, a := outputs.Classify(err); err == nil || accepted != 0 || s != outputs.StoredMaybe || a != outputs.Retry {
				t.Errorf("accepted %d, stored %v, %v: %v", accepted, s, a, err)
			}
			if took > 30*time.Second {
				t.Errorf("took %v", took)
			}
			run.Attempt = 2
			works(t, o, run)
			stored(t, n, f.next-1)
		})
	}
}
