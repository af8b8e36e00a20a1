package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"spillway/outputs/jetstream"
	"spillway/test/servers"
)

// A stream of three replicas: the probe is answered as by one; replicas that lag, as
// one in three does right after an acknowledgement, do not make Last say that
// something is missing; and when the leader is killed nothing is lost or doubled, and
// what is out of order says that it was sent again.
func TestJetStreamCluster(t *testing.T) {
	var routes []string
	ports := []string{freePort(t), freePort(t), freePort(t)}
	for _, p := range ports {
		routes = append(routes, "nats://127.0.0.1:"+p)
	}
	cluster := map[string]*servers.NATS{} // by name
	var urls []string
	for i, p := range ports {
		name := fmt.Sprintf("n%d", i+1)
		n := servers.StartNATS(t, t.TempDir(), servers.Config(fmt.Sprintf("server_name: %s\ncluster: {name: c, listen: \"127.0.0.1:%s\", routes: [%s]}", name, p, strings.Join(routes, ", "))))
		cluster[name] = n
		urls = append(urls, n.URL)
	}
	nc, err := nats.Connect(strings.Join(urls, ","))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := stream(func(c *servers.StreamConfig) { c.Replicas = 3 })
	// A cluster without a leader answers nothing: ask again.
	ask := func(f func(context.Context) error) {
		t.Helper()
		for {
			short, cancel := context.WithTimeout(ctx, 2*time.Second)
			err := f(short)
			cancel()
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	ask(func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, c)
		return err
	})
	leader := func() (name string) {
		ask(func(ctx context.Context) error {
			s, err := js.Stream(ctx, "LOGS")
			if err == nil {
				if name = s.CachedInfo().Cluster.Leader; name == "" {
					err = errors.New("no leader")
				}
			}
			return err
		})
		return name
	}
	leader()
	o := hub(t, cluster["n1"], func(config *jetstream.Config) { config.Servers = strings.Join(urls, ",") })
	f := newFeed()
	works(t, o, f.run(times(20, 1000)...))
	for range 3 {
		if err := o.Probe(ctx, "main"); err != nil {
			t.Errorf("probe: %v", err)
		}
	}
	for i := range 200 {
		works(t, o, f.run(times(1+i%16, 50_000)...))
		if m, err := o.Last(ctx, "main"); err != nil || m.Last != f.next-1 {
			t.Fatalf("%d were acknowledged: %+v, %v", f.next-1, m, err)
		}
	}
	killed := leader()
	cluster[killed].Kill(t)
	begin := time.Now()
	works(t, o, f.run(times(20, 1000)...))
	t.Logf("%s, the leader, was killed; the next run is accepted after %v", killed, time.Since(begin).Round(time.Millisecond))
	cluster[killed].Start(t)
	// Its return may move the lead once more; a probe then fails, and the next one tells.
	for err := o.Probe(ctx, "main"); err != nil; err = o.Probe(ctx, "main") {
		if ctx.Err() != nil {
			t.Fatalf("probe: %v", err)
		}
	}
	back, err := nats.Connect(cluster[killed].URL)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if js, err = natsjs.New(back); err != nil {
		t.Fatal(err)
	}
	leader() // as that one knows it
	stored(t, cluster[killed], f.next-1)

	// A reader that comes while nobody leads waits for the election. How much it sees is
	// not asked: a new leader answers before it has applied all that it holds.
	var stopped []*servers.NATS
	for name, n := range cluster {
		if name != killed {
			n.Kill(t)
			stopped = append(stopped, n)
		}
	}
	started := make(chan struct{})
	time.AfterFunc(3*time.Second, func() {
		defer close(started)
		for _, n := range stopped {
			n.Start(t)
		}
	})
	src, err := jetstream.NewSource(ctx, cluster[killed].URL+"/LOGS", jetstream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range src.Objects(ctx) {
		if err != nil {
			t.Error(err)
		}
	}
	<-started
}
