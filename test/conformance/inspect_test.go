package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"spillway/outputs"
	js "spillway/outputs/jetstream"
	"spillway/outputs/s3"
	"spillway/test/servers"
)

var need = outputs.Need{Lanes: []string{"main", "audit"}, Sealing: 512 << 10, Kept: 10 * time.Minute, Repeat: 10 * time.Minute}

// finding is what Inspect should have found.
type finding struct {
	level outputs.Level
	what  string
	texts []string // parts of Text and Hint
}

func good(what string, texts ...string) finding    { return finding{outputs.Good, what, texts} }
func warning(what string, texts ...string) finding { return finding{outputs.Warning, what, texts} }
func problem(what string, texts ...string) finding { return finding{outputs.Problem, what, texts} }

// inspect holds what o finds to want: all Warnings and Problems, in their order, and
// of what is good the part that is given.
func inspect(t *testing.T, o outputs.Inspector, want ...finding) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := o.Inspect(ctx, need)
	var all strings.Builder
	for _, f := range got {
		fmt.Fprintf(&all, "%d %s: %s [%s]\n", f.Level, f.What, f.Text, f.Hint)
		if strings.Contains(f.Text+f.Hint, "\n") || f.Level != outputs.Good && f.Hint == "" {
			t.Errorf("more than a line, or no hint: %+v", f)
		}
	}
	n := 0
	for _, f := range got {
		ok := n < len(want) && f.Level == want[n].level && f.What == want[n].what
		for i := 0; ok && i < len(want[n].texts); i++ {
			ok = strings.Contains(f.Text+" "+f.Hint, want[n].texts[i])
		}
		if ok {
			n++
		} else if f.Level != outputs.Good {
			t.Errorf("not expected: %s: %s [%s]", f.What, f.Text, f.Hint)
		}
	}
	if n < len(want) {
		t.Errorf("missing: %v of %v", want[n], want)
	}
	if t.Failed() {
		t.Log(all.String())
	}
}

