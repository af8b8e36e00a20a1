package conformance

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/outputs/outputtest"
	"spillway/test/faults"
	"spillway/test/servers"
)

// insists publishes run until it fails as is wanted: how many batches a server
// takes before it refuses is its own affair.
func insists(t *testing.T, o *jetstream.Output, f *feed, stored outputs.Stored, action outputs.Action, text string) {
	t.Helper()
	run := f.run(times(40, 1000)...)
	for deadline := time.Now().Add(time.Minute); ; {
		n, err := outputtest.Publish(t.Context(), o, run)
		s, a := outputs.Classify(err)
		if err != nil && s == stored && a == action && strings.Contains(err.Error(), text) {
			t.Logf("after %d batches: %v", run.Batches[n].First-1, err)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("accepted %d, stored %v, %v: %v", n, s, a, err)
		}
		if err == nil {
			run = f.run(times(40, 1000)...)
		} else if n > 0 {
			run.Before, run.Batches = run.BeforeOf(n), run.Batches[n:]
		}
	}
}

// Limits of a server and of an account, which are not those of the stream.
func TestJetStreamLimits(t *testing.T) {
	const no = outputs.StoredNo
	account := func(limits string) []servers.Option {
		return []servers.Option{servers.Config("accounts: {A: {users: [{user: admin, password: admin}], " + limits + "}}")}
	}
	for _, c := range []struct {
		name   string
		server []servers.Option
		stream servers.StreamConfig
		action outputs.Action
		text   string
	}{
		{"storage of the account", account("jetstream: {max_file: 100000}"), logs, outputs.Failover, "resource limits exceeded for account"},
		{"memory of the account", account("jetstream: {max_memory: 100000}"), stream(func(c *servers.StreamConfig) { c.Storage = 1 }), outputs.Failover, "resource limits exceeded for account"},
		{"storage of the server", []servers.Option{servers.JetStreamConfig("max_file_store: 100000")}, logs, outputs.Failover, "insufficient resources"},
		{"memory of the server", []servers.Option{servers.JetStreamConfig("max_memory_store: 100000")}, stream(func(c *servers.StreamConfig) { c.Storage = 1 }), outputs.Failover, "insufficient resources"},
		{"requests of the stream", []servers.Option{servers.JetStreamConfig("max_buffered_msgs: 1")}, logs, outputs.Retry, "too many requests"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := servers.StartNATS(t, t.TempDir(), c.server...)
			if strings.HasSuffix(c.name, "account") {
				n.URL = strings.Replace(n.URL, "://", "://admin:admin@", 1)
			}
			servers.CreateStream(t, n.URL, c.stream)
			f := newFeed()
			insists(t, hub(t, n), f, no, c.action, c.text)
		})
	}
}

