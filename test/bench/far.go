package main

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// far is a far side: a real server in its own process.
type far interface {
	proc() *process
	output() []string      // environment of an agent that delivers to it
	read(a *account) error // feeds what is and will be stored to a, until close
	close()
}

// hub is a nats-server with a stream over logs.>.
type hub struct {
	*process
	bin, dir, address string
	reader            *nats.Conn
}

func startHub(bin, dir string) (far, error) {
	h := &hub{bin: bin, dir: dir, address: freePort()}
	if err := h.start(); err != nil {
		return nil, err
	}
	return h, h.with(func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}, Storage: jetstream.FileStorage})
		return err
	})
}

// start starts the server, also again over what it has stored.
func (h *hub) start() (err error) {
	host, port, _ := net.SplitHostPort(h.address)
	h.process, err = start(h.dir, filepath.Join(h.bin, "nats-server"), nil, "-js", "-a", host, "-p", port, "-sd", filepath.Join(h.dir, "stream"))
	if err != nil {
		return err
	}
	_, err = h.wait(func() error {
		return h.with(func(ctx context.Context, js jetstream.JetStream) error {
			_, err := js.AccountInfo(ctx)
			return err
		})
	})
	return err
}

func (h *hub) with(f func(context.Context, jetstream.JetStream) error) error {
	nc, err := nats.Connect(h.url())
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return f(ctx, js)
}

func (h *hub) url() string    { return "nats://" + h.address }
func (h *hub) proc() *process { return h.process }
func (h *hub) output() []string {
	return []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=" + h.url()}
}

func (h *hub) read(a *account) error {
	nc, err := nats.Connect(h.url())
	if err != nil {
		return err
	}
	h.reader = nc
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	c, err := js.OrderedConsumer(context.Background(), "LOGS", jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	_, err = c.Consume(func(m jetstream.Msg) { a.payload(m.Data()) }, jetstream.PullMaxMessages(64))
	return err
}

func (h *hub) close() {
	if h.reader != nil {
		h.reader.Close()
	}
	h.kill()
}

// bucket is a versitygw over a directory: a bucket in it is a directory, an object
// a file.
type bucket struct {
	*process
	objects, endpoint string
	stop              chan struct{}
}

const s3Key, s3Secret = "bench", "benchbench"

func startBucket(bin, dir string) (far, error) {
	address := freePort()
	b := &bucket{objects: filepath.Join(dir, "objects"), endpoint: "http://" + address, stop: make(chan struct{})}
	for _, d := range []string{b.objects, filepath.Join(dir, "iam")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	b.process, err = start(dir, filepath.Join(bin, "versitygw"), nil, "--port", address, "--access", s3Key, "--secret", s3Secret, "--region", "us-east-1",
		"--quiet", "--keep-alive", "--health", "/health", "--iam-dir", filepath.Join(dir, "iam"), "posix", b.objects)
	if err != nil {
		return nil, err
	}
	if _, err := b.wait(get(b.endpoint + "/health")); err != nil {
		return nil, err
	}
	c := s3.New(s3.Options{Region: "us-east-1", BaseEndpoint: &b.endpoint, UsePathStyle: true, Credentials: credentials.NewStaticCredentialsProvider(s3Key, s3Secret, "")})
	_, err = c.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: aws.String("logs")})
	return b, err
}

func (b *bucket) proc() *process { return b.process }
func (b *bucket) output() []string {
	return []string{"SPILLWAY_OUTPUTS=archive", "SPILLWAY_OUTPUT_ARCHIVE_URL=s3://logs", "SPILLWAY_OUTPUT_ARCHIVE_ENDPOINT=" + b.endpoint, "SPILLWAY_OUTPUT_ARCHIVE_REGION=us-east-1",
		"SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=1s", "AWS_ACCESS_KEY_ID=" + s3Key, "AWS_SECRET_ACCESS_KEY=" + s3Secret, "AWS_EC2_METADATA_DISABLED=true"}
}

// read looks for new objects, which appear whole, a few times a second.
func (b *bucket) read(a *account) error {
	go func() {
		have := map[string]bool{}
		for {
			filepath.WalkDir(filepath.Join(b.objects, "logs"), func(path string, d fs.DirEntry, err error) error {
				if err != nil || have[path] || !d.Type().IsRegular() || !strings.HasSuffix(path, ".zst") {
					return nil
				}
				if text, err := os.ReadFile(path); err == nil {
					have[path] = true
					a.payload(text)
				}
				return nil
			})
			select {
			case <-b.stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return nil
}

func (b *bucket) close() {
	close(b.stop)
	b.kill()
}
