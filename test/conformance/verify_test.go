package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
	"spillway/framing/ecs"
	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/outputs/s3"
	"spillway/test/servers"
)

// numbered makes runs of records that have their numbers, as the agent does.
type numbered struct {
	t      *testing.T
	enc    *batch.Encoder
	sealer batch.Sealer
	next   uint64
}

func newNumbered(t *testing.T) *numbered {
	enc, err := batch.NewEncoder(batch.Zstd, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &numbered{t: t, enc: enc, sealer: batch.Sealer{Epoch: 7}, next: 1}
}

// run is n batches of ten records; gaps come first.
func (f *numbered) run(n int, gaps ...ecs.Gap) *batch.Run {
	run := &batch.Run{Lane: "main", Agent: "gw1", Epoch: f.sealer.Epoch, Before: f.sealer.Prev, Attempt: 1}
	gap := ecs.NewEncoder(ecs.Options{Agent: "gw1"})
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for range n {
		var open batch.Open
		open.Reset(f.next, 0)
		for range 10 {
			if len(gaps) > 0 {
				open.Lines = gap.AppendGap(open.Lines, gaps[0], now)
				gaps = gaps[1:]
			} else {
				open.Lines = fmt.Appendf(open.Lines, `{"@timestamp":%[1]q,"event":{"created":%[1]q},"message":"line %[2]d","spillway":{`, now.Format(time.RFC3339Nano), open.Next())
			}
			open.Lines = ecs.AppendTail(open.Lines, uint64(f.sealer.Epoch), open.Next())
			open.Added(now.UnixNano())
		}
		made, _, err := f.enc.Encode(nil, &open, nil)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, b := range made {
			f.sealer.Seal(b)
			run.Batches = append(run.Batches, *b)
		}
		f.next = open.Next()
	}
	return run
}

// both is a stream and a bucket that took turns: records 1 to 30 and 61 to 90 went to
// the stream, 31 to 60 and 91 to 120 to the bucket.
type both struct {
	t      *testing.T
	nats   *servers.NATS
	s3     *servers.S3
	stream string // its name; nats-server 2.15 may find old messages in a stream that is made again
	bucket string
	config s3.Config
}

// TestVerify seeds faults into what real servers hold.
func TestVerify(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	server := servers.StartS3(t, "")
	server.Setenv(t)
	for i, test := range []struct {
		name  string
		fault func(b *both)
		want  string // kinds of faults
		says  string // what they say, or of which object
	}{
		{"clean", func(*both) {}, "", ""},
		{"a removed message", func(b *both) {
			servers.JetStream(b.t, b.nats.URL, func(ctx context.Context, js natsjs.JetStream) error {
				s, err := js.Stream(ctx, b.stream)
				if err != nil {
					return err
				}
				return s.DeleteMsg(ctx, 2)
			})
		}, "gap", "records 11 to 20 are missing"},
		{"a deleted object", func(b *both) {
			_, err := server.Client().DeleteObject(b.t.Context(), &awss3.DeleteObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(0))})
			b.check(err)
		}, "gap", "records 31 to 60 are missing"},
		{"a swapped payload of the same length", func(b *both) {
			b.rewrite(func(all []*nats.Msg) []*nats.Msg { all[4].Data[len(all[4].Data)/2] ^= 1; return all })
		}, "bytes gap", "logs.default.gw1.main@5"},
		{"a re-ordered pair", func(b *both) {
			b.rewrite(func(all []*nats.Msg) []*nats.Msg { all[1], all[2] = all[2], all[1]; return all })
		}, "order", "logs.default.gw1.main@3"},
		{"a seal that was changed", func(b *both) {
			b.rewrite(func(all []*nats.Msg) []*nats.Msg {
				s := []byte(all[3].Header.Get("Spillway-Seal"))
				s[0] ^= 1
				all[3].Header.Set("Spillway-Seal", string(s))
				return all
			})
		}, "gap seal", "logs.default.gw1.main@4"},
		{"a message whose headers are cut", func(b *both) {
			b.rewrite(func(all []*nats.Msg) []*nats.Msg { all[3].Header.Set("Spillway-Seal", "00"); return all })
		}, "gap metadata", "logs.default.gw1.main@4"},
		{"a message twice", func(b *both) {
			b.rewrite(func(all []*nats.Msg) []*nats.Msg { return append(all, all[0]) })
		}, "", ""},
		{"an object's body cut", func(b *both) {
			b.put(b.key(1), b.key(1), func(body []byte) []byte { return body[:len(body)-5] }, true)
		}, "bytes", "-0000000000000078-"},
		{"a bit flip in an object", func(b *both) {
			b.put(b.key(1), b.key(1), func(body []byte) []byte { body[len(body)/2] ^= 8; return body }, true)
		}, "bytes", "-0000000000000078-"},
		{"an object under another name", func(b *both) {
			from := b.key(1)
			b.put(from, strings.Replace(from, "000000000000005b-0000000000000078", "000000000000005c-0000000000000079", 1), nil, true)
			_, err := server.Client().DeleteObject(b.t.Context(), &awss3.DeleteObjectInput{Bucket: &b.bucket, Key: &from})
			b.check(err)
		}, "numbers", "record 92 says that it is 91"},
		{"an object whose metadata is gone", func(b *both) { b.put(b.key(0), b.key(0), nil, false) }, "", ""},
		{"an object copied to failover/", func(b *both) {
			b.put(b.key(0), strings.Replace(b.key(0), "logs/edge/", "logs/edge/failover/", 1), nil, true)
		}, "", ""},
		{"strangers and a probe", func(b *both) {
			for _, key := range []string{"logs/edge/readme.txt", "logs/edge/_probe/gw1/probe"} {
				_, err := server.Client().PutObject(b.t.Context(), &awss3.PutObjectInput{Bucket: &b.bucket, Key: &key, Body: strings.NewReader("x")})
				b.check(err)
			}
			servers.JetStream(b.t, b.nats.URL, func(ctx context.Context, js natsjs.JetStream) error {
				_, err := js.Publish(ctx, "logs.somebody", []byte("x"))
				return err
			})
		}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := &both{t: t, nats: n, s3: server, stream: fmt.Sprintf("VERIFY%d", i), bucket: fmt.Sprintf("verify%d", i)}
			b.fill()
			test.fault(b)
			r := b.verify()
			var kinds []string
			var text strings.Builder
			for _, f := range r.Faults {
				kinds = append(kinds, f.Kind)
				fmt.Fprintf(&text, "%s: %s: %s: %s\n", f.Kind, f.Source, f.Object, f.Error)
			}
			slices.Sort(kinds)
			if got := strings.Join(kinds, " "); got != test.want || r.Complete != (test.want == "") {
				t.Errorf("found %q, want %q:\n%s%+v", got, test.want, &text, r.Epochs)
			}
			if !strings.Contains(text.String(), test.says) {
				t.Errorf("nothing says %q:\n%s", test.says, &text)
			}
			if test.want == "" && (r.Records != 120 || len(r.Epochs) != 1 || r.Epochs[0].Seals != (ledger.Seals{Chains: 1})) {
				t.Errorf("%d records: %+v", r.Records, r.Epochs)
			}
			if strings.HasPrefix(test.name, "strangers") {
				if s := r.Sources; s[0].Strangers != 1 || s[1].Strangers != 1 {
					t.Errorf("strangers: %+v", s)
				}
			}
		})
	}
}