// A server that takes no more connections is tried again; it says so itself.
func TestJetStreamConnectionLimits(t *testing.T) {
	for name, config := range map[string]string{
		"server":  "max_connections: 1",
		"account": "accounts: {A: {users: [{user: admin, password: admin}], jetstream: enabled, limits: {max_connections: 1}}}",
	} {
		t.Run(name, func(t *testing.T) {
			n := servers.StartNATS(t, t.TempDir(), servers.Config(config))
			if name == "account" {
				n.URL = strings.Replace(n.URL, "://", "://admin:admin@", 1)
			}
			servers.CreateStream(t, n.URL, logs)
			other, err := nats.Connect(n.URL, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			for !other.IsConnected() { // the last connection's place becomes free
				time.Sleep(time.Millisecond)
			}
			o := hub(t, n)
			f := newFeed()
			run := f.run(times(3, 100)...)
			fails(t, o, run, 0, outputs.StoredNo, outputs.Retry, "maximum", "connections exceeded", "raise ")
			other.Close()
			works(t, o, run)
		})
	}
}

// Without JetStream nobody answers, as without a stream.
func TestJetStreamNotThere(t *testing.T) {
	for name, option := range map[string]servers.Option{
		"server":  servers.WithoutJetStream(),
		"account": servers.Config("accounts: {A: {users: [{user: admin, password: admin}], jetstream: enabled}, B: {users: [{user: gw1, password: secret}]}}"),
	} {
		t.Run(name, func(t *testing.T) {
			n := servers.StartNATS(t, t.TempDir(), option)
			o := hub(t, n)
			if name == "account" {
				n.URL = strings.Replace(n.URL, "://", "://admin:admin@", 1)
				servers.CreateStream(t, n.URL, logs)
				o = hub(t, n, as("gw1", "secret"))
			}
			for range 2 {
				fails(t, o, newFeed().run(100), 0, outputs.StoredNo, outputs.Retry, "no stream takes logs.default.gw1.main")
			}
			if err := o.Probe(t.Context(), "main"); err == nil {
				t.Error("the probe succeeds")
			}
		})
	}
}

// answering is a server on which something that is no stream answers for the
// agent's subject: probes as a stream would, all else with text.
func answering(t *testing.T, text func() string) *servers.NATS {
	t.Helper()
	n := servers.StartNATS(t, t.TempDir())
	nc, err := nats.Connect(n.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	_, err = nc.Subscribe("logs.>", func(m *nats.Msg) {
		answer := text()
		if m.Header.Get("Nats-Expected-Stream") == "spillway.probe" {
			answer = `{"error":{"code":400,"err_code":10060,"description":"expected stream does not match"}}`
		}
		_ = m.Respond([]byte(answer)) // its loss is seen as silence
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What a real server can hardly be made to answer: the words are those of
// nats-server 2.15.2, the way to the caller is the real one.
func TestJetStreamAnswers(t *testing.T) {
	const (
		no, maybe                             = outputs.StoredNo, outputs.StoredMaybe
		retry, failover, unfit, misconfigured = outputs.Retry, outputs.Failover, outputs.Unfit, outputs.Misconfigured
		election                              = 10 * time.Second
	)
	text := make(chan string, 1)
	text <- ""
	n := answering(t, func() string { s := <-text; text <- s; return s })
	o := hub(t, n)
	f := newFeed()
	for _, c := range []struct {
		text     string
		stored   outputs.Stored
		action   outputs.Action
		patience time.Duration
	}{
		{`ok`, maybe, misconfigured, 0},
		{`{}`, maybe, misconfigured, 0},
		{`{"stream":"OTHER","seq":1}`, outputs.StoredYes, misconfigured, 0},
		{`10002 400 resource limits exceeded for account`, no, failover, 0},
		{`10008 503 JetStream system temporarily unavailable`, no, retry, election},
		{`10009 500 JetStream cluster can not handle request`, no, retry, election},
		{`10023 503 insufficient resources`, no, failover, 0},
		{`10028 500 insufficient memory resources available`, no, failover, 0},
		{`10035 503 account not found`, no, misconfigured, 0},
		{`10039 503 JetStream not enabled for account`, no, misconfigured, 0},
		{`10047 500 insufficient storage resources available`, no, failover, 0},
		{`10063 503 expected stream sequence does not match`, no, retry, election},
		{`10070 400 wrong last msg ID: x`, maybe, retry, 0},
		{`10071 400 wrong last sequence: 7`, maybe, retry, 0},
		{`10076 503 JetStream not enabled`, no, misconfigured, 0},
		{`10077 503 message too large`, no, unfit, 0},
		{`10077 503 disk on fire`, maybe, retry, 0},
		{`10097 400 header size exceeds maximum allowed of 64k`, no, unfit, 0},
		{`10118 500 stream is offline`, no, retry, election},
		{`10158 409 duplicate message id is in process`, maybe, retry, 0},
		{`10164 400 wrong last sequence`, maybe, retry, 0},
		{`10165 400 invalid per-message TTL`, no, misconfigured, 0},
		{`10166 400 per-message TTL is disabled`, no, misconfigured, 0},
		{`10167 429 too many requests`, no, retry, 0},
		{`10194 500 stream is offline: x`, no, retry, election},
		{`10210 429 atomic publish too many inflight`, no, retry, 0},
		{`10211 429 batch publish too many inflight`, no, retry, 0},
		{`19999 500 a code of the future`, maybe, retry, 0},
	} {
		answer := c.text
		if c.text[0] == '1' {
			var code, status int
			if _, err := fmt.Sscan(c.text, &code, &status); err != nil {
				t.Fatal(err)
			}
			answer = fmt.Sprintf(`{"error":{"code":%d,"err_code":%d,"description":%q},"stream":"LOGS","seq":0}`, status, code, c.text[len("10002 400 "):])
		}
		<-text
		text <- answer
		accepted, err := outputtest.Publish(t.Context(), o, f.run(times(3, 100)...))
		var e *outputs.Error
		if !errors.As(err, &e) || accepted != 0 || e.Stored != c.stored || e.Action != c.action || e.Patience != c.patience {
			t.Errorf("%s: accepted %d: %v: %+v", c.text, accepted, err, e)
		}
	}
}

// A connection that breaks leaves what has no answer in doubt, at once.
func TestJetStreamAnswersLost(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	servers.CreateStream(t, n.URL, logs)
	p := faults.New(t, n.URL)
	o := hub(t, n, func(c *jetstream.Config) { c.Servers, c.AckTimeout = "nats://"+p.Address, time.Minute })
	f := newFeed()
	works(t, o, f.run(times(3, 100)...))
	p.DropAnswers()
	run := f.run(times(5, 100)...)
	time.AfterFunc(300*time.Millisecond, p.Refuse)
	fails(t, o, run, 0, outputs.StoredMaybe, outputs.Retry, "disconnected")
	fails(t, o, run, 0, outputs.StoredNo, outputs.Retry, "not connected")
	p.Forward()
	run.Attempt = 2
	works(t, o, run)
	if c := o.Counts(); c.AlreadyThere != 5 {
		t.Errorf("counted %+v: what had been stored is not known", c)
	}
	stored(t, n, 8)
}

// A server whose disk is full falls silent (it answers probes) and stays so until
// it is started again, room or not. Whether it then still has all that it had
// acknowledged, Last tells; what it lost, and the rest, is stored when sent again.
func TestJetStreamDiskFull(t *testing.T) {
	d := faults.NewDisk(t, 32<<20)
	n := servers.StartNATS(t, d.Dir)
	servers.CreateStream(t, n.URL, logs)
	o := hub(t, n)
	f := newFeed()
	all := f.run(times(60, 100_000)...)
	first, rest := *all, *all
	first.Batches = all.Batches[:20]
	rest.Before, rest.Batches = all.BeforeOf(20), all.Batches[20:]
	works(t, o, &first)
	d.Fill(t, 1<<20)
	accepted, err := outputtest.Publish(t.Context(), o, &rest)
	t.Log(accepted, err)
	if s, a := outputs.Classify(err); err == nil || s != outputs.StoredMaybe || a != outputs.Retry || !strings.Contains(err.Error(), "can't write to its disk") {
		t.Errorf("accepted %d, stored %v, %v: %v", accepted, s, a, err)
	}
	if err := o.Probe(t.Context(), "main"); err != nil {
		t.Errorf("probe: %v", err)
	}
	d.Free(t)
	n.Restart(t)
	m := last(t, o)
	t.Logf("%d were acknowledged; after the restart: %+v", 20+accepted, m)
	again := *all
	again.Before, again.Batches, again.Attempt = all.BeforeOf(int(m.Last)), all.Batches[m.Last:], 2
	works(t, o, &again)
	stored(t, n, 60)
}

// operator is a NATS operator with one account, for logins by JWT (ADR-14 of NATS).
type operator struct {
	t                       *testing.T
	key, system, acct, user nkeys.KeyPair
}

func newOperator(t *testing.T) *operator {
	o := &operator{t: t}
	for _, k := range []struct {
		to   *nkeys.KeyPair
		make func() (nkeys.KeyPair, error)
	}{{&o.key, nkeys.CreateOperator}, {&o.system, nkeys.CreateAccount}, {&o.acct, nkeys.CreateAccount}, {&o.user, nkeys.CreateUser}} {
		var err error
		if *k.to, err = k.make(); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func public(t *testing.T, k nkeys.KeyPair) string {
	t.Helper()
	p, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// token returns the JWT of subject by issuer.
func (o *operator) token(issuer, subject nkeys.KeyPair, until time.Time, claims map[string]any) string {
	o.t.Helper()
	all := map[string]any{"jti": "x", "iat": time.Now().Add(-time.Hour).Unix(), "iss": public(o.t, issuer), "sub": public(o.t, subject), "name": "x", "nats": claims}
	if !until.IsZero() {
		all["exp"] = until.Unix()
	}
	claims["version"] = 2
	body, err := json.Marshal(all)
	if err != nil {
		o.t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`)) + "." + base64.RawURLEncoding.EncodeToString(body)
	signature, err := issuer.Sign([]byte(text))
	if err != nil {
		o.t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// config is the server's configuration. The user is revoked if it logged in with
// what was issued before the given time.
func (o *operator) config(revoked time.Time) string {
	account := func(k nkeys.KeyPair, storage int) string {
		c := map[string]any{"type": "account", "limits": map[string]any{"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
			"wildcards": true, "conn": -1, "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage}}
		if !revoked.IsZero() {
			c["revocations"] = map[string]any{public(o.t, o.user): revoked.Unix()}
		}
		return o.token(o.key, k, time.Time{}, c)
	}
	return fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {%s: %s, %s: %s}\n",
		o.token(o.key, o.key, time.Time{}, map[string]any{"type": "operator"}), public(o.t, o.system),
		public(o.t, o.system), account(o.system, 0), public(o.t, o.acct), account(o.acct, -1))
}

// login writes the user's credentials, which end at until.
func (o *operator) login(path string, until time.Time) {
	o.t.Helper()
	seed, err := o.user.Seed()
	if err != nil {
		o.t.Fatal(err)
	}
	token := o.token(o.acct, o.user, until, map[string]any{"type": "user", "subs": -1, "data": -1, "payload": -1})
	text := fmt.Sprintf("-----BEGIN NATS USER JWT-----\n%s\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n%s\n------END USER NKEY SEED------\n", token, seed)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// Credentials that end, or are revoked, while the agent runs; and their renewal,
// which takes no more than the file.
func TestJetStreamCredentialsEnd(t *testing.T) {
	for _, how := range []string{"expired", "revoked"} {
		t.Run(how, func(t *testing.T) {
			op := newOperator(t)
			creds := filepath.Join(t.TempDir(), "gw1.creds")
			op.login(creds, time.Time{})
			n := servers.StartNATS(t, t.TempDir(), servers.Config(op.config(time.Time{})))
			nc, err := nats.Connect(n.URL, nats.UserCredentials(creds))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := nc.Request("$JS.API.STREAM.CREATE.LOGS", []byte(`{"name":"LOGS","subjects":["logs.>"],"retention":"limits","storage":"file","num_replicas":1,"allow_direct":true}`), 10*time.Second); err != nil {
				t.Fatal(err)
			}
			if how == "expired" {
				op.login(creds, time.Now().Add(2*time.Second))
			}
			o := hub(t, n, func(c *jetstream.Config) { c.CredsFile = creds })
			f := newFeed()
			works(t, o, f.run(100))
			if how == "revoked" {
				n.Reload(t, op.config(time.Now()))
			}
			disconnects(t, o)
			insists(t, o, f, outputs.StoredNo, outputs.Failover, "SPILLWAY_OUTPUT_HUB_CREDS_FILE")
			if how == "revoked" {
				n.Reload(t, op.config(time.Time{}))
			} else {
				op.login(creds, time.Now().Add(time.Hour))
			}
			works(t, o, f.run(100))
		})
	}
}
