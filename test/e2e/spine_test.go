package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"spillway/buffer/batch"
	"spillway/outputs"
	"spillway/outputs/jetstream"
	"spillway/test/agent"
	"spillway/test/faults"
	"spillway/test/servers"
)

// hub returns the environment of an agent that publishes to a stream on n.
func hub(t *testing.T, n *servers.NATS) []string {
	t.Helper()
	servers.CreateStream(t, n.URL, servers.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}})
	return []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=" + n.URL, "SPILLWAY_OUTPUT_HUB_STREAM=LOGS"}
}

func natsSource(n *servers.NATS) string { return n.URL + "/LOGS" }

// What the README's first page promises: a line by logger, by tcp and by udp, and
// plain text, are read back from the stream with their fields.
func TestLoggerToJetStream(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	a := agent.New(t, t.TempDir(), hub(t, n)...)
	a.Start(t)
	sh(t, fmt.Sprintf("logger -n 127.0.0.1 -P %d -T 'hello by tcp'", a.TCP))
	sh(t, fmt.Sprintf("logger -n 127.0.0.1 -P %d -d 'hello by udp'", a.UDP))
	sh(t, fmt.Sprintf("echo 'plain text' | nc -q1 127.0.0.1 %d", a.TCP))
	var rs []record
	agent.Eventually(t, "three records in the stream", 30*time.Second, func() bool {
		out, _, code := a.Command(t, "cat", natsSource(n))
		if code != 0 {
			t.Fatalf("cat exits %d", code)
		}
		rs = parse(t, out)
		return len(rs) == 3
	})
	for _, c := range []struct{ message, input string }{{"hello by tcp", "tcp"}, {"hello by udp", "udp"}} {
		r := find(t, rs, c.message)
		if r.Event.Dataset != c.input+".generic" || r.Input.Type != c.input || r.Source.IP != "127.0.0.1" || r.Source.Port == 0 ||
			r.Log.Syslog.Priority == nil || *r.Log.Syslog.Priority != 13 || r.Error != nil {
			t.Errorf("%s: %+v", c.message, r)
		}
	}
	if r := find(t, rs, "plain text"); r.Error != nil || r.Log.Syslog.Priority != nil || r.Input.Type != "tcp" {
		t.Errorf("plain text: %+v", r)
	}
	if code := a.Stop(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// An agent with an empty environment runs: localhost, ./spillway-data/outbox.
func TestEmptyEnvironment(t *testing.T) {
	defaultPorts(t)
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(agent.Binary(t))
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, []string{}, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	agent.Eventually(t, "the agent is ready", 10*time.Second, func() bool {
		r, err := http.Get("http://127.0.0.1:8514/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	sh(t, "logger -n 127.0.0.1 -P 5514 -T 'to the outbox'")
	agent.Eventually(t, "the line in the outbox", 15*time.Second, func() bool {
		out, err := exec.Command(agent.Binary(t), "cat", filepath.Join(dir, "spillway-data", "outbox")).Output()
		return err == nil && strings.Contains(string(out), "to the outbox")
	})
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		b, _ := os.ReadFile(log.Name())
		t.Errorf("after SIGTERM: %v\n%s", err, b)
	}
}

// archive returns the environment of an agent that writes objects to endpoint.
func archive(s *servers.S3, endpoint string) []string {
	return []string{
		"SPILLWAY_OUTPUTS=archive", "SPILLWAY_OUTPUT_ARCHIVE_URL=s3://logs/edge", "SPILLWAY_OUTPUT_ARCHIVE_ENDPOINT=" + endpoint,
		"SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=1s", "AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.Secret, "AWS_REGION=us-east-1",
	}
}

var objectKey = regexp.MustCompile(`^edge/main/dt=\d{4}-\d\d-\d\d/site=default/hr=\d\d/gw1/[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{8}\.ndjson\.zst$`)

// An archive alone: keys as documented, objects that zstdcat prints, none with a
// skippable frame.
func TestArchiveAlone(t *testing.T) {
	s := servers.StartS3(t, t.TempDir())
	s.Bucket(t, "logs")
	a := agent.New(t, t.TempDir(), archive(s, s.Endpoint)...)
	a.Start(t)
	c := dialAgent(t, a)
	for i := range 20000 {
		fmt.Fprintf(c, "<14>1 2026-11-20T12:00:00Z host app - - - line %d\n", i)
	}
	c.Close()
	src := "s3://logs/edge?endpoint=" + s.Endpoint
	var rs []record
	agent.Eventually(t, "20,000 records in the bucket", 30*time.Second, func() bool {
		out, _, code := a.Command(t, "cat", src)
		rs = parse(t, out)
		return code == 0 && len(rs) == 20000
	})
	unbroken(t, rs)
	keys := s.Keys(t, "logs")
	if len(keys) == 0 {
		t.Fatal("no objects")
	}
	lines := 0
	for _, key := range keys {
		body := object(t, s, key)
		if !objectKey.MatchString(key) {
			t.Errorf("key %s", key)
		}
		noSkippableFrame(t, key, body)
		file := filepath.Join(t.TempDir(), filepath.Base(key))
		if err := os.WriteFile(file, body, 0o600); err != nil {
			t.Fatal(err)
		}
		out := sh(t, "zstdcat "+file)
		lines += len(parse(t, out))
	}
	if lines != 20000 {
		t.Errorf("zstdcat of %d objects prints %d records", len(keys), lines)
	}
}

// object reads one object of the bucket logs.
func object(t *testing.T, s *servers.S3, key string) []byte {
	t.Helper()
	o, err := s.Client().GetObject(context.Background(), &s3.GetObjectInput{Bucket: aws.String("logs"), Key: aws.String(key)})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Body.Close()
	body, err := io.ReadAll(o.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// noSkippableFrame walks the frames of body by their block headers (RFC 8878 3.1.1).
func noSkippableFrame(t *testing.T, key string, body []byte) {
	t.Helper()
	for len(body) > 0 {
		if len(body) < 6 || string(body[:4]) != "\x28\xb5\x2f\xfd" {
			t.Fatalf("%s: a frame that is not zstd data: % x", key, body[:min(8, len(body))])
		}
		d := body[4]
		n := 5
		if single := d>>5&1 == 1; !single {
			n++ // window descriptor
		} else if d>>6 == 0 {
			n++ // content size in one byte
		}
		n += []int{0, 1, 2, 4}[d&3]  // dictionary id
		n += []int{0, 2, 4, 8}[d>>6] // content size
		for last := false; !last; {
			h := int(body[n]) | int(body[n+1])<<8 | int(body[n+2])<<16
			last = h&1 == 1
			n += 3
			if h>>1&3 == 1 {
				n++ // RLE: one byte stands for all
			} else {
				n += h >> 3
			}
		}
		if d>>2&1 == 1 {
			n += 4 // content checksum
		}
		body = body[n:]
	}
}

// unbroken checks that rs are the records 1..n of one epoch, each once, in order.
func unbroken(t testing.TB, rs []record) {
	t.Helper()
	for i, r := range rs {
		if r.Spillway.Seq != uint64(i+1) || r.Spillway.Epoch != rs[0].Spillway.Epoch {
			t.Fatalf("record %d has sequence %d of epoch %s (first %s)", i+1, r.Spillway.Seq, r.Spillway.Epoch, rs[0].Spillway.Epoch)
		}
	}
}

func dialAgent(t testing.TB, a *agent.Agent) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.TCP))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// The object of a planned run is stored, its answer is lost with the agent: the
// next start repeats the same object, is answered 412, and counts it as delivered.
func TestPlannedRunIsRepeated(t *testing.T) {
	s := servers.StartS3(t, t.TempDir())
	s.Bucket(t, "logs")
	wire := faults.New(t, s.Endpoint)
	wire.DropAnswers() // the far side gets the object, the agent does not hear of it

	a := agent.New(t, t.TempDir(), archive(s, "http://"+wire.Address)...)
	a.Start(t)
	c := dialAgent(t, a)
	for i := range 1000 {
		fmt.Fprintf(c, "<14>1 2026-11-20T12:00:00Z host app - - - line %d\n", i)
	}
	c.Close()
	agent.Eventually(t, "the object is stored", 30*time.Second, func() bool { return len(s.Keys(t, "logs")) > 0 })
	a.Kill()
	wire.Forward()
	a.Start(t)
	agent.Eventually(t, "the run counts as delivered", 30*time.Second, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) >= 1000 || a.Metric(t, `spillway_lane_pending_records{lane="main"}`) == 0
	})
	if n := a.Metric(t, `spillway_output_already_there_total{output="archive"}`); n != 1 {
		t.Errorf("%v runs counted as already stored, want 1", n)
	}
	if code := a.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	out, _, _ := a.Command(t, "cat", "s3://logs/edge?endpoint="+s.Endpoint)
	seen := map[string]int{}
	for _, r := range parse(t, out) {
		if r.Spillway.Gap == nil {
			seen[r.Message]++
		}
	}
	for i := range 1000 {
		if n := seen[fmt.Sprintf("line %d", i)]; n != 1 {
			t.Fatalf("line %d is in the bucket %d times", i, n)
		}
	}
}

// After a clean stop every segment is a file that zstdcat prints, verify says
// clean, and one flipped bit in a copy costs one batch and nothing else.
func TestSegmentsAfterCleanStop(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	a := agent.New(t, t.TempDir(), append(hub(t, n), "SPILLWAY_BATCH_MAX_RECORDS=500")...)
	a.Start(t)
	c := dialAgent(t, a)
	const lines = 20000
	for i := range lines {
		fmt.Fprintf(c, "<14>1 2026-11-20T12:00:00Z host app - - - line %d\n", i)
	}
	c.Close()
	agent.Eventually(t, "everything is delivered", 30*time.Second, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == lines
	})
	if code := a.Stop(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	lane := filepath.Join(a.State, "buffer", "main")
	segs, _ := filepath.Glob(filepath.Join(lane, "*.seg"))
	if len(segs) == 0 {
		t.Fatal("no segments kept")
	}
	var all []record
	for _, seg := range segs {
		all = append(all, parse(t, sh(t, "zstdcat < "+seg))...)
	}
	if len(all) != lines {
		t.Errorf("zstdcat of %d segments prints %d lines, want %d", len(segs), len(all), lines)
	}
	unbroken(t, all)
	out, _, code := a.Command(t, "buffer", "verify", lane)
	if code != 0 || !strings.Contains(out, "clean") {
		t.Errorf("verify exits %d: %s", code, out)
	}

	// One bit in the middle of a copy's largest segment.
	dir := filepath.Join(t.TempDir(), "copy")
	sh(t, "cp -a "+lane+" "+dir)
	seg := filepath.Join(dir, filepath.Base(segs[0]))
	b, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x10
	if err := os.WriteFile(seg, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code = a.Command(t, "buffer", "verify", dir)
	if code != 1 || !strings.Contains(out, filepath.Base(seg)) {
		t.Errorf("verify of the damaged copy exits %d: %s", code, out)
	}
	t.Logf("verify of the damaged copy:\n%s", out)
	out, _, _ = a.Command(t, "buffer", "cat", dir)
	rest := parse(t, out)
	lost := lines - len(rest)
	if lost != 500 {
		t.Errorf("one flipped bit costs %d lines, want the 500 of one batch", lost)
	}
	last := uint64(0)
	holes := 0
	for _, r := range rest {
		if r.Spillway.Seq != last+1 {
			holes++
			if r.Spillway.Seq-last-1 != 500 {
				t.Errorf("hole of %d before %d", r.Spillway.Seq-last-1, r.Spillway.Seq)
			}
		}
		last = r.Spillway.Seq
	}
	if last != lines {
		holes++
	}
	if holes != 1 {
		t.Errorf("%d holes", holes)
	}
}

// 300,000 lines over four connections: the stream has every one once, with
// sequences without a hole and a chain of seals that is right from end to end.
func TestThreeHundredThousand(t *testing.T) {
	const total, conns = 300_000, 4
	n := servers.StartNATS(t, t.TempDir())
	a := agent.New(t, t.TempDir(), append(hub(t, n), "SPILLWAY_LOG_LEVEL=info")...)
	a.Start(t)
	begin := time.Now()
	var wg sync.WaitGroup
	for k := range conns {
		wg.Go(func() {
			c := dialAgent(t, a)
			w := bufio.NewWriterSize(c, 64<<10)
			for i := range total / conns {
				fmt.Fprintf(w, "<165>1 2026-11-20T12:00:%02d.%06dZ gateway-7 app%d 4711 ID47 [exampleSDID@32473 iut=\"3\" eventSource=\"Application\"] connection %d message %d of a steady stream\n", i/5000%60, i%1000000, k, k, i)
			}
			if err := w.Flush(); err != nil {
				t.Error(err)
			}
			c.Close()
		})
	}
	wg.Wait()
	agent.Eventually(t, "everything is delivered", 2*time.Minute, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == total
	})
	t.Logf("%d lines delivered in %v", total, time.Since(begin).Round(time.Millisecond))

	cmd := exec.Command(a.Bin, "cat", natsSource(n))
	cmd.Env, cmd.Stderr = a.Env, os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seq uint64
	next := [conns]int{}
	sc := bufio.NewScanner(pipe)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		r := parse(t, sc.Text())[0]
		if seq++; r.Spillway.Seq != seq {
			t.Fatalf("sequence %d, want %d", r.Spillway.Seq, seq)
		}
		var k, i int
		if _, err := fmt.Sscanf(r.Message, "connection %d message %d of", &k, &i); err != nil {
			t.Fatalf("message %q: %v", r.Message, err)
		}
		if i != next[k] {
			t.Fatalf("connection %d: message %d, want %d", k, i, next[k])
		}
		next[k]++
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || seq != total {
		t.Fatalf("cat: %v, %d records", err, seq)
	}
	sealsHold(t, n, total)
}

// sealsHold recomputes every seal of the stream from the delivered bytes.
func sealsHold(t *testing.T, n *servers.NATS, total uint64) {
	t.Helper()
	src, err := jetstream.NewSource(context.Background(), natsSource(n), jetstream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var prev batch.Seal
	var last uint64
	batches := 0
	for o, err := range src.Objects(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		sealHolds(t, o, prev, last)
		prev, last = o.Seal, o.Last
		batches++
	}
	if last != total {
		t.Errorf("%d batches end at %d, want %d", batches, last, total)
	}
	t.Logf("%d batches, every seal right", batches)
}

func sealHolds(t *testing.T, o *outputs.Object, prev batch.Seal, last uint64) {
	t.Helper()
	body, err := io.ReadAll(o.Body)
	o.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	h := batch.Header{Codec: o.Codec, First: o.First, Count: uint32(o.Last - o.First + 1), Sum: sha256.Sum256(body)}
	if o.Before != prev || o.First != last+1 || h.Chain(prev, o.Epoch) != o.Seal {
		t.Fatalf("%s: %d to %d: seal %v does not follow %v", o.Name, o.First, o.Last, o.Seal, prev)
	}
	id := batch.Identity{Agent: o.Agent, Epoch: o.Epoch, First: o.First, Last: o.Last, CRC: batch.CRC32C(body)}
	if o.Duplicate != id.String() {
		t.Fatalf("Nats-Msg-Id %s, want %s", o.Duplicate, id)
	}
}

// A second signal stops at once, also while the output is away; nothing that was
// appended is lost.
func TestSecondSignal(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	a := agent.New(t, t.TempDir(), append(hub(t, n), "SPILLWAY_SHUTDOWN_GRACE=60s")...)
	a.Start(t)
	n.Pause(t)
	c := dialAgent(t, a)
	for i := range 100 {
		fmt.Fprintf(c, "<14>1 2026-11-20T12:00:00Z host app - - - line %d\n", i)
	}
	c.Close()
	agent.Eventually(t, "the records are pending", 30*time.Second, func() bool { return a.Metric(t, `spillway_lane_pending_records{lane="main"}`) == 100 })
	a.Signal(t, syscall.SIGTERM)
	if a.Ended(time.Second) {
		t.Fatal("one signal ended the agent within its grace although records were pending")
	}
	a.Signal(t, syscall.SIGTERM)
	if !a.Ended(5 * time.Second) {
		t.Fatal("the second signal did not end the agent")
	}
	a.Kill()
	n.Resume(t)
	a.Start(t)
	agent.Eventually(t, "the records are in the stream", 30*time.Second, func() bool {
		out, _, _ := a.Command(t, "cat", natsSource(n))
		count := 0
		for _, r := range parse(t, out) {
			if strings.HasPrefix(r.Message, "line ") {
				count++
			}
		}
		return count >= 100
	})
}

// kill -9 under load, several times: everything that was durable arrives, and
// what arrives twice is the same batch.
func TestKillLoop(t *testing.T) {
	n := servers.StartNATS(t, t.TempDir())
	a := agent.New(t, t.TempDir(), hub(t, n)...)
	durable := regexp.MustCompile(`msg=durable .*last=(\d+)`)
	sent := 0
	var promised []uint64
	for round := range 5 {
		a.Start(t)
		c := dialAgent(t, a)
		begin := time.Now()
		for time.Since(begin) < time.Duration(200+150*round)*time.Millisecond {
			if _, err := fmt.Fprintf(c, "<14>1 2026-11-20T12:00:00Z host app - - - line %d\n", sent); err != nil {
				break
			}
			sent++
			if sent%200 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(time.Duration(round) * 300 * time.Millisecond)
		a.Kill()
		c.Close()
	}
	a.Start(t)
	agent.Eventually(t, "nothing pending", 30*time.Second, func() bool { return a.Metric(t, `spillway_lane_pending_records{lane="main"}`) == 0 })
	a.Stop(t)
	log, err := os.ReadFile(a.Log)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range durable.FindAllStringSubmatch(string(log), -1) {
		var v uint64
		fmt.Sscan(m[1], &v)
		promised = append(promised, v)
	}
	if len(promised) == 0 {
		t.Fatal("nothing was durable before a kill: the test shows nothing")
	}
	out, _, _ := a.Command(t, "cat", natsSource(n))
	type key struct {
		epoch string
		seq   uint64
	}
	have := map[uint64]bool{}
	byKey := map[key]string{}
	for _, r := range parse(t, out) {
		k := key{r.Spillway.Epoch, r.Spillway.Seq}
		if old, twice := byKey[k]; twice && old != r.Message {
			t.Fatalf("%v stands for two records: %q and %q", k, old, r.Message)
		}
		byKey[k] = r.Message
		have[r.Spillway.Seq] = true
	}
	top := promised[len(promised)-1]
	for seq := uint64(1); seq <= top; seq++ {
		if !have[seq] {
			t.Fatalf("sequence %d was durable (up to %d) and is not in the stream", seq, top)
		}
	}
	t.Logf("%d lines sent through 5 kills, %d durable, all delivered", sent, top)
}