func (b *both) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// create makes the stream; its window for deduplication is short, so that a test can
// store a message twice.
func (b *both) create() {
	b.t.Helper()
	servers.CreateStream(b.t, b.nats.URL, stream(func(c *servers.StreamConfig) { c.Name, c.Duplicates = b.stream, 100*time.Millisecond }))
}

func (b *both) fill() {
	b.t.Helper()
	b.create()
	b.t.Cleanup(func() { servers.DeleteStream(b.t, b.nats.URL, b.stream) })
	b.s3.Bucket(b.t, b.bucket)
	b.config = s3Config(b.s3.Endpoint, b.bucket)
	stream, archive := hub(b.t, b.nats, func(c *jetstream.Config) { c.Stream = b.stream }), openS3(b.t, b.config)
	f := newNumbered(b.t)
	for range 2 {
		works(b.t, stream, f.run(3))
		run := f.run(3)
		run.Key = archive.Key(run)
		works(b.t, archive, run)
	}
}

// verify reads both, as `spillway verify` does.
func (b *both) verify() *ledger.Report {
	b.t.Helper()
	l := ledger.New(ledger.Options{FromStart: true})
	stream, err := jetstream.NewSource(b.t.Context(), b.nats.URL+"/"+b.stream, jetstream.Config{})
	b.check(err)
	archive, err := s3.NewSource(b.t.Context(), b.bucket, b.config.Prefix, b.config)
	b.check(err)
	for i, source := range []outputs.Source{stream, archive} {
		s := l.Source([]string{"stream", "bucket"}[i], i == 0)
		ctx := outputs.WithStrangers(b.t.Context(), func(object string, err error) {
			if err != nil {
				s.Fault(ledger.KindMetadata, object, err)
			} else {
				s.Stranger()
			}
		})
		for o, err := range source.Objects(ctx) {
			b.check(err)
			s.Object(o)
		}
	}
	return l.Report()
}

