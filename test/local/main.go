// Command local runs the agent on loopback with everything it needs beside it: a
// real nats-server with a stream and a real S3 server with a bucket. State lies
// under ./tmp/local; Ctrl-C stops all, a second run goes on where the first ended.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Addresses of this setup. They are not the servers' usual ones, so that it runs
// beside a nats-server that is there already.
const (
	natsAddress  = "127.0.0.1:14222"
	s3Address    = "127.0.0.1:17070"
	adminAddress = "127.0.0.1:8514"
	stream       = "LOGS"
	bucket       = "logs"
	s3Key        = "test"
	s3Secret     = "testtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "make run:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	bin = filepath.Dir(bin)
	state, err := filepath.Abs(filepath.Join("tmp", "local"))
	if err != nil {
		return err
	}
	for _, d := range []string{"nats", "objects", "attributes", "agent"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o700); err != nil {
			return err
		}
	}
	for _, a := range []string{natsAddress, s3Address, "127.0.0.1:5514", adminAddress} {
		if c, err := net.DialTimeout("tcp", a, time.Second); err == nil {
			c.Close()
			return fmt.Errorf("%s is in use: stop what listens there (another make run?)", a)
		}
	}

	// Stopped in mirror order: the agent first, so that it still reaches the servers.
	var procs []*process
	defer func() {
		for i := len(procs) - 1; i >= 0; i-- {
			procs[i].stop()
		}
	}()
	start := func(name string, env []string, arg ...string) error {
		p, err := startProcess(state, bin, name, env, arg...)
		if err == nil {
			procs = append(procs, p)
		}
		return err
	}
	host, port, _ := net.SplitHostPort(natsAddress)
	if err := start("nats-server", nil, "-js", "-a", host, "-p", port, "-sd", filepath.Join(state, "nats")); err != nil {
		return err
	}
	if err := start("versitygw", []string{"ROOT_ACCESS_KEY=" + s3Key, "ROOT_SECRET_KEY=" + s3Secret},
		"--port", s3Address, "--quiet", "--keep-alive", "--health", "/health", "posix", "--sidecar", filepath.Join(state, "attributes"), filepath.Join(state, "objects")); err != nil {
		return err
	}
	if err := createStream(ctx); err != nil {
		return fmt.Errorf("create stream %s: %w (see %s)", stream, err, filepath.Join(state, "nats-server.log"))
	}
	if err := createBucket(ctx); err != nil {
		return fmt.Errorf("create bucket %s: %w (see %s)", bucket, err, filepath.Join(state, "versitygw.log"))
	}
	outputs := os.Getenv("SPILLWAY_OUTPUTS")
	if outputs == "" {
		outputs = "hub,archive"
	}
	env := []string{
		"SPILLWAY_STATE_DIR=" + filepath.Join(state, "agent"),
		"SPILLWAY_OUTPUTS=" + outputs,
		"SPILLWAY_ADMIN_ADDRESS=" + adminAddress,
		"AWS_ACCESS_KEY_ID=" + s3Key, "AWS_SECRET_ACCESS_KEY=" + s3Secret, "AWS_REGION=us-east-1",
	}
	for _, o := range strings.Split(outputs, ",") { // settings of an output that is not listed are an error
		switch o {
		case "hub":
			env = append(env, "SPILLWAY_OUTPUT_HUB_URL=nats://"+natsAddress, "SPILLWAY_OUTPUT_HUB_STREAM="+stream)
		case "archive":
			env = append(env, "SPILLWAY_OUTPUT_ARCHIVE_URL=s3://"+bucket+"/edge", "SPILLWAY_OUTPUT_ARCHIVE_ENDPOINT=http://"+s3Address,
				"SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=10s") // five minutes by default: long to watch
		}
	}
	if err := start("spillway", env, "run"); err != nil {
		return err
	}
	if err := ready(ctx, "http://"+adminAddress+"/readyz"); err != nil {
		log, _ := os.ReadFile(filepath.Join(state, "spillway.log"))
		return fmt.Errorf("the agent does not get ready: %w\n%s", err, tail(log))
	}
	fmt.Printf(`
spillway runs. In another terminal, in this folder:

  send a line       logger -n 127.0.0.1 -P 5514 -T hello
  the same by udp   logger -n 127.0.0.1 -P 5514 -d hello
  read it back      bin/spillway cat nats://%s/%s
  its metrics       curl -s http://%s/metrics
  the agent's log   %s

The first output, hub, is a stream on a real nats-server; the second, archive, is
a bucket on a real S3 server. To see objects, stop this, start it again as
  SPILLWAY_OUTPUTS=archive make run
send lines, and after ten seconds read them back with
  AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s bin/spillway cat 's3://%s/edge?endpoint=http://%s'

Ctrl-C stops everything; state stays in %s.
`, natsAddress, stream, adminAddress, filepath.Join(state, "spillway.log"), s3Key, s3Secret, bucket, s3Address, state)

	died := make(chan *process, len(procs))
	for _, p := range procs {
		go func() { <-p.done; died <- p }()
	}
	select {
	case <-ctx.Done():
		fmt.Println("\nstopping")
		return nil
	case p := <-died:
		log, _ := os.ReadFile(p.log)
		return fmt.Errorf("%s stopped by itself: %v; the end of %s:\n%s", p.name, p.err, p.log, tail(log))
	}
}

// process is a child with its output in a file.
type process struct {
	name, log string
	cmd       *exec.Cmd
	done      chan struct{}
	err       error // valid after done
}

func startProcess(state, bin, name string, env []string, arg ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(state, name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(filepath.Join(bin, name), arg...)
	// What the caller set for the agent wins over this setup, SPILLWAY_OUTPUTS=archive for one.
	p.cmd.Env = append(env, os.Environ()...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// Own group: Ctrl-C must not reach the servers before the agent has stopped.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done) }()
	return p, nil
}

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

func createStream(ctx context.Context) error {
	var nc *nats.Conn
	err := retry(ctx, func() (err error) { nc, err = nats.Connect("nats://" + natsAddress); return err })
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	_, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: stream, Subjects: []string{"logs.>"}, AllowDirect: true, Duplicates: time.Hour, MaxBytes: 1 << 30, Discard: jetstream.DiscardNew,
	})
	return err
}

func createBucket(ctx context.Context) error {
	c := s3.New(s3.Options{Region: "us-east-1", BaseEndpoint: aws.String("http://" + s3Address), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s3Key, s3Secret, "")})
	if err := retry(ctx, func() error {
		r, err := http.Get("http://" + s3Address + "/health")
		if err == nil {
			r.Body.Close()
		}
		return err
	}); err != nil {
		return err
	}
	_, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(bucket)})
	var have *types.BucketAlreadyOwnedByYou
	if errors.As(err, &have) {
		return nil
	}
	return err
}

func ready(ctx context.Context, url string) error {
	return retry(ctx, func() error {
		r, err := http.Get(url)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
		return nil
	})
}

// retry calls f until it succeeds, for ten seconds.
func retry(ctx context.Context, f func() error) error {
	end := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func tail(b []byte) string {
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}
