package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	awsretry "github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"spillway/buffer/batch"
	"spillway/outputs"
)

func settings(endpoint string) Config {
	return Config{Bucket: "logs", Prefix: "edge", Endpoint: endpoint, RollBytes: 8 << 20, RollAge: time.Minute, RollBatches: 200,
		Timeout: 10 * time.Second, MinRate: 32 << 10}
}

// setenv gives the SDK's chain these credentials and nothing of the host.
func setenv(t testing.TB) {
	none := filepath.Join(t.TempDir(), "none")
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest", "AWS_SESSION_TOKEN": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "",
		"AWS_PROFILE": "", "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true", "AWS_CA_BUNDLE": "",
	} {
		t.Setenv(k, v)
	}
}

// open returns an output that retries as the SDK does, without the pauses.
func open(t testing.TB, c Config) *Output {
	t.Helper()
	o, err := New("archive", "plant", "gw1", c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cl := o.client.Load()
	cl.options = append(cl.options, func(so *s3.Options) {
		so.Retryer = awsretry.NewStandard(func(r *awsretry.StandardOptions) {
			r.Backoff = awsretry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		})
	})
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// newRun returns a run of plain payloads with its key for o.
func newRun(o *Output, payloads ...string) *batch.Run {
	run := &batch.Run{Lane: "main", Agent: "gw1", Epoch: 7, Attempt: 1}
	for i, p := range payloads {
		h := batch.Header{Codec: batch.None, Length: uint32(len(p)), Raw: uint32(len(p)), First: uint64(i + 1), Count: 1,
			FirstTime: time.Date(2026, 11, 20, 14, 5, 0, 0, time.UTC).UnixNano(), CRC: batch.CRC32C([]byte(p)), Sum: sha256.Sum256([]byte(p))}
		run.Batches = append(run.Batches, batch.Batch{Header: h, Payload: []byte(p)})
	}
	run.Key = o.Key(run)
	return run
}

// far is a server that answers as it is told and remembers what it was asked.
type far struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
	bodies   [][]byte
}

func newFar(t testing.TB, secure bool, answer func(n int, w http.ResponseWriter, r *http.Request)) *far {
	f := &far{}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.requests, f.bodies = append(f.requests, r), append(f.bodies, body)
		n := len(f.requests)
		f.mu.Unlock()
		w.Header().Set("ETag", `"1"`)
		answer(n, w, r)
	}))
	f.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of a test
	if secure {
		f.StartTLS()
	} else {
		f.Start()
	}
	t.Cleanup(f.Close)
	return f
}

func (f *far) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