func TestInspectStream(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	const add = "nats stream add LOGS --subjects 'logs.>' --storage file --replicas 1 --retention limits --discard old --max-age 30d --dupe-window 1h --allow-direct --defaults"
	t.Run("no stream", func(t *testing.T) {
		inspect(t, hub(t, n), good("connect"), problem("stream", "there is no stream LOGS", add, "correct SPILLWAY_OUTPUT_HUB_STREAM, or make it"))
		inspect(t, hub(t, n, func(c *js.Config) { c.Stream = "" }), good("connect"), problem("stream", "no stream takes logs.default.gw1.main", add))
	})
	for _, tt := range []struct {
		name   string
		change func(*servers.StreamConfig)
		output func(*js.Config)
		want   []finding
	}{
		{"good", func(*servers.StreamConfig) {}, nil, []finding{
			good("connect", "nats://127.0.0.1:", " as nobody (no user, no token, no certificate), account $G: nats-server 2.15.2 at 127.0.0.1:", " in "),
			good("payload", "max_payload of the server leaves 1022 KiB for a batch, enough for the largest (900 KiB)"),
			good("stream", "LOGS: [logs.>], 1 replica, file, discards old, keeps any for any (0 B in it), duplicate window 1h"),
			good("publish", "logs.default.gw1.main: a stream answered in ", "nothing was stored"), good("last", "logs.default.gw1.main: nothing there yet"),
			good("publish", "logs.default.gw1.audit"), good("last")}},
		{"any stream", func(*servers.StreamConfig) {}, func(c *js.Config) { c.Stream = "" }, []finding{good("stream", "LOGS: "), good("publish"), good("last")}},
		{"another stream", func(*servers.StreamConfig) {}, func(c *js.Config) { c.Stream = "LOGS2" },
			[]finding{problem("stream", "there is no stream LOGS2", "nats stream add LOGS2 ", "correct SPILLWAY_OUTPUT_HUB_STREAM, or make it")}},
		{"other subjects", func(c *servers.StreamConfig) { c.Subjects = []string{"logs.*.gw1.main", "x"} }, nil, []finding{
			problem("stream", "LOGS: it takes [logs.*.gw1.main x], not logs.default.gw1.audit", "nats stream edit LOGS --subjects 'logs.*.gw1.main,x,logs.>'"),
			good("publish", "logs.default.gw1.main"), good("last", "logs.default.gw1.main")}},
		{"short window", func(c *servers.StreamConfig) { c.Duplicates = 2 * time.Minute }, nil, []finding{
			warning("stream", "LOGS: its duplicate window is 2m, and batches may be sent again for 10m (SPILLWAY_BUFFER_KEEP_ACKED)", "nats stream edit LOGS --dupe-window 1h")}},
		{"small messages", func(c *servers.StreamConfig) { c.MaxMsgSize = 600 << 10 }, nil, []finding{
			warning("stream", "max_msg_size is 600 KiB, and a batch can have 902 KiB with its headers", "nats stream edit LOGS --max-msg-size=-1")}},
		{"tiny messages", func(c *servers.StreamConfig) { c.MaxMsgSize = 100 << 10 }, nil, []finding{
			problem("stream", "max_msg_size is 100 KiB, and batches are sealed at 512 KiB", "--max-msg-size=-1")}},
		{"no direct get", func(c *servers.StreamConfig) { c.AllowDirect = false }, nil, []finding{
			warning("stream", "it has no direct get", "nats stream edit LOGS --allow-direct"), good("last")}},
		{"few of each", func(c *servers.StreamConfig) { c.MaxMsgsPerSubject = 1000 }, nil, []finding{
			warning("stream", "it keeps 1000 batches of each agent and lane", "--max-msgs-per-subject=-1")}},
		{"not for long", func(c *servers.StreamConfig) { c.MaxAge, c.Duplicates = 30*time.Minute, 30*time.Minute }, nil, []finding{
			warning("stream", "it keeps batches for 30m only", "--max-age 30d")}},
		{"in memory, while somebody listens", func(c *servers.StreamConfig) {
			c.Storage, c.Retention = jetstream.MemoryStorage, jetstream.InterestPolicy
		}, nil, []finding{
			warning("stream", "its retention is interest"), warning("stream", "it is in memory")}},
		{"silent", func(c *servers.StreamConfig) { c.NoAck = true }, func(c *js.Config) { c.AckTimeout = 300 * time.Millisecond }, []finding{
			problem("stream", "it acknowledges nothing (no_ack)", "nats stream edit LOGS --ack"),
			problem("publish", "no answer within"), problem("publish", "no answer within")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := servers.StartNATS(t, t.TempDir()) // one that is deleted leaves late
			c := logs
			tt.change(&c)
			servers.CreateStream(t, n.URL, c)
			var change []func(*js.Config)
			if tt.output != nil {
				change = append(change, tt.output)
			}
			inspect(t, hub(t, n, change...), tt.want...)
			if got := messages(t, n); got != 0 {
				t.Errorf("the stream holds %d messages", got)
			}
		})
	}
	t.Run("nearly full", func(t *testing.T) {
		c := logs
		c.MaxBytes, c.Discard = 1<<20, jetstream.DiscardNew
		servers.CreateStream(t, n.URL, c)
		o := hub(t, n)
		works(t, o, newFeed().run(times(2, 500<<10)...))
		inspect(t, o, good("stream", "discards new, keeps 1.0 MiB"), warning("stream", "of 1.0 MiB are used, and it refuses what does not fit"),
			good("last", "record 2 of epoch "))
	})
	t.Run("another domain", func(t *testing.T) {
		inspect(t, hub(t, n, func(c *js.Config) { c.Domain = "hub" }), good("connect"),
			problem("stream", "nobody answers on $JS.hub.API.>", "correct SPILLWAY_OUTPUT_HUB_DOMAIN, or enable JetStream"), good("publish"), good("publish"))
	})
	t.Run("a domain", func(t *testing.T) {
		n := servers.StartNATS(t, t.TempDir(), servers.Domain("hub"))
		servers.CreateStream(t, n.URL, logs)
		inspect(t, hub(t, n, func(c *js.Config) { c.Domain = "hub" }), good("stream", "LOGS: [logs.>]"), good("last"))
	})
	t.Run("no JetStream", func(t *testing.T) {
		n := servers.StartNATS(t, t.TempDir(), servers.WithoutJetStream())
		for _, stream := range []string{"LOGS", ""} {
			inspect(t, hub(t, n, func(c *js.Config) { c.Stream = stream }), problem("stream", "nobody answers on $JS.API.>", "enable JetStream on the server and for this account"))
		}
	})
	t.Run("a server of a cluster", func(t *testing.T) {
		n := servers.StartNATS(t, t.TempDir(), servers.Config(fmt.Sprintf("server_name: n1\ncluster: {name: c, listen: \"127.0.0.1:%d\", routes: []}", servers.FreePort(t))), servers.WithoutJetStream())
		o := hub(t, n)
		inspect(t, o, good("connect", "nats-server 2.15.2 n1 at"), problem("stream"))
	})
	t.Run("silent", func(t *testing.T) {
		n := servers.StartNATS(t, t.TempDir())
		servers.CreateStream(t, n.URL, logs)
		o := hub(t, n, func(c *js.Config) { c.AckTimeout = 300 * time.Millisecond })
		inspect(t, o, good("publish"))
		n.Pause(t)
		defer n.Resume(t)
		start := time.Now()
		inspect(t, o, good("connect"), problem("stream", "no answer within"), problem("publish", "no answer within"), problem("publish", "no answer within"))
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("that took %v", took)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		n.Stop(t)
		inspect(t, hub(t, n), problem("connect", "connect to "+n.URL+" as nobody", "connection refused", "see whether a nats-server listens there"))
	})
}

