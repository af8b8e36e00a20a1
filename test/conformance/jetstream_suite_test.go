package conformance

import (
	"log/slog"
	"testing"
	"time"

	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/outputs/outputtest"
	"spillway/test/servers"
)

var logs = servers.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}, Duplicates: time.Hour, AllowDirect: true}

// hub returns an output for n with short deadlines.
func hub(t testing.TB, n *servers.NATS, change ...func(*jetstream.Config)) *jetstream.Output {
	t.Helper()
	c := jetstream.Config{Servers: n.URL, Stream: "LOGS", AckTimeout: 2 * time.Second, ConnectTimeout: time.Second,
		ReconnectMin: 10 * time.Millisecond, ReconnectMax: 200 * time.Millisecond}
	for _, f := range change {
		f(&c)
	}
	o, err := jetstream.New("hub", "default", "gw1", c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func TestJetStream(t *testing.T) {
	outputtest.Run(t, outputtest.Harness{New: func(t *testing.T) *outputtest.FarSide {
		n := servers.StartNATS(t, t.TempDir())
		servers.CreateStream(t, n.URL, logs)
		src, err := jetstream.NewSource(t.Context(), n.URL+"/LOGS", jetstream.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return &outputtest.FarSide{
			Output: func(t *testing.T) outputs.Output { return hub(t, n) },
			Source: src, Agent: "gw1", Site: "default",
			Stop:   func(t *testing.T) { n.Stop(t) },
			Start:  func(t *testing.T) { n.Start(t) },
			Pause:  func(t *testing.T) { n.Pause(t) },
			Resume: func(t *testing.T) { n.Resume(t) },
			Refuse: func(t *testing.T) func() {
				servers.DeleteStream(t, n.URL, "LOGS")
				return func() { servers.CreateStream(t, n.URL, logs) }
			},
			LoseAnswers: func(t *testing.T, lose bool) {
				c := logs
				c.NoAck = lose // the stream stores and stays silent
				servers.CreateStream(t, n.URL, c)
			},
		}
	}})
}
