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

	args    []string
	http    *http.Client
	process *process
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
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := &S3{AccessKey: "test", Secret: "testtest", Region: "us-east-1", CA: cert, http: http.DefaultClient, process: newProcess(t, "versitygw")}
	address := freeAddress(t)
	s.args = []string{"--port", address, "--access", s.AccessKey, "--secret", s.Secret, "--region", s.Region, "--keep-alive", "--health", "/health"}
	s.Endpoint = "http://" + address
	if cert != "" {
		s.Endpoint = "https://" + address
		s.args = append(s.args, "--cert", cert, "--key", key)
		text, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(text)
		s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	s.args = append(s.args, "--iam-dir", t.TempDir(), "posix", dir)
	s.Start(t)
	return s
}

// Start starts the server again after Stop or Kill, on the same port over the same
// directory, and returns when it answers.
func (s *S3) Start(t testing.TB) {
	t.Helper()
	defer s.http.CloseIdleConnections()
	s.process.start(t, func() error {
		resp, err := s.http.Get(s.Endpoint + "/health")
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode == http.StatusOK {
			return err
		}
		return errors.New(resp.Status)
	}, s.args...)
}

// Stop ends the server as an operator would (SIGTERM).
func (s *S3) Stop(t testing.TB) { t.Helper(); s.process.end(t, syscall.SIGTERM) }

// Kill ends the server at once (SIGKILL).
func (s *S3) Kill(t testing.TB) { t.Helper(); s.process.end(t, syscall.SIGKILL) }

// Pause halts the server: it keeps its connections and answers nothing.
func (s *S3) Pause(t testing.TB) { t.Helper(); s.process.pause(t) }

// Resume ends a Pause.
func (s *S3) Resume(t testing.TB) { t.Helper(); s.process.signal(t, syscall.SIGCONT) }

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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := s.Client().CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("create bucket %s: %v", name, err)
	}
}

// RemoveBucket removes an empty bucket.
func (s *S3) RemoveBucket(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := s.Client().DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("remove bucket %s: %v", name, err)
	}
}

// User makes an account that may do nothing until a Policy says so.
func (s *S3) User(t testing.TB, access, secret string) {
	t.Helper()
	out, err := exec.Command(binary(t, "versitygw"), "admin", "--access", s.AccessKey, "--secret", s.Secret, "--endpoint-url", s.Endpoint,
		"--allow-insecure", "create-user", "--access", access, "--secret", secret, "--role", "user").CombinedOutput()
	if err != nil {
		t.Fatalf("create user %s: %v: %s", access, err, out)
	}
}

// Policy lets user do action (s3:PutObject) with the keys of bucket that match
// pattern, and nothing else. It takes the place of an earlier one.
func (s *S3) Policy(t testing.TB, bucket, user, action, pattern string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":[%q]},"Action":[%q],"Resource":["arn:aws:s3:::%s/%s"]}]}`,
		user, action, bucket, pattern)
	if _, err := s.Client().PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: &text}); err != nil {
		t.Fatalf("policy of %s: %v", bucket, err)
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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