// TestInspectUser is about whom the server knows, and what it lets them do.
func TestInspectUser(t *testing.T) {
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	secret, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	seed := filepath.Join(t.TempDir(), "gw1.nk")
	if err := os.WriteFile(seed, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	const least = `publish: ["logs.default.gw1.>", "$JS.API.DIRECT.GET.LOGS.logs.default.gw1.>"], subscribe: "_INBOX_gw1.>"`
	n := servers.StartNATS(t, t.TempDir(), servers.Config(`max_payload: 600KB
accounts: { EDGE: { jetstream: enabled, users: [
  { user: admin, password: admin }
  { user: gw1, password: secret, permissions: {`+least+`} }
  { user: gw2, password: secret, permissions: { publish: "logs.default.gw2.>", subscribe: "_INBOX_gw1.>" } }
  { user: gw3, password: secret, permissions: { publish: ">", subscribe: "other" } }
  { nkey: `+public+`, permissions: {`+least+`} }
] } }`))
	admin := strings.Replace(n.URL, "://", "://admin:admin@", 1)
	servers.CreateStream(t, admin, logs)
	user := func(name, password string) func(*js.Config) {
		return func(c *js.Config) { c.User, c.Password = name, password }
	}
	small := warning("payload", "max_payload of the server leaves 598 KiB for a batch, and one can have 900 KiB", "raise max_payload")
	t.Run("least rights", func(t *testing.T) {
		inspect(t, hub(t, n, user("gw1", "secret")), good("connect", n.URL+" as user gw1: nats-server "), small,
			good("stream", "LOGS: its settings can't be seen, which the agent need not: grant publish on $JS.API.STREAM.INFO.LOGS to this user"),
			good("publish"), good("last"), good("publish"), good("last"))
	})
	t.Run("nkey", func(t *testing.T) {
		inspect(t, hub(t, n, func(c *js.Config) { c.NkeyFile = seed }), good("connect", "as nkey "+public+" ("+seed+")"), small, good("publish"))
	})
	t.Run("all rights", func(t *testing.T) {
		o := hub(t, n, user("admin", "admin"))
		inspect(t, o, good("connect", "as user admin, account EDGE: "), small, good("stream", "LOGS: [logs.>]"), good("publish"))
	})
	t.Run("user in the URL", func(t *testing.T) {
		inspect(t, hub(t, n, func(c *js.Config) { c.Servers = admin }), good("connect", n.URL+" as user admin, account EDGE"), small)
	})
	t.Run("no right to publish", func(t *testing.T) {
		inspect(t, hub(t, n, user("gw2", "secret")), small, good("stream"),
			problem("publish", "logs.default.gw1.main", "grant publish on logs.default.gw1.main"), problem("publish", "logs.default.gw1.audit"))
	})
	t.Run("no right to hear", func(t *testing.T) {
		inspect(t, hub(t, n, user("gw3", "secret"), func(c *js.Config) { c.AckTimeout = 500 * time.Millisecond }), small,
			problem("stream", "permission denied to receive", "grant subscribe on _INBOX_gw1.>"), problem("publish"), problem("publish"))
	})
	t.Run("wrong password", func(t *testing.T) {
		inspect(t, hub(t, n, user("gw1", "guess")), problem("connect", n.URL+" as user gw1", "uthorization", "check SPILLWAY_OUTPUT_HUB_CREDS_FILE"))
	})
}

// TestInspectCredentials is about a user whom a file names, and who ends.
func TestInspectCredentials(t *testing.T) {
	op := newOperator(t)
	creds := filepath.Join(t.TempDir(), "gw1.creds")
	op.login(creds, time.Now().Add(time.Hour))
	n := servers.StartNATS(t, t.TempDir(), servers.Config(op.config(time.Time{})))
	o := hub(t, n, func(c *js.Config) { c.CredsFile = creds })
	who := "user x (" + public(t, op.user) + ", " + creds + ")"
	inspect(t, o, good("connect", n.URL+" as "+who+", account "+public(t, op.acct)+": nats-server "),
		warning("connect", "the user of SPILLWAY_OUTPUT_HUB_CREDS_FILE ends ", "put a new one into the file"), problem("stream", "there is no stream LOGS"))

	op.login(creds, time.Now().Add(-time.Minute))
	o = hub(t, n, func(c *js.Config) { c.CredsFile = creds })
	inspect(t, o, problem("connect", n.URL+" as "+who, "check SPILLWAY_OUTPUT_HUB_CREDS_FILE"))
}

func TestInspectS3(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	server.Bucket(t, "others")
	server.User(t, "edge", "edgeedge")
	server.Policy(t, "logs", "edge", "s3:PutObject", "logs/edge/*")
	const create = "aws s3api create-bucket --bucket nothing --endpoint-url "
	for _, tt := range []struct {
		name, key, secret, bucket string
		conditional               s3.Choice
		want                      []finding
	}{
		{"good", server.AccessKey, server.Secret, "logs", s3.Auto, []finding{
			good("credentials", "access key test from EnvConfigCredentials"),
			good("put", "s3://logs/logs/edge/_probe/gw1/probe in region us-east-1 at "+server.Endpoint+": stored in "),
			good("condition", "refused to store it again (412)")}},
		{"unconditional", server.AccessKey, server.Secret, "logs", s3.Off, []finding{good("put")}},
		{"least rights", "edge", "edgeedge", "logs", s3.Auto, []finding{good("put"), good("condition")}},
		{"no right", "edge", "edgeedge", "others", s3.Auto, []finding{
			problem("put", "403 AccessDenied", "let this access key s3:PutObject on arn:aws:s3:::others/logs/edge/*")}},
		{"no bucket", server.AccessKey, server.Secret, "nothing", s3.Auto, []finding{problem("put", "404 NoSuchBucket", create+server.Endpoint)}},
		{"wrong secret", server.AccessKey, "guess", "logs", s3.Auto, []finding{problem("put", "403 SignatureDoesNotMatch", "the secret key is wrong")}},
		{"unknown key", "nobody", "guess", "logs", s3.Auto, []finding{problem("put", "403 InvalidAccessKeyId", "renew the credentials")}},
		{"no key", "", "", "logs", s3.Auto, []finding{problem("credentials", "no AWS credentials", "set AWS_ACCESS_KEY_ID")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("AWS_ACCESS_KEY_ID", tt.key)
			t.Setenv("AWS_SECRET_ACCESS_KEY", tt.secret)
			c := s3Config(server.Endpoint, tt.bucket)
			c.Conditional = tt.conditional
			inspect(t, openS3(t, c), tt.want...)
		})
	}
	t.Run("another region", func(t *testing.T) {
		c := s3Config(server.Endpoint, "logs")
		c.Region = "eu-central-1"
		inspect(t, openS3(t, c), problem("put", "in region eu-central-1 at", "set REGION to the bucket's"))
	})
	t.Run("nobody there", func(t *testing.T) {
		server.Stop(t)
		inspect(t, openS3(t, s3Config(server.Endpoint, "logs")), good("credentials"), problem("put", "connection refused"))
	})
}
