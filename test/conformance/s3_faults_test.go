package conformance

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
	"spillway/outputs/s3"
	"spillway/test/faults"
	"spillway/test/servers"
)

// s3Fails publishes run, which must not be accepted, and returns what is said.
func s3Fails(t *testing.T, o *s3.Output, run *batch.Run) *outputs.Error {
	t.Helper()
	n, err := o.Publish(t.Context(), run)
	var e *outputs.Error
	if !errors.As(err, &e) || n != 0 {
		t.Fatalf("accepted %d: %v", n, err)
	}
	return e
}

// s3Says fails unless e says so. hint "" is none.
func s3Says(t *testing.T, e *outputs.Error, stored outputs.Stored, action outputs.Action, hint string) {
	t.Helper()
	if e.Stored != stored || e.Action != action || !strings.Contains(e.Hint, hint) || (hint == "") != (e.Hint == "") {
		t.Errorf("stored %v, %v, hint %q; want %v, %v, %q: %v", e.Stored, e.Action, e.Hint, stored, action, hint, e.Err)
	}
}

// s3Recovers publishes run, which must be accepted at once, and stored exactly once.
func s3Recovers(t *testing.T, server *servers.S3, o *s3.Output, run *batch.Run) {
	t.Helper()
	if n, err := o.Publish(t.Context(), run); n != len(run.Batches) || err != nil {
		t.Fatalf("afterwards accepted %d: %v", n, err)
	}
	seen := 0
	for _, key := range server.Keys(t, "logs") {
		if key == run.Key {
			seen++
		} else if o, err := outputs.ParseKey(key); err == nil && o.Epoch == run.Epoch {
			t.Errorf("%s has records of %s", key, run.Key)
		}
	}
	if seen != 1 {
		t.Errorf("%s is there %d times", run.Key, seen)
	}
	if _, body := getS3(t, server, "logs", run.Key); batch.CRC32C(body) != run.CRC() {
		t.Errorf("%s: %d bytes, not those that were sent", run.Key, len(body))
	}
}

