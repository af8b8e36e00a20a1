package conformance

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/test/servers"
)

// objects reads a source to its end, within a time that is far more than it needs.
func objects(t *testing.T, url string, c jetstream.Config) (all []*outputs.Object, err error) {
	t.Helper()
	src, err := jetstream.NewSource(t.Context(), url, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for o, err := range src.Objects(ctx) {
		if err != nil {
			return all, err
		}
		all = append(all, o)
	}
	return all, nil
}

// A source ends: with an empty stream, with strangers only, with a filter that
// nothing fits, with messages that were deleted, and while others are coming.
func TestJetStreamSourceEnds(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, stream(func(c *servers.StreamConfig) { c.Subjects = []string{"logs.>", "other"} }))
	url := n.URL + "/LOGS"
	count := func(url string, want int) {
		t.Helper()
		begin := time.Now()
		all, err := objects(t, url, jetstream.Config{})
		if err != nil || len(all) != want {
			t.Errorf("%s: %d objects, want %d: %v", url, len(all), want, err)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("%s: took %v", url, took)
		}
	}
	count(url, 0)
	o := hub(t, n)
	other := hub(t, n, func(c *jetstream.Config) { c.Subject = "logs.{site}.gw2.{lane}" })
	f, g := newFeed(), newFeed()
	for range 10 {
		works(t, o, f.run(times(5, 1000)...))
		works(t, other, g.run(times(3, 1000)...))
		servers.JetStream(t, n.URL, func(ctx context.Context, js natsjs.JetStream) error {
			_, err := js.Publish(ctx, "other", []byte("not ours"))
			return err
		})
	}
	count(url, 80)
	count(url+"?subject=logs.default.gw2.>", 30)
	count(url+"?subject=other", 0)
	count(url+"?subject=logs.nobody", 0)
	servers.JetStream(t, n.URL, func(ctx context.Context, js natsjs.JetStream) error {
		s, err := js.Stream(ctx, "LOGS")
		for _, seq := range []uint64{1, 2, 40, 89, 90} {
			if err == nil {
				err = s.DeleteMsg(ctx, seq)
			}
		}
		return err
	})
	count(url, 76)

	// What comes after the start is not waited for, and a stop in the middle is fine.
	src, err := jetstream.NewSource(t.Context(), url, jetstream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for o, err := range src.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if read++; read > 76 {
			t.Fatalf("%s came after the start", o.Name)
		}
		works(t, other, g.run(100))
	}
	if read != 76 {
		t.Errorf("%d objects read while others came, want 76", read)
	}
	for range src.Objects(t.Context()) {
		break
	}
}

func TestJetStreamSourceObject(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	o := hub(t, n)
	run := newFeed().run(100, 5000)
	works(t, o, run)
	all, err := objects(t, n.URL+"/LOGS", jetstream.Config{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d objects: %v", len(all), err)
	}
	for i, g := range all {
		b := run.Batches[i]
		body, err := io.ReadAll(g.Body)
		if err != nil || string(body) != string(b.Payload) {
			t.Errorf("%s: %d bytes: %v", g.Name, len(body), err)
		}
		if want := fmt.Sprintf("logs.default.gw1.main@%d", i+1); g.Name != want || g.Duplicate != b.Identity("gw1", run.Epoch).String() || g.Attempt != 1 {
			t.Errorf("name %q (want %q), identity %s, attempt %d", g.Name, want, g.Duplicate, g.Attempt)
		}
	}
}

// What can't be read says what it was, and does not hang.
func TestJetStreamSourceFails(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	short := jetstream.Config{AckTimeout: time.Second, ConnectTimeout: time.Second}
	if _, err := objects(t, n.URL+"/LOGS", short); err == nil || !strings.Contains(err.Error(), "stream LOGS: ") || !strings.Contains(err.Error(), "stream not found") {
		t.Errorf("no stream: %v", err)
	}
	servers.CreateStream(t, n.URL, logs)
	o := hub(t, n)
	works(t, o, newFeed().run(times(16, 400_000)...))
	src, err := jetstream.NewSource(t.Context(), n.URL+"/LOGS", short)
	if err != nil {
		t.Fatal(err)
	}
	read, failed := 0, error(nil)
	for _, err := range src.Objects(t.Context()) {
		if failed = err; err == nil {
			if read++; read == 1 {
				n.Kill(t)
			}
		}
	}
	// What had arrived when the server was killed may all be read.
	if failed == nil && read < 16 {
		t.Errorf("the server was killed, and reading ends well after %d of 16 objects", read)
	}
	t.Logf("%d objects before %v", read, failed)
	if _, err := objects(t, n.URL+"/LOGS", short); err == nil || !strings.Contains(err.Error(), "connect") {
		t.Errorf("no server: %v", err)
	}
	n.Start(t)
	n.Pause(t)
	defer n.Resume(t)
	begin := time.Now()
	if _, err := objects(t, n.URL+"/LOGS", short); err == nil || time.Since(begin) > 30*time.Second {
		t.Errorf("silent server: after %v: %v", time.Since(begin), err)
	}
}
