// Package servers starts the real far sides of the tests: each in its own process
// on loopback, ended with the test that started it.
package servers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// S3 is a versitygw process that serves a directory: a bucket is a directory in
// it, an object a file.
type S3 struct {
	Endpoint          string // http://127.0.0.1:port, the same in every life
	AccessKey, Secret string
	Region            string
	CA                string // file for AWS_CA_BUNDLE, "" without TLS

	address, dir, key, logs string
	http                    *http.Client
	process                 *exec.Cmd
	ended                   chan struct{} // closed when process has ended
}

// StartS3 starts a server over dir, which is created when it is missing; with ""
// it is a temporary one.
func StartS3(t testing.TB, dir string) *S3 {
	t.Helper()
	return startS3(t, dir, "", "")
}

// StartS3TLS is StartS3 with https and a certificate of its own, whose file is CA.
func StartS3TLS(t testing.TB, dir string) *S3 {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := [2]string{}
	for i, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: secret}} {
		files[i] = filepath.Join(t.TempDir(), "pem")
		if err := os.WriteFile(files[i], pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return startS3(t, dir, files[0], files[1])
}

func startS3(t testing.TB, dir, cert, key string) *S3 {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := &S3{Endpoint: "http://" + address, AccessKey: "test", Secret: "testtest", Region: "us-east-1", CA: cert,
		address: address, dir: dir, key: key, logs: filepath.Join(t.TempDir(), "versitygw.log"), http: http.DefaultClient}
	if cert != "" {
		s.Endpoint = "https://" + address
		text, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(text)
		s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	t.Cleanup(func() {
		s.Kill(t)
		if t.Failed() {
			text, _ := os.ReadFile(s.logs)
			t.Logf("versitygw at %s said:\n%s", address, text)
		}
	})
	s.Start(t)
	return s
}

// s3Binary returns the path of a server that `make tools` built.
func s3Binary(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("SPILLWAY_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin")
	}
	path, err := filepath.Abs(filepath.Join(bin, "versitygw"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make tools` first", err)
	}
	return path
}

// Start starts the server again after Stop or Kill, on the same port over the same
// directory, and returns when it answers.
func (s *S3) Start(t testing.TB) {
	t.Helper()
	if s.process != nil {
		t.Fatal("versitygw runs already")
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(s.logs, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	args := []string{"--port", s.address, "--keep-alive", "--health", "/health", "--region", s.Region}
	if s.CA != "" {
		args = append(args, "--cert", s.CA, "--key", s.key)
	}
	cmd := exec.Command(s3Binary(t), append(args, "posix", s.dir)...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.Secret)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.process, s.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait() // its end is asked for
		close(ended)
	}(s.ended)
	defer s.http.CloseIdleConnections()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := s.http.Get(s.Endpoint + "/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-s.ended:
			text, _ := os.ReadFile(s.logs)
			t.Fatalf("versitygw ended:\n%s", text)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("versitygw does not answer: %v", err)
		}
	}
}

// Stop ends the server as an operator would (SIGTERM).
func (s *S3) Stop(t testing.TB) { t.Helper(); s.end(t, syscall.SIGTERM) }

// Kill ends the server at once (SIGKILL).
func (s *S3) Kill(t testing.TB) { t.Helper(); s.end(t, syscall.SIGKILL) }

func (s *S3) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if s.process == nil {
		return
	}
	s.signal(t, sig)
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		t.Errorf("versitygw does not end on %v", sig)
		s.signal(t, syscall.SIGKILL)
		<-s.ended
	}
	s.process = nil
}

// Pause halts the server: it keeps its connections and answers nothing.
func (s *S3) Pause(t testing.TB) { t.Helper(); s.signal(t, syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *S3) Resume(t testing.TB) { t.Helper(); s.signal(t, syscall.SIGCONT) }

func (s *S3) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.process.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("versitygw: %v: %v", sig, err)
	}
}

// Setenv puts the server's credentials where the AWS SDK finds them, and nothing
// else of this host.
func (s *S3) Setenv(t testing.TB) {
	t.Helper()
	none := filepath.Join(t.TempDir(), "none")
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.Secret, "AWS_SESSION_TOKEN": "", "AWS_REGION": s.Region,
		"AWS_PROFILE": "", "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CA_BUNDLE": s.CA,
	} {
		t.Setenv(k, v)
	}
}

// Client is an SDK client of the server's owner.
func (s *S3) Client() *s3.Client {
	return s3.New(s3.Options{BaseEndpoint: &s.Endpoint, Region: s.Region, UsePathStyle: true, HTTPClient: s.http,
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.Secret, "")})
}

// Bucket creates a bucket.
func (s *S3) Bucket(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := s.Client().CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("create bucket %s: %v", name, err)
	}
}

// RemoveBucket removes an empty bucket.
func (s *S3) RemoveBucket(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := s.Client().DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("remove bucket %s: %v", name, err)
	}
}

// Keys lists all keys of a bucket, of whomever, in their order.
func (s *S3) Keys(t testing.TB, bucket string) (keys []string) {
	t.Helper()
	objects, err := s.list(bucket)
	if err != nil {
		t.Fatalf("list %s: %v", bucket, err)
	}
	for _, o := range objects {
		keys = append(keys, aws.ToString(o.Key))
	}
	return keys
}

func (s *S3) list(bucket string) (all []types.Object, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pages := s3.NewListObjectsV2Paginator(s.Client(), &s3.ListObjectsV2Input{Bucket: &bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		all = append(all, page.Contents...)
	}
	return all, nil
}