// Every kind of answer, given in the server's place for one attempt, before the
// object is stored and after: what is said, and that the repeat ends with one
// object. How often the SDK asks is held by the package's own tests.
func TestS3Answers(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	wire := faults.NewS3(t, server.Endpoint)
	o := openS3(t, s3Config(wire.URL, "logs"))
	const no, maybe = outputs.StoredNo, outputs.StoredMaybe
	for i, c := range []struct {
		fault  faults.Fault
		puts   int // PUTs, of which all get the fault
		stored outputs.Stored
		action outputs.Action
		hint   string
	}{
		{fault: faults.Fault{Status: 409, Code: "ConditionalRequestConflict"}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 409, Code: "OperationAborted", Stored: true}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Stored: true}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 500, Code: "InternalError"}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 500, Code: "InternalError", Stored: true}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 200, Code: "InternalError", Stored: true}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 200}, puts: 1, stored: maybe, action: outputs.Retry, hint: "portals"},
		{fault: faults.Fault{Status: 502, Stored: true}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 503, Code: "SlowDown"}, puts: 1, stored: no, action: outputs.Retry},
		{fault: faults.Fault{Status: 503, Code: "ServiceUnavailable", Stored: true}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 400, Code: "RequestTimeout"}, puts: 1, stored: maybe, action: outputs.Retry},
		{fault: faults.Fault{Status: 429, Code: "TooManyRequests"}, puts: 1, stored: no, action: outputs.Retry},
		{fault: faults.Fault{Status: 403, Code: "RequestTimeTooSkewed"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "clock"},
		{fault: faults.Fault{Status: 400, Code: "ExpiredToken"}, puts: 2, stored: no, action: outputs.Misconfigured, hint: "credentials"},
		{fault: faults.Fault{Status: 403, Code: "InvalidAccessKeyId"}, puts: 2, stored: no, action: outputs.Misconfigured, hint: "credentials"},
		{fault: faults.Fault{Status: 403, Code: "AccessDenied"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "s3:PutObject"},
		{fault: faults.Fault{Status: 403, Code: "SignatureDoesNotMatch"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "secret"},
		{fault: faults.Fault{Status: 403, Code: "AllAccessDisabled"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "s3:PutObject"},
		{fault: faults.Fault{Status: 400, Code: "KMS.DisabledException"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "KMS"},
		{fault: faults.Fault{Status: 404, Code: "NoSuchBucket"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "create the bucket"},
		{fault: faults.Fault{Status: 405, Code: "MethodNotAllowed"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "ENDPOINT"},
		{fault: faults.Fault{Status: 301, Code: "PermanentRedirect", Header: http.Header{"X-Amz-Bucket-Region": {"eu-central-1"}}}, puts: 1,
			stored: no, action: outputs.Misconfigured, hint: "eu-central-1"},
		{fault: faults.Fault{Status: 400, Code: "AuthorizationHeaderMalformed"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "REGION"},
		{fault: faults.Fault{Status: 400, Code: "XAmzContentChecksumMismatch"}, puts: 1, stored: no, action: outputs.Retry, hint: "changed on the way"},
		{fault: faults.Fault{Status: 400, Code: "EntityTooLarge"}, puts: 1, stored: no, action: outputs.Unfit, hint: "ROLL_BYTES"},
		{fault: faults.Fault{Status: 413}, puts: 1, stored: no, action: outputs.Unfit, hint: "ROLL_BYTES"},
		{fault: faults.Fault{Status: 501, Code: "NotImplemented"}, puts: 2, stored: no, action: outputs.Misconfigured, hint: "CONDITIONAL"},
		{fault: faults.Fault{Status: 507}, puts: 1, stored: no, action: outputs.Failover, hint: "full"},
		{fault: faults.Fault{Status: 400, Code: "QuotaExceeded"}, puts: 1, stored: no, action: outputs.Failover, hint: "full"},
		{fault: faults.Fault{Status: 507, Code: "XMinioStorageFull"}, puts: 1, stored: no, action: outputs.Failover, hint: "full"},
		{fault: faults.Fault{Status: 418, Code: "Teapot"}, puts: 1, stored: no, action: outputs.Misconfigured, hint: "its code says why"},
	} {
		t.Run(fmt.Sprintf("%d %s stored %v", c.fault.Status, c.fault.Code, c.fault.Stored), func(t *testing.T) {
			run := s3Run(t, o, batch.Epoch(i+1), 2)
			wire.Fail(-1, c.fault)
			before := wire.Puts()
			s3Says(t, s3Fails(t, o, run), c.stored, c.action, c.hint)
			if n := wire.Puts() - before; n != c.puts {
				t.Errorf("%d PUTs, want %d", n, c.puts)
			}
			if err := o.Probe(t.Context(), "main"); err == nil {
				t.Error("the probe succeeds")
			}
			wire.Heal()
			if err := o.Probe(t.Context(), "main"); err != nil {
				t.Errorf("the probe afterwards: %v", err)
			}
			counts := o.Counts()
			run.Attempt = 2
			s3Recovers(t, server, o, run)
			now := o.Counts()
			if anew := now.Delivered - counts.Delivered; (anew == 1) == c.fault.Stored || anew+now.AlreadyThere-counts.AlreadyThere != 1 {
				t.Errorf("counted %+v, then %+v", counts, now)
			}
		})
	}
	// One such answer in between is the SDK's to repeat.
	t.Setenv("AWS_MAX_ATTEMPTS", "")
	o = openS3(t, s3Config(wire.URL, "logs"))
	for i, f := range []faults.Fault{{Status: 500, Code: "InternalError", Stored: true}, {Stored: true}, {Status: 503, Code: "SlowDown"}} {
		wire.Fail(1, f)
		s3Recovers(t, server, o, s3Run(t, o, batch.Epoch(1000+i), 2))
	}
	if c := o.Counts(); c.Delivered != 1 || c.AlreadyThere != 2 {
		t.Errorf("counted %+v", c)
	}
}

// What a network does between the agent and the server.
func TestS3Wire(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	wire := faults.New(t, server.Endpoint)
	c := s3Config("http://"+wire.Address, "logs")
	c.Timeout = time.Second
	for i, row := range []struct {
		name      string
		connected bool // before
		fault     func()
		stored    outputs.Stored
	}{
		{"refused", false, wire.Refuse, outputs.StoredNo},
		{"silent", true, wire.Silence, outputs.StoredMaybe},
		{"nobody answers", false, wire.Silence, outputs.StoredMaybe},
		{"answers lost", true, wire.DropAnswers, outputs.StoredMaybe},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := openS3(t, c)
			run := s3Run(t, o, batch.Epoch(i+1), 2)
			if row.connected {
				if err := o.Probe(t.Context(), "main"); err != nil {
					t.Fatal(err)
				}
			}
			row.fault()
			begin := time.Now()
			s3Says(t, s3Fails(t, o, run), row.stored, outputs.Retry, "")
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
			if o.Probe(t.Context(), "main") == nil {
				t.Error("the probe succeeds")
			}
			wire.Forward()
			run.Attempt = 2
			s3Recovers(t, server, o, run)
		})
	}
	// A reset in the middle of a body: the SDK asks again.
	t.Run("reset", func(t *testing.T) {
		o := openS3(t, s3Config("http://"+wire.Address, "logs"))
		run := s3Noise(o, 100, 2<<20)
		wire.Slow(4<<20, 0)
		timer := time.AfterFunc(200*time.Millisecond, wire.Reset)
		defer timer.Stop()
		defer wire.Forward()
		s3Recovers(t, server, o, run)
	})
	// TIMEOUT and MIN_RATE are for an uplink as it is: one that is slow and does what
	// it should is waited for, one below that is told.
	t.Run("slow", func(t *testing.T) {
		defer wire.Forward()
		for rate, ok := range map[int]bool{1 << 20: true, 100 << 10: false} {
			c := s3Config("http://"+wire.Address, "logs")
			c.Timeout, c.MinRate = 500*time.Millisecond, 256<<10
			o := openS3(t, c)
			run := s3Noise(o, batch.Epoch(200+rate), 512<<10)
			wire.Slow(rate, 0)
			n, err := o.Publish(t.Context(), run)
			if ok != (n == 1) || ok != (err == nil) {
				t.Errorf("at %d bytes a second: accepted %d: %v", rate, n, err)
			}
			if err != nil {
				if s, a := outputs.Classify(err); s != outputs.StoredMaybe || a != outputs.Retry || !strings.Contains(err.Error(), "TIMEOUT") {
					t.Errorf("stored %v, %v: %v", s, a, err)
				}
			}
			wire.Forward()
			s3Recovers(t, server, o, run)
		}
	})
}

// s3Noise is a run of one batch of size bytes that no compressor makes smaller.
func s3Noise(o *s3.Output, epoch batch.Epoch, size int) *batch.Run {
	run := noiseRun(epoch, size)
	run.Key = o.Key(run)
	return run
}

// The server is killed in the middle of a body: there is no part of an object
// afterwards, and the repeat stores it whole.
func TestS3Killed(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	wire := faults.New(t, server.Endpoint)
	o := openS3(t, s3Config("http://"+wire.Address, "logs"))
	for i := range 2 {
		run := s3Noise(o, batch.Epoch(i+1), 2<<20)
		wire.Slow(4<<20, 0)
		begun, killed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(killed)
			<-begun
			time.Sleep(time.Duration(100+100*i) * time.Millisecond)
			server.Kill(t)
		}()
		close(begun)
		s3Says(t, s3Fails(t, o, run), outputs.StoredMaybe, outputs.Retry, "")
		<-killed
		wire.Forward()
		server.Start(t)
		for _, key := range server.Keys(t, "logs") {
			if key == run.Key {
				t.Errorf("a part of %s is there as a whole", key)
			}
		}
		run.Attempt = 2
		s3Recovers(t, server, o, run)
	}
	// A restart between two runs, whose connection the output still holds.
	run := s3Noise(o, 100, 300<<10)
	s3Recovers(t, server, o, run)
	server.Stop(t)
	server.Start(t)
	s3Recovers(t, server, o, s3Noise(o, 101, 300<<10))
	if c := o.Counts(); c.Delivered != 4 || c.AlreadyThere != 0 {
		t.Errorf("counted %+v", c)
	}
}

// s3:PutObject on its own keys is all that an agent needs, repeats and probe
// included; without it, it is told what to grant.
func TestS3Denied(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	server.Bucket(t, "logs")
	server.User(t, "edge", "edgesecret")
	t.Setenv("AWS_ACCESS_KEY_ID", "edge")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "edgesecret")
	o := openS3(t, s3Config(server.Endpoint, "logs"))
	run := s3Run(t, o, 1, 2)
	s3Says(t, s3Fails(t, o, run), outputs.StoredNo, outputs.Misconfigured, "s3:PutObject")
	if o.Probe(t.Context(), "main") == nil {
		t.Error("the probe succeeds")
	}
	server.Policy(t, "logs", "edge", "s3:PutObject", "logs/edge/*")
	if err := o.Probe(t.Context(), "main"); err != nil {
		t.Error(err)
	}
	s3Recovers(t, server, o, run)
	s3Recovers(t, server, o, run)
	if c := o.Counts(); c.Delivered != 1 || c.AlreadyThere != 1 {
		t.Errorf("counted %+v", c)
	}
	server.Policy(t, "logs", "edge", "s3:PutObject", "other/*")
	s3Says(t, s3Fails(t, o, s3Run(t, o, 2, 1)), outputs.StoredNo, outputs.Misconfigured, "s3:PutObject")
}

// A bucket that is missing is told, and used when it is there.
func TestS3NoBucket(t *testing.T) {
	server := servers.StartS3(t, "")
	server.Setenv(t)
	o := openS3(t, s3Config(server.Endpoint, "logs"))
	run := s3Run(t, o, 1, 2)
	s3Says(t, s3Fails(t, o, run), outputs.StoredNo, outputs.Misconfigured, "create the bucket")
	server.Bucket(t, "logs")
	s3Recovers(t, server, o, run)
}

// The server's disk is full.
func TestS3Full(t *testing.T) {
	disk := faults.NewDisk(t, 8<<20)
	server := servers.StartS3(t, filepath.Join(disk.Dir, "s3"))
	server.Setenv(t)
	server.Bucket(t, "logs")
	o := openS3(t, s3Config(server.Endpoint, "logs"))
	first, run := s3Noise(o, 1, 300<<10), s3Noise(o, 2, 2<<20)
	s3Recovers(t, server, o, first)
	disk.Fill(t, 1<<20)
	s3Says(t, s3Fails(t, o, run), outputs.StoredNo, outputs.Failover, "full")
	disk.Free(t)
	run.Attempt = 2
	s3Recovers(t, server, o, run)
	s3Recovers(t, server, o, first)
}
