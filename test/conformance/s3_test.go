package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"spillway/buffer/batch"
	"spillway/outputs"
	"spillway/outputs/outputtest"
	"spillway/outputs/s3"
	"spillway/test/faults"
	"spillway/test/servers"
)

// s3Config is for a server on loopback, with deadlines that fit tests.
func s3Config(endpoint, bucket string) s3.Config {
	return s3.Config{Bucket: bucket, Prefix: "logs/edge", Endpoint: endpoint, RollBytes: 8 << 20, RollAge: time.Minute, RollBatches: 200,
		Timeout: 3 * time.Second, MinRate: 1 << 20}
}

func openS3(t *testing.T, c s3.Config) *s3.Output {
	t.Helper()
	o, err := s3.New("archive", "plant", "gw1", c, slog.New(slog.DiscardHandler))
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

func TestS3(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	n := 0
	outputtest.Run(t, outputtest.Harness{New: func(t *testing.T) *outputtest.FarSide {
		n++
		bucket := fmt.Sprintf("conformance-%d", n)
		server.Bucket(t, bucket)
		wire := faults.NewS3(t, server.Endpoint)
		c := s3Config(wire.URL, bucket)
		source, err := s3.NewSource(t.Context(), bucket, c.Prefix, s3Config(server.Endpoint, bucket))
		if err != nil {
			t.Fatal(err)
		}
		return &outputtest.FarSide{
			Agent: "gw1", Site: "plant", Source: source,
			Output: func(t *testing.T) outputs.Output {
				o, err := s3.New("archive", "plant", "gw1", c, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				return o
			},
			Stop:   func(t *testing.T) { server.Kill(t) },
			Start:  func(t *testing.T) { server.Start(t) },
			Pause:  func(t *testing.T) { server.Pause(t) },
			Resume: func(t *testing.T) { server.Resume(t) },
			Refuse: func(t *testing.T) func() {
				server.RemoveBucket(t, bucket)
				return func() { server.Bucket(t, bucket) }
			},
			LoseAnswers: func(_ *testing.T, lose bool) {
				if wire.Heal(); lose {
					wire.Fail(-1, faults.Fault{Stored: true})
				}
			},
		}
	}})
}

// s3Run is a run of n batches of lane main, with its key.
func s3Run(t *testing.T, o *s3.Output, epoch batch.Epoch, n int) *batch.Run {
	t.Helper()
	enc, err := batch.NewEncoder(batch.Zstd, 0)
	if err != nil {
		t.Fatal(err)
	}
	run := &batch.Run{Lane: "main", Agent: "gw1", Epoch: epoch, Attempt: 1}
	sealer := batch.Sealer{Epoch: epoch}
	var open batch.Open
	for next, i := uint64(1), 0; i < n; i++ {
		open.Reset(next, 0)
		for range 50 {
			open.Lines = fmt.Appendf(open.Lines, `{"message":"record %d of epoch %v"}`+"\n", open.Next(), epoch)
			open.Added(time.Date(2026, 11, 20, 14, 0, i, 0, time.UTC).UnixNano())
		}
		next = open.Next()
		bs, _, err := enc.Encode(nil, &open, nil)
		if err != nil || len(bs) != 1 {
			t.Fatalf("%d batches, %v", len(bs), err)
		}
		sealer.Seal(bs[0])
		run.Batches = append(run.Batches, *bs[0])
	}
	run.Key = o.Key(run)
	return run
}

func getS3(t *testing.T, server *servers.S3, bucket, key string) (*awss3.GetObjectOutput, []byte) {
	t.Helper()
	out, err := server.Client().GetObject(t.Context(), &awss3.GetObjectInput{Bucket: &bucket, Key: &key, ChecksumMode: "ENABLED"})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(out.Body)
	if cerr := out.Body.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	return out, body
}

// An object as anybody else sees it: its key, type, checksum, metadata, and
// nothing in the body but ordinary zstd frames, one for each batch.
func TestS3Object(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	o := openS3(t, s3Config(server.Endpoint, "logs"))
	run := s3Run(t, o, 0xabc, 5)
	run.Before[0], run.Attempt = 7, 3
	if _, err := o.Publish(t.Context(), run); err != nil {
		t.Fatal(err)
	}
	if err := o.Probe(t.Context(), "main"); err != nil {
		t.Fatal(err)
	}
	keys := server.Keys(t, "logs")
	want := "logs/edge/main/dt=2026-11-20/site=plant/hr=14/gw1/" +
		fmt.Sprintf("0000000000000abc-0000000000000001-00000000000000fa-%08x.ndjson.zst", run.CRC())
	if len(keys) != 2 || keys[0] != "logs/edge/_probe/gw1/probe" || keys[1] != want {
		t.Fatalf("the bucket has the keys %q, want the probe and %s", keys, want)
	}
	if _, err := outputs.ParseKey(keys[0]); err == nil {
		t.Error("a reader would take the probe for records")
	}
	if object, err := outputs.ParseKey(keys[1]); err != nil || object.First != 1 || object.Last != 250 || object.Epoch != 0xabc || object.CRC != run.CRC() {
		t.Errorf("the key reads as %+v, %v", object, err)
	}
	out, body := getS3(t, server, "logs", keys[1])
	if aws.ToString(out.ContentType) != "application/zstd" || aws.ToString(out.ContentEncoding) != "" {
		t.Errorf("type %q, encoding %q", aws.ToString(out.ContentType), aws.ToString(out.ContentEncoding))
	}
	if aws.ToString(out.ChecksumCRC32C) == "" {
		t.Error("the server keeps no CRC32C")
	}
	for k, v := range map[string]string{
		"agent": "gw1", "site": "plant", "lane": "main", "epoch": "0000000000000abc", "first-seq": "1", "last-seq": "250", "records": "250",
		"schema": "1", "seal-before": run.Before.String(), "seal": run.Seal().String(), "batches": run.Sizes(), "attempt": "3",
	} {
		if out.Metadata["spillway-"+k] != v {
			t.Errorf("spillway-%s is %q, want %q", k, out.Metadata["spillway-"+k], v)
		}
	}
	if len(out.Metadata) != 12 {
		t.Errorf("metadata %v", out.Metadata)
	}
	var frames [][]byte
	for rest := body; len(rest) > 0; {
		n := frameSize(t, rest)
		frames, rest = append(frames, rest[:n]), rest[n:]
	}
	if len(frames) != len(run.Batches) {
		t.Fatalf("%d frames for %d batches", len(frames), len(run.Batches))
	}
	for i, f := range frames {
		if !bytes.Equal(f, run.Batches[i].Payload) {
			t.Errorf("frame %d is not batch %d", i, i)
		}
	}
}

// frameSize is the length of the zstd frame that b begins with (RFC 8878 section
// 3.1.1), told from its headers alone. A skippable frame fails the test: readers in
// Java stop at one.
func frameSize(t *testing.T, b []byte) int {
	t.Helper()
	if len(b) < 6 || binary.LittleEndian.Uint32(b) != 0xfd2fb528 {
		t.Fatalf("not an ordinary zstd frame: it begins with % x", b[:min(4, len(b))])
	}
	d := b[4]
	n := 5 + [4]int{0, 1, 2, 4}[d&3] + [4]int{0, 2, 4, 8}[d>>6]
	if single := d>>5&1 == 1; !single {
		n++ // window descriptor
	} else if d>>6 == 0 {
		n++ // content size of one byte
	}
	for last := false; !last; {
		if n+3 > len(b) {
			t.Fatal("a zstd frame is cut short")
		}
		h := int(b[n]) | int(b[n+1])<<8 | int(b[n+2])<<16
		last = h&1 == 1
		n += 3
		if h>>1&3 == 1 { // RLE: one byte, repeated
			n++
		} else {
			n += h >> 3
		}
	}
	if d>>2&1 == 1 {
		n += 4 // content checksum
	}
	if n > len(b) {
		t.Fatal("a zstd frame is cut short")
	}
	return n
}

// Two lives that put one plan at the same time: one object, two acceptances.
func TestS3RacingPlans(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	a, b := openS3(t, s3Config(server.Endpoint, "logs")), openS3(t, s3Config(server.Endpoint, "logs"))
	const plans = 25
	for i := range plans {
		run := s3Run(t, a, batch.Epoch(i+1), 3)
		var wg sync.WaitGroup
		for _, o := range []*s3.Output{a, b} {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for {
					_, err := o.Publish(ctx, run)
					if err == nil {
						return
					}
					// 409: the other one is at it.
					if _, action := outputs.Classify(err); action != outputs.Retry || ctx.Err() != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	if n := len(server.Keys(t, "logs")); n != plans {
		t.Errorf("%d objects after %d plans", n, plans)
	}
	x, y := a.Counts(), b.Counts()
	if x.Delivered+y.Delivered != plans || x.AlreadyThere+y.AlreadyThere != plans {
		t.Errorf("counted %+v and %+v", x, y)
	}
}

// What only the real server can say no to: other keys, a body that changes.
func TestS3Refusals(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	for _, c := range []struct {
		name   string
		env    [2]string
		action outputs.Action
		hint   string
	}{
		{"unknown access key", [2]string{"AWS_ACCESS_KEY_ID", "nobody"}, outputs.Misconfigured, "credentials"},
		{"wrong secret", [2]string{"AWS_SECRET_ACCESS_KEY", "wrong"}, outputs.Misconfigured, "secret key"},
		{"no credentials", [2]string{"AWS_ACCESS_KEY_ID", ""}, outputs.Failover, "AWS_ACCESS_KEY_ID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(c.env[0], c.env[1])
			o := openS3(t, s3Config(server.Endpoint, "logs"))
			n, err := o.Publish(t.Context(), s3Run(t, o, 1, 1))
			var e *outputs.Error
			if !errors.As(err, &e) || n != 0 || e.Stored != outputs.StoredNo || e.Action != c.action || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("accepted %d: %v", n, err)
			}
			if o.Probe(t.Context(), "main") == nil {
				t.Error("the probe succeeds")
			}
		})
	}
	t.Run("region", func(t *testing.T) {
		c := s3Config(server.Endpoint, "logs")
		c.Region = "eu-north-1"
		o := openS3(t, c)
		_, err := o.Publish(t.Context(), s3Run(t, o, 1, 1))
		var e *outputs.Error
		if !errors.As(err, &e) || e.Action != outputs.Misconfigured || !strings.Contains(e.Hint, "REGION") {
			t.Errorf("another region is told as %v", err)
		}
	})
	t.Run("changed on the way", func(t *testing.T) {
		wire := faults.NewS3(t, server.Endpoint)
		wire.Fail(-1, faults.Fault{Flip: true})
		o := openS3(t, s3Config(wire.URL, "logs"))
		_, err := o.Publish(t.Context(), s3Run(t, o, 1, 1))
		var e *outputs.Error
		if !errors.As(err, &e) || e.Stored != outputs.StoredNo || e.Action != outputs.Retry || !strings.Contains(e.Hint, "changed on the way") {
			t.Errorf("a changed body is told as %v", err)
		}
	})
	if keys := server.Keys(t, "logs"); len(keys) != 0 {
		t.Errorf("stored all the same: %q", keys)
	}
}

// Over TLS the body is not hashed for the signature; the server takes it so, and
// still checks the CRC32C.
func TestS3TLS(t *testing.T) {
	server := servers.StartS3TLS(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	c := s3Config(server.Endpoint, "logs")
	o := openS3(t, c)
	run := s3Run(t, o, 1, 40)
	for range 2 {
		if n, err := o.Publish(t.Context(), run); n != 40 || err != nil {
			t.Fatalf("accepted %d: %v", n, err)
		}
	}
	if s := o.Counts(); s.Delivered != 1 || s.AlreadyThere != 1 {
		t.Errorf("counted %+v", s)
	}
	source, err := s3.NewSource(t.Context(), "logs", c.Prefix, c)
	if err != nil {
		t.Fatal(err)
	}
	for object, err := range source.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(object.Body)
		if cerr := object.Body.Close(); err != nil || cerr != nil || batch.CRC32C(body) != run.CRC() {
			t.Errorf("%s: %d bytes read back, %v, %v", object.Name, len(body), err, cerr)
		}
	}
	t.Setenv("AWS_CA_BUNDLE", "")
	_, err = openS3(t, c).Publish(t.Context(), run)
	var e *outputs.Error
	if !errors.As(err, &e) || e.Action != outputs.Misconfigured || !strings.Contains(e.Hint, "AWS_CA_BUNDLE") {
		t.Errorf("an unknown CA is told as %v", err)
	}
}

// A source reads what is there and Spillway's, page after page, and gets along
// with what vanishes meanwhile; a reader may stop anywhere.
func TestS3Source(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	c := s3Config(server.Endpoint, "logs")
	o := openS3(t, c)
	const objects = 1003 // a page has 1,000
	var first, second string
	for i := range objects {
		run := s3Run(t, o, batch.Epoch(i+1), 1)
		if _, err := o.Publish(t.Context(), run); err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			first = run.Key
		case 1:
			second = run.Key
		}
	}
	for _, key := range []string{"logs/edge/readme.txt", "logs/edge2/" + strings.TrimPrefix(first, "logs/edge/"), "logs/edge/main/x.ndjson.zst"} {
		if _, err := server.Client().PutObject(t.Context(), &awss3.PutObjectInput{Bucket: aws.String("logs"), Key: &key, Body: strings.NewReader("x")}); err != nil {
			t.Fatal(err)
		}
	}
	source, err := s3.NewSource(t.Context(), "logs", c.Prefix, c)
	if err != nil {
		t.Fatal(err)
	}
	n, last := 0, ""
	for object, err := range source.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if err := object.Body.Close(); err != nil {
			t.Error(err)
		}
		if object.Name <= last {
			t.Errorf("%s after %s", object.Name, last)
		}
		if n++; n == 1 {
			if object.Name != first {
				t.Errorf("the first is %s, want %s", object.Name, first)
			}
			if _, err := server.Client().DeleteObject(t.Context(), &awss3.DeleteObjectInput{Bucket: aws.String("logs"), Key: &second}); err != nil {
				t.Fatal(err)
			}
		}
		last = object.Name
	}
	if n != objects-1 {
		t.Errorf("%d objects, want %d", n, objects-1)
	}
	for object, err := range source.Objects(t.Context()) {
		if err != nil || object.Name != first || object.Body.Close() != nil {
			t.Errorf("again: %v, %v", object, err)
		}
		break
	}
	absent, err := s3.NewSource(t.Context(), "absent", "", c)
	if err != nil {
		t.Fatal(err)
	}
	n = 0
	for object, err := range absent.Objects(t.Context()) {
		if n++; err == nil || !strings.Contains(err.Error(), "NoSuchBucket") {
			t.Errorf("an absent bucket yields %v, %v", object, err)
		}
	}
	if n != 1 {
		t.Errorf("an absent bucket yields %d times", n)
	}
}

// noiseRun is a run of one batch of plain lines, size bytes that no compressor
// makes smaller.
func noiseRun(epoch batch.Epoch, size int) *batch.Run {
	rng := rand.New(rand.NewPCG(uint64(epoch), uint64(size)))
	p := make([]byte, size)
	for i := range p {
		p[i] = 'A' + byte(rng.Uint32()&31)
	}
	p[size-1] = '\n'
	h := batch.Header{Codec: batch.None, Length: uint32(size), Raw: uint32(size), First: 1, Count: 1,
		FirstTime: time.Date(2026, 11, 20, 14, 5, 0, 0, time.UTC).UnixNano(), CRC: batch.CRC32C(p), Sum: sha256.Sum256(p)}
	return &batch.Run{Lane: "main", Agent: "gw1", Epoch: epoch, Batches: []batch.Batch{{Header: h, Payload: p}}, Attempt: 1}
}
