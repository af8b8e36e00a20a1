package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// StreamConfig is what CreateStream makes a stream of.
type StreamConfig = jetstream.StreamConfig

// NATS is a nats-server process with JetStream.
type NATS struct {
	URL     string // nats://127.0.0.1:port, the same in every life
	address string
	store   string // directory
	config  string // file
	process *process
}

// Option changes how StartNATS starts the server.
type Option func(*options)

type options struct {
	config, jetstream string
	plain             bool
}

// Config adds text to the server's configuration: users, permissions, limits.
func Config(text string) Option { return func(o *options) { o.config += text + "\n" } }

// Domain puts JetStream into a domain.
func Domain(name string) Option { return JetStreamConfig(fmt.Sprintf("domain: %q", name)) }

// JetStreamConfig adds text to the configuration of JetStream: its limits.
func JetStreamConfig(text string) Option { return func(o *options) { o.jetstream += ", " + text } }

// WithoutJetStream leaves JetStream out.
func WithoutJetStream() Option { return func(o *options) { o.plain = true } }

// StartNATS starts a server that keeps its streams in storeDir, and returns when
// JetStream answers.
func StartNATS(t testing.TB, storeDir string, opts ...Option) *NATS {
	t.Helper()
	address := freeAddress(t)
	n := &NATS{URL: "nats://" + address, address: address, store: storeDir,
		config: filepath.Join(t.TempDir(), "nats.conf"), process: newProcess(t, "nats-server")}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	n.configure(t, o)
	n.Start(t)
	return n
}

func (n *NATS) configure(t testing.TB, o options) {
	t.Helper()
	text := fmt.Sprintf("listen: %q\n", n.address)
	if !o.plain {
		text += fmt.Sprintf("jetstream: {store_dir: %q%s}\n", n.store, o.jetstream)
	}
	text += o.config
	if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Reload makes the running server read a configuration with other text. It takes
// a moment.
func (n *NATS) Reload(t testing.TB, text string) {
	t.Helper()
	n.configure(t, options{config: text})
	n.process.signal(t, syscall.SIGHUP)
}

// Start starts the server again after Stop or Kill: same port, same streams.
func (n *NATS) Start(t testing.TB) {
	t.Helper()
	const ready = "Server is ready" // JetStream is up and the port is open
	lives := strings.Count(n.process.said(), ready)
	n.process.start(t, func() error {
		if strings.Count(n.process.said(), ready) == lives {
			return errors.New("it has not said so")
		}
		return nil
	}, "-c", n.config)
}

// Restart is Stop and Start.
func (n *NATS) Restart(t testing.TB) {
	t.Helper()
	n.Stop(t)
	n.Start(t)
}

// Stop ends the server as an operator would (SIGTERM).
func (n *NATS) Stop(t testing.TB) { t.Helper(); n.process.end(t, syscall.SIGTERM) }

// Kill ends the server at once (SIGKILL).
func (n *NATS) Kill(t testing.TB) { t.Helper(); n.process.end(t, syscall.SIGKILL) }

// Pause halts the server: it keeps its connections and says nothing.
func (n *NATS) Pause(t testing.TB) { t.Helper(); n.process.pause(t) }

// Resume ends a Pause.
func (n *NATS) Resume(t testing.TB) { t.Helper(); n.process.signal(t, syscall.SIGCONT) }

// JetStream calls f with a client of the server at url.
func JetStream(t testing.TB, url string, f func(ctx context.Context, js jetstream.JetStream) error) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatalf("connect to %s: %v", url, err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f(ctx, js); err != nil {
		t.Fatal(err)
	}
}

// CreateStream makes a stream on the server at url, or changes it.
func CreateStream(t testing.TB, url string, c StreamConfig) {
	t.Helper()
	JetStream(t, url, func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.CreateOrUpdateStream(ctx, c)
		return err
	})
}

// DeleteStream removes a stream and all it holds.
func DeleteStream(t testing.TB, url, name string) {
	t.Helper()
	JetStream(t, url, func(ctx context.Context, js jetstream.JetStream) error { return js.DeleteStream(ctx, name) })
}