// key is the name of object i.
func (b *both) key(i int) string { return b.s3.Keys(b.t, b.bucket)[i] }

// put stores the object from as to, with its body changed and its metadata kept or not.
func (b *both) put(from, to string, change func([]byte) []byte, metadata bool) {
	b.t.Helper()
	c := b.s3.Client()
	out, err := c.GetObject(b.t.Context(), &awss3.GetObjectInput{Bucket: &b.bucket, Key: &from})
	b.check(err)
	body, err := io.ReadAll(out.Body)
	b.check(err)
	b.check(out.Body.Close())
	if change != nil {
		body = change(body)
	}
	in := &awss3.PutObjectInput{Bucket: &b.bucket, Key: &to, Body: bytes.NewReader(body)}
	if metadata {
		in.Metadata = out.Metadata
	}
	_, err = c.PutObject(b.t.Context(), in)
	b.check(err)
}

// rewrite replaces the stream by another one, with the messages that change returns.
func (b *both) rewrite(change func([]*nats.Msg) []*nats.Msg) {
	b.t.Helper()
	var all []*nats.Msg
	servers.JetStream(b.t, b.nats.URL, func(ctx context.Context, js natsjs.JetStream) error {
		s, err := js.Stream(ctx, b.stream)
		if err != nil {
			return err
		}
		for seq := s.CachedInfo().State.FirstSeq; seq <= s.CachedInfo().State.LastSeq; seq++ {
			m, err := s.GetMsg(ctx, seq)
			if err != nil {
				return err
			}
			m.Header.Del("Nats-Expected-Stream")
			all = append(all, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
		}
		return nil
	})
	servers.DeleteStream(b.t, b.nats.URL, b.stream)
	b.stream += "B"
	b.create()
	for i, m := range change(all) {
		if slices.Contains(all[:min(i, len(all))], m) {
			time.Sleep(time.Second) // until the server has forgotten the first one
		}
		servers.JetStream(b.t, b.nats.URL, func(ctx context.Context, js natsjs.JetStream) error {
			ack, err := js.PublishMsg(ctx, m)
			if err == nil && ack.Duplicate {
				err = fmt.Errorf("%s is a duplicate", m.Header.Get("Nats-Msg-Id"))
			}
			return err
		})
	}
}