// refuse answers with an S3 error; without a code the body is empty, as a proxy's.
func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	if code != "" {
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>as the test says</Message></Error>`, code)
	}
}

// Every answer that the documentation of S3 and its relatives knows: how often the
// SDK asks, what is stored, what follows.
func TestAnswers(t *testing.T) {
	setenv(t)
	for _, c := range []struct {
		status   int
		code     string
		attempts int
		stored   outputs.Stored
		action   outputs.Action
	}{
		{409, "ConditionalRequestConflict", 1, maybe, retry},
		{409, "OperationAborted", 1, maybe, retry},
		{409, "", 1, maybe, retry},
		{500, "InternalError", 3, maybe, retry},
		{500, "", 3, maybe, retry},
		{502, "", 3, maybe, retry},
		{503, "SlowDown", 3, no, retry},
		{503, "ServiceUnavailable", 3, maybe, retry},
		{503, "", 3, maybe, retry},
		{504, "", 3, maybe, retry},
		{520, "", 1, maybe, retry},
		{400, "RequestTimeout", 3, maybe, retry},
		{408, "", 3, maybe, retry},
		{429, "TooManyRequests", 1, no, retry},
		{429, "", 1, no, retry},
		{400, "BadDigest", 1, no, retry},
		{400, "XAmzContentChecksumMismatch", 1, no, retry},
		{400, "XAmzContentSHA256Mismatch", 1, no, retry},
		{403, "RequestTimeTooSkewed", 1, no, misconfigured},
		{400, "ExpiredToken", 2, no, misconfigured},
		{400, "InvalidToken", 2, no, misconfigured},
		{403, "InvalidAccessKeyId", 2, no, misconfigured},
		{403, "AccessDenied", 1, no, misconfigured},
		{403, "SignatureDoesNotMatch", 1, no, misconfigured},
		{403, "AllAccessDisabled", 1, no, misconfigured},
		{400, "KMS.DisabledException", 1, no, misconfigured},
		{400, "KMS.KMSInvalidStateException", 1, no, misconfigured},
		{403, "", 1, no, misconfigured},
		{401, "", 1, no, misconfigured},
		{404, "NoSuchBucket", 1, no, misconfigured},
		{404, "", 1, no, misconfigured},
		{405, "MethodNotAllowed", 1, no, misconfigured},
		{301, "PermanentRedirect", 1, no, misconfigured},
		{307, "TemporaryRedirect", 1, no, misconfigured},
		{302, "", 1, no, misconfigured},
		{400, "AuthorizationHeaderMalformed", 1, no, misconfigured},
		{400, "EntityTooLarge", 1, no, outputs.Unfit},
		{413, "", 1, no, outputs.Unfit},
		{501, "NotImplemented", 2, no, misconfigured}, // the second without If-None-Match
		{400, "InvalidArgument", 2, no, misconfigured},
		{507, "", 1, no, failover},
		{507, "XMinioStorageFull", 1, no, failover},
		{400, "QuotaExceeded", 1, no, failover},
		{400, "MalformedXML", 1, no, misconfigured},
		{418, "", 1, no, misconfigured},
	} {
		t.Run(fmt.Sprintf("%d %s", c.status, c.code), func(t *testing.T) {
			f := newFar(t, false, func(_ int, w http.ResponseWriter, _ *http.Request) { refuse(w, c.status, c.code) })
			o := open(t, settings(f.URL))
			n, err := o.Publish(t.Context(), newRun(o, "a\n"))
			var e *outputs.Error
			if !errors.As(err, &e) {
				t.Fatalf("accepted %d with %T %v", n, err, err)
			}
			if n != 0 || e.Stored != c.stored || e.Action != c.action || f.asked() != c.attempts {
				t.Errorf("accepted %d, stored %v, %v after %d attempts; want %v, %v after %d: %v", n, e.Stored, e.Action, f.asked(), c.stored, c.action, c.attempts, e)
			}
			if (c.action == misconfigured || c.action == failover) && e.Hint == "" {
				t.Errorf("no hint for the operator: %v", e)
			}
			if !strings.Contains(e.Error(), fmt.Sprint(c.status)) || !strings.Contains(e.Error(), c.code) {
				t.Errorf("the error does not say the answer: %v", e)
			}
			if (o.Probe(t.Context(), "main") == nil) || o.Counts() != (outputs.Counts{}) {
				t.Errorf("the probe succeeds, or something is counted: %+v", o.Counts())
			}
		})
	}
}

// An object that is too large for the server is planned again, smaller.
func TestTooLarge(t *testing.T) {
	setenv(t)
	f := newFar(t, false, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 100 {
			refuse(w, 413, "")
		}
	})
	o := open(t, settings(f.URL))
	text := strings.Repeat("x", 60)
	run := newRun(o, text, text, text)
	n, err := o.Publish(t.Context(), run)
	var e *outputs.Error
	if !errors.As(err, &e) || n != 0 || e.Stored != no || e.Action != outputs.Unfit || !strings.Contains(e.Hint, "ROLL_BYTES") {
		t.Errorf("413 for three batches is told as %v", err)
	}
	if l := o.Limits().Bytes; l != 90 {
		t.Errorf("after %d bytes the limit is %d", run.Bytes(), l)
	}
	if n, err := o.Publish(t.Context(), newRun(o, text)); n != 1 || err != nil {
		t.Errorf("one batch: accepted %d, %v", n, err)
	}
	// A batch that is too large alone is unfit, and says nothing about others.
	_, err = o.Publish(t.Context(), newRun(o, text+text))
	if s, a := outputs.Classify(err); s != no || a != outputs.Unfit || o.Limits().Bytes != 90 {
		t.Errorf("stored %v, %v, limit %d: %v", s, a, o.Limits().Bytes, err)
	}
}

// What a server refuses for a reason that nobody knows is a setting to correct
// while it refuses everything; an object that it refuses three times while it
// takes others is unfit.
func TestUnknownRefusal(t *testing.T) {
	setenv(t)
	var probes atomic.Bool
	f := newFar(t, false, func(_ int, w http.ResponseWriter, r *http.Request) {
		if !probes.Load() || !strings.Contains(r.URL.Path, "_probe") {
			refuse(w, 400, "NoSuchCode")
		}
	})
	o := open(t, settings(f.URL))
	want := func(run *batch.Run, action outputs.Action) {
		t.Helper()
		n, err := o.Publish(t.Context(), run)
		if s, a := outputs.Classify(err); n != 0 || s != no || a != action {
			t.Errorf("accepted %d, stored %v, %v, want %v: %v", n, s, a, action, err)
		}
	}
	run, other := newRun(o, "a\n"), newRun(o, "b\n")
	for range 5 {
		want(run, misconfigured)
	}
	probes.Store(true)
	want(run, outputs.Unfit)
	want(other, misconfigured)
	want(other, misconfigured)
	want(other, outputs.Unfit)
}

// Success is only what S3 calls so: a portal says 200 to everything.
func TestStrangeAnswer(t *testing.T) {
	setenv(t)
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a page": func(w http.ResponseWriter) {
			w.Header().Del("ETag")
			_, _ = io.WriteString(w, "<html>please log in</html>")
		},
		"an error with status 200": func(w http.ResponseWriter) {
			w.Header().Del("ETag")
			refuse(w, 200, "InternalError")
		},
		"another checksum": func(w http.ResponseWriter) { w.Header().Set("x-amz-checksum-crc32c", "AAAAAA==") },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFar(t, false, func(_ int, w http.ResponseWriter, _ *http.Request) { answer(w) })
			o := open(t, settings(f.URL))
			n, err := o.Publish(t.Context(), newRun(o, "a\n"))
			var e *outputs.Error
			if !errors.As(err, &e) || n != 0 || e.Stored != maybe || e.Action != retry || o.Counts() != (outputs.Counts{}) ||
				(e.Hint == "") != (name == "an error with status 200") { // S3 does that after a long wait; the SDK knows it
				t.Errorf("accepted %d: %+v, counted %+v", n, err, o.Counts())
			}
			if o.Probe(t.Context(), "main") == nil {
				t.Error("the probe succeeds")
			}
		})
	}
}

// A host whose clock is wrong is put right by the server's own Date, silently; one
// whose proxy hides it is told.
func TestClock(t *testing.T) {
	setenv(t)
	for _, dated := range []bool{true, false} {
		there := func() time.Time { return time.Now().UTC().Add(3 * time.Hour) }
		f := newFar(t, false, func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header()["Date"] = nil
			if dated {
				w.Header().Set("Date", there().Format(http.TimeFormat))
			}
			signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
			if err != nil || there().Sub(signed).Abs() > 15*time.Minute {
				refuse(w, 403, "RequestTimeTooSkewed")
			}
		})
		o := open(t, settings(f.URL))
		n, err := o.Publish(t.Context(), newRun(o, "a\n"))
		var e *outputs.Error
		switch {
		case dated && (n != 1 || err != nil || f.asked() != 2):
			t.Errorf("accepted %d after %d attempts: %v", n, f.asked(), err)
		case !dated && (!errors.As(err, &e) || e.Action != misconfigured || !strings.Contains(e.Hint, "clock")):
			t.Errorf("without the server's date: accepted %d, %v", n, err)
		}
	}
}

// Credentials that nobody hands out end a call as a silent server does.
func TestCredentialsSilent(t *testing.T) {
	setenv(t)
	f := newFar(t, false, func(int, http.ResponseWriter, *http.Request) {})
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte("[default]\ncredential_process=sleep 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", config)
	c := settings(f.URL)
	c.Timeout = 50 * time.Millisecond
	o := open(t, c)
	_, err := o.Publish(t.Context(), newRun(o, "a\n"))
	if s, a := outputs.Classify(err); err == nil || s != no || a != failover || f.asked() != 0 {
		t.Errorf("stored %v, %v after %d requests: %v", s, a, f.asked(), err)
	}
}

// The last attempt's refusal says nothing of the one before, whose answer was lost.
func TestDoubt(t *testing.T) {
	setenv(t)
	f := newFar(t, false, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			panic(http.ErrAbortHandler)
		}
		refuse(w, 403, "AccessDenied")
	})
	o := open(t, settings(f.URL))
	n, err := o.Publish(t.Context(), newRun(o, "a\n"))
	if s, a := outputs.Classify(err); n != 0 || s != maybe || a != misconfigured || f.asked() != 2 {
		t.Errorf("accepted %d, stored %v, %v after %d attempts: %v", n, s, a, f.asked(), err)
	}
	f.Close()
	o.client.Load().http.CloseIdleConnections()
	n, err = o.Publish(t.Context(), newRun(o, "a\n"))
	if s, a := outputs.Classify(err); n != 0 || s != no || a != retry {
		t.Errorf("nobody there: accepted %d, stored %v, %v: %v", n, s, a, err)
	}
	// A plain server where TLS is expected.
	f = newFar(t, false, func(int, http.ResponseWriter, *http.Request) {})
	o = open(t, settings(strings.Replace(f.URL, "http:", "https:", 1)))
	_, err = o.Publish(t.Context(), newRun(o, "a\n"))
	if s, a := outputs.Classify(err); s != no || a != misconfigured {
		t.Errorf("a server without TLS: stored %v, %v: %v", s, a, err)
	}
}

// 412 is an acknowledgement when, and only when, the condition was ours.
func TestAlreadyThere(t *testing.T) {
	setenv(t)
	f := newFar(t, false, func(_ int, w http.ResponseWriter, _ *http.Request) { refuse(w, 412, "PreconditionFailed") })
	o := open(t, settings(f.URL))
	if n, err := o.Publish(t.Context(), newRun(o, "a\n", "b\n")); n != 2 || err != nil || o.Counts() != (outputs.Counts{AlreadyThere: 1}) {
		t.Errorf("accepted %d, %v, counted %+v", n, err, o.Counts())
	}
	c := settings(f.URL)
	c.Conditional = Off
	o = open(t, c)
	if n, err := o.Publish(t.Context(), newRun(o, "a\n")); n != 0 || err == nil {
		t.Errorf("accepted %d without a condition of ours", n)
	}
}

// A server may answer and close while the body is still on its way: its answer
// counts, over http and https.
func TestEarlyAnswer(t *testing.T) {
	setenv(t)
	for _, secure := range []bool{false, true} {
		var asked atomic.Int64
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if _, err := io.ReadFull(r.Body, make([]byte, 1000)); err != nil {
				t.Error(err)
			}
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
			_ = c.Close() // with bytes unread: a reset follows the answer
		}))
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		if secure {
			server.StartTLS()
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("AWS_CA_BUNDLE", ca)
		} else {
			server.Start()
		}
		o := open(t, settings(server.URL))
		const times = 20
		for range times {
			if n, err := o.Publish(t.Context(), newRun(o, strings.Repeat("x", 1<<20))); n != 1 || err != nil {
				t.Errorf("accepted %d: %v", n, err)
			}
		}
		if n := asked.Load(); n != times {
			t.Errorf("%d attempts for %d runs, https %v", n, times, secure)
		}
		server.Close()
	}
}

// A server that knows no If-None-Match is told so once and remembered, unless
// CONDITIONAL insists.
func TestUnconditional(t *testing.T) {
	setenv(t)
	f := newFar(t, false, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" {
			refuse(w, 501, "NotImplemented")
		}
	})
	o := open(t, settings(f.URL))
	for range 3 {
		if n, err := o.Publish(t.Context(), newRun(o, "a\n")); n != 1 || err != nil {
			t.Fatalf("accepted %d: %v", n, err)
		}
	}
	if f.asked() != 4 || o.Counts() != (outputs.Counts{Delivered: 3, Bytes: 6}) {
		t.Errorf("%d requests, counted %+v", f.asked(), o.Counts())
	}
	c := settings(f.URL)
	c.Conditional = On
	if _, err := open(t, c).Publish(t.Context(), newRun(o, "a\n")); err == nil {
		t.Error("accepted without the condition that was asked for")
	}
}

// Credentials that were renewed where the chain finds them need no restart.
func TestCredentialsRenewed(t *testing.T) {
	setenv(t)
	file := filepath.Join(t.TempDir(), "credentials")
	write := func(key string) {
		text := "[default]\naws_access_key_id=" + key + "\naws_secret_access_key=x\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("old")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	// Of the chain's sources this one is asked again.
	config := filepath.Join(t.TempDir(), "config")
	script := filepath.Join(t.TempDir(), "renew")
	for path, text := range map[string]string{
		script: "#!/bin/sh\nkey=$(sed -n 's/aws_access_key_id=//p' " + file + ")\n" +
			`echo "{\"Version\":1,\"AccessKeyId\":\"$key\",\"SecretAccessKey\":\"x\"}"` + "\n",
		config: "[default]\ncredential_process=" + script + "\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("AWS_CONFIG_FILE", config)
	f := newFar(t, false, func(_ int, w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "Credential=new/") {
			refuse(w, 400, "ExpiredToken")
		}
	})
	o := open(t, settings(f.URL))
	run := newRun(o, "a\n")
	_, err := o.Publish(t.Context(), run)
	if _, action := outputs.Classify(err); err == nil || action != misconfigured {
		t.Fatalf("old credentials end in %v", err)
	}
	write("new")
	if n, err := o.Publish(t.Context(), run); n != 1 || err != nil {
		t.Errorf("accepted %d with new credentials: %v", n, err)
	}
	if f.asked() != 4 {
		t.Errorf("%d requests", f.asked())
	}
}

// What the request looks like on the wire, over http and https.
func TestRequest(t *testing.T) {
	setenv(t)
	for _, secure := range []bool{false, true} {
		hash := fmt.Sprintf("%x", sha256.Sum256([]byte("a\nbb\n")))
		if secure {
			hash = "UNSIGNED-PAYLOAD"
		}
		f := newFar(t, secure, func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				refuse(w, 500, "InternalError") // so that the body is sent twice
			}
		})
		if secure {
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			o := open(t, settings(f.URL))
			_, err := o.Publish(t.Context(), newRun(o, "a\n"))
			var e *outputs.Error
			if !errors.As(err, &e) || e.Stored != no || e.Action != misconfigured || !strings.Contains(e.Hint, "AWS_CA_BUNDLE") {
				t.Errorf("an unknown CA is told as %v", err)
			}
			t.Setenv("AWS_CA_BUNDLE", ca)
		}
		o := open(t, settings(f.URL))
		run := newRun(o, "a\n", "bb\n")
		if n, err := o.Publish(t.Context(), run); n != 2 || err != nil {
			t.Fatalf("accepted %d: %v", n, err)
		}
		if o.Counts() != (outputs.Counts{Delivered: 1, Bytes: 5}) {
			t.Errorf("counted %+v", o.Counts())
		}
		if f.asked() != 2 {
			t.Fatalf("%d requests", f.asked())
		}
		for i, r := range f.requests {
			if r.Method != "PUT" || r.URL.Path != "/logs/"+run.Key || string(f.bodies[i]) != "a\nbb\n" {
				t.Errorf("%s %s with body %q", r.Method, r.URL.Path, f.bodies[i])
			}
			for k, v := range map[string]string{
				"If-None-Match": "*", "Content-Type": "application/x-ndjson", "Content-Encoding": "", "Content-Length": "5",
				"X-Amz-Checksum-Crc32c": *checksum(run.CRC()), "X-Amz-Content-Sha256": hash, "X-Amz-Trailer": "",
				"X-Amz-Meta-Spillway-Attempt": "", "X-Amz-Meta-Spillway-Batches": run.Sizes(),
			} {
				if got := r.Header.Get(k); got != v {
					t.Errorf("%s: %q, want %q", k, got, v)
				}
			}
		}
	}
}

// A server that says nothing costs one deadline, which grows with the object.
func TestDeadline(t *testing.T) {
	setenv(t)
	release := make(chan struct{})
	f := newFar(t, false, func(int, http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	c := settings(f.URL)
	c.Timeout, c.MinRate = 500*time.Millisecond, 1<<10
	o := open(t, c)
	for _, size := range []int{10, 300} {
		begin := time.Now()
		_, err := o.Publish(t.Context(), newRun(o, strings.Repeat("x", size)))
		took, want := time.Since(begin), c.Timeout+time.Duration(size)*time.Second/1024
		if s, a := outputs.Classify(err); err == nil || s != maybe || a != retry || !strings.Contains(err.Error(), "TIMEOUT") {
			t.Errorf("silence is told as stored %v, %v: %v", s, a, err)
		}
		if took < want {
			t.Errorf("%d bytes were given %v, want %v", size, took, want)
		}
	}
	if f.asked() != 2 {
		t.Errorf("%d attempts for two runs", f.asked())
	}
}

func TestBody(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var batches []batch.Batch
		var want []byte
		for range rng.IntN(6) {
			p := make([]byte, rng.IntN(40))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			batches, want = append(batches, batch.Batch{Payload: p}), append(want, p...)
		}
		if err := iotest.TestReader(newBody(batches), want); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	b := newBody(nil)
	for _, offset := range []int64{-1, 1} {
		if _, err := b.Seek(offset, io.SeekStart); err == nil {
			t.Errorf("seek to %d of 0", offset)
		}
	}
}

// Metadata fits what S3 takes with the longest names and as many batches as a run
// may have; what can't fit is left out rather than refused by the server.
func TestMetadata(t *testing.T) {
	size := func(m map[string]string) (n int) {
		for k, v := range m {
			n += len(k) + len(v)
		}
		return n
	}
	run := &batch.Run{Lane: strings.Repeat("l", 16), Agent: strings.Repeat("a", 64), Epoch: 1<<64 - 1, Attempt: 100}
	next := uint64(1) << 62
	for range maxBatches {
		run.Batches = append(run.Batches, batch.Batch{Header: batch.Header{First: next, Count: 5000}, Payload: make([]byte, 600<<10)})
		next += 5000
	}
	m := metadata(strings.Repeat("s", 64), run)
	if size(m) > maxMetadata || m[metaBatches] == "" {
		t.Errorf("%d bytes, sizes %q", size(m), m[metaBatches])
	}
	var o outputs.Object
	if err := addMetadata(&o, m); err != nil || len(o.Sizes) != maxBatches || o.Attempt != 100 {
		t.Errorf("read back %d sizes, attempt %d: %v", len(o.Sizes), o.Attempt, err)
	}
	for i := range run.Batches {
		run.Batches[i].Count = 1 << 31
	}
	if m := metadata(strings.Repeat("s", 64), run); size(m) > maxMetadata || m[metaSeal] == "" {
		t.Errorf("%d bytes", size(m))
	}
	for _, k := range []string{metaBefore, metaSeal, metaBatches, metaAttempt} {
		if err := addMetadata(&o, map[string]string{k: "!"}); err == nil || !strings.Contains(err.Error(), k) {
			t.Errorf("%s=! is read as %v", k, err)
		}
	}
}

func TestConfig(t *testing.T) {
	setenv(t)
	for name, change := range map[string]func(c *Config){
		"URL":             func(c *Config) { c.Bucket = "" },
		"URL: the prefix": func(c *Config) { c.Prefix = "a//b" },
		"failover":        func(c *Config) { c.Prefix = "a/failover" },
		"700":             func(c *Config) { c.Prefix = strings.Repeat("x", 701) },
		"ENDPOINT":        func(c *Config) { c.Endpoint = "localhost:9000" },
		"REGION":          func(c *Config) { c.Endpoint = "" },
		"ROLL_BYTES":      func(c *Config) { c.RollBytes = 0 },
		"ROLL_AGE":        func(c *Config) { c.RollAge = -1 },
		"ROLL_BATCHES":    func(c *Config) { c.RollBatches = 201 },
		"TIMEOUT":         func(c *Config) { c.Timeout = 0 },
		"MIN_RATE":        func(c *Config) { c.MinRate = 0 },
	} {
		c := settings("http://localhost:9")
		change(&c)
		if _, err := New("archive", "plant", "gw1", c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, want := range map[string][2]string{
		"s3://logs": {"logs", ""}, "s3://logs/": {"logs", ""}, "s3://logs/a/b/": {"logs", "a/b"},
	} {
		if b, p, err := ParseURL(text); err != nil || b != want[0] || p != want[1] {
			t.Errorf("%s is %q %q, %v", text, b, p, err)
		}
	}
	for _, text := range []string{"", "logs", "s3://", "s3:logs", "http://logs/a", "s3://user@logs", "s3://logs?x=1", "s3://logs#x", "s3:///logs"} {
		if b, p, err := ParseURL(text); err == nil {
			t.Errorf("%q is %q %q", text, b, p)
		}
	}
	for text, want := range map[string]Choice{"auto": Auto, "AUTO": Auto, "on": On, "true": On, "1": On, "yes": On, "off": Off, "False": Off, "no": Off, "0": Off} {
		var c Choice
		if err := c.UnmarshalText([]byte(text)); err != nil || c != want {
			t.Errorf("%q is %v, %v", text, c, err)
		}
		var again Choice
		if err := again.UnmarshalText([]byte(c.String())); err != nil || again != c {
			t.Errorf("%v reads back as %v, %v", c, again, err)
		}
	}
	if new(Choice).UnmarshalText([]byte("maybe")) == nil {
		t.Error("maybe is a choice")
	}
}

// A key that was planned for other bytes never reaches the server.
func TestForeignKey(t *testing.T) {
	setenv(t)
	f := newFar(t, false, func(int, http.ResponseWriter, *http.Request) {})
	o := open(t, settings(f.URL))
	run := newRun(o, "a\n")
	for _, key := range []string{"", "edge/x", newRun(o, "b\n").Key} {
		run.Key = key
		if n, err := o.Publish(t.Context(), run); n != 0 || err == nil {
			t.Errorf("key %q: accepted %d", key, n)
		}
	}
	run.Key = o.Key(run)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := o.Publish(ctx, run); n != 0 || err == nil {
		t.Errorf("accepted %d after the end", n)
	}
	if f.asked() != 0 {
		t.Errorf("%d requests", f.asked())
	}
}

// BenchmarkPublish stores 8 MiB in 16 batches per operation: signing and sending,
// no server to speak of.
func BenchmarkPublish(b *testing.B) {
	setenv(b)
	for _, secure := range []bool{false, true} {
		start, name := httptest.NewServer, "http"
		if secure {
			start, name = httptest.NewTLSServer, "https"
		}
		b.Run(name, func(b *testing.B) {
			f := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", `"1"`)
				_, _ = io.Copy(io.Discard, r.Body)
			}))
			defer f.Close()
			if secure {
				ca := filepath.Join(b.TempDir(), "ca.pem")
				if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600); err != nil {
					b.Fatal(err)
				}
				b.Setenv("AWS_CA_BUNDLE", ca)
			}
			o := open(b, settings(f.URL))
			var payloads []string
			for range 16 {
				payloads = append(payloads, string(bytes.Repeat([]byte("x"), 512<<10)))
			}
			run := newRun(o, payloads...)
			b.SetBytes(run.Bytes())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := o.Publish(b.Context(), run); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
