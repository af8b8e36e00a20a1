// Package s3 is the output that stores runs as objects in a bucket of Amazon S3 or
// of a server that speaks its protocol.
//
// One run is one PutObject under a key that is planned before: made of the run's
// numbers and the CRC32C of its bytes. Sent with If-None-Match: *, it is stored at
// most once however often it is repeated: 412 means that these very bytes are
// there already, which is an acknowledgement. The agent needs s3:PutObject and no
// other right (and kms:GenerateDataKey where the bucket encrypts with KMS).
package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// Output stores runs in one bucket. It is an outputs.Planner, safe for concurrent
// use.
type Output struct {
	name, site, agent string
	c                 Config
	log               *slog.Logger
	client            atomic.Pointer[client] // replaced by Reload

	unconditional                  atomic.Bool  // the server knows no If-None-Match
	largest                        atomic.Int64 // bytes of an object that the server may still take, 0: ROLL_BYTES
	delivered, alreadyThere, bytes atomic.Uint64

	mu      sync.Mutex
	refused map[string]refusal // by lane; guarded by mu
}

// refusal is how often in a row the server refused an object for no known reason.
type refusal struct {
	key   string
	times int
}

// New returns the output name for c, as used by agent. It talks to nobody yet.
func New(name, site, agent string, c Config, log *slog.Logger) (*Output, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("output %s: %w", name, err)
	}
	cl, err := newClient(context.Background(), c)
	if err != nil {
		return nil, fmt.Errorf("output %s: %w", name, err)
	}
	o := &Output{name: name, site: site, agent: agent, c: c, log: log, refused: map[string]refusal{}}
	o.client.Store(cl)
	return o, nil
}

// Name is the output's name in SPILLWAY_OUTPUTS.
func (o *Output) Name() string { return o.name }

// Limits are the ROLL_* settings, with fewer bytes once the server found an object
// too large. Every batch fits, until the server says otherwise.
func (o *Output) Limits() batch.Limits {
	bytes := int64(o.c.RollBytes)
	if n := o.largest.Load(); n > 0 {
		bytes = min(bytes, n)
	}
	return batch.Limits{Bytes: bytes, Batches: o.c.RollBatches, Age: o.c.RollAge, Hour: true}
}

// Key is the object's key in the bucket.
func (o *Output) Key(run *batch.Run) string { return outputs.Key(o.c.Prefix, o.site, run) }

// Counts returns what was accepted since New. AlreadyThere is the answer 412.
func (o *Output) Counts() outputs.Counts {
	return outputs.Counts{Delivered: o.delivered.Load(), AlreadyThere: o.alreadyThere.Load(), Bytes: o.bytes.Load()}
}

// Close closes idle connections.
func (o *Output) Close() error {
	o.client.Load().http.CloseIdleConnections()
	return nil
}

// reloadTime is how long Reload waits for whoever gives out credentials.
const reloadTime = 5 * time.Second

// Reload implements outputs.Reloader: the SDK's own files (AWS_CONFIG_FILE,
// AWS_SHARED_CREDENTIALS_FILE, AWS_CA_BUNDLE, a web identity's token) are read
// again, and credentials are fetched anew. What is being sent goes on with the old
// ones, which also stay when there are no new ones.
func (o *Output) Reload() error {
	ctx, cancel := context.WithTimeout(context.Background(), reloadTime)
	defer cancel()
	cl, err := newClient(ctx, o.c)
	if err == nil {
		_, err = provider{cl.credentials}.Retrieve(ctx)
	}
	if err != nil {
		return fmt.Errorf("AWS settings of output %s: %w", o.name, &oneLine{err})
	}
	o.client.Swap(cl).http.CloseIdleConnections()
	return nil
}

// renew takes new credentials, after the server refused the present ones: from the
// files, or, as those can't be used now, from where they came from before.
func (o *Output) renew() {
	if o.Reload() != nil {
		o.client.Load().credentials.Invalidate()
	}
}

// Publish stores run under run.Key and accepts all of it or nothing. It makes at
// most three attempts, each with a deadline of TIMEOUT and the run's size at
// MIN_RATE; one that met its deadline is the last.
func (o *Output) Publish(ctx context.Context, run *batch.Run) (int, error) {
	op := "put s3://" + o.c.Bucket + "/" + run.Key
	crc := run.CRC()
	if key, err := outputs.ParseKey(run.Key); err != nil {
		return 0, &outputs.Error{Output: o.name, Op: op, Stored: outputs.StoredNo, Action: outputs.Retry, Err: err}
	} else if key.CRC != crc {
		err := fmt.Errorf("the run's bytes (CRC %08x) are not those its key was planned for", crc)
		return 0, &outputs.Error{Output: o.name, Op: op, Stored: outputs.StoredNo, Action: outputs.Retry, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return 0, &outputs.Error{Output: o.name, Op: op, Stored: outputs.StoredNo, Action: outputs.Retry, Err: err}
	}
	size := run.Bytes()
	in := &s3.PutObjectInput{
		Bucket: &o.c.Bucket, Key: &run.Key, Body: newBody(run.Batches),
		ChecksumCRC32C: checksum(crc),
		ContentType:    contentType(run.Batches[0].Codec),
		Metadata:       metadata(o.site, run),
	}
	doubt, err := o.put(ctx, in, size)
	if err == nil {
		o.delivered.Add(1)
		o.bytes.Add(uint64(size))
		return len(run.Batches), nil
	}
	if isExists(err) && in.IfNoneMatch != nil {
		o.alreadyThere.Add(1)
		return len(run.Batches), nil
	}
	e := o.error(op, err)
	switch {
	case e.Action == outputs.Unfit && len(run.Batches) > 1:
		o.shrink(size)
	case isUnknown(err) && o.onlyThis(ctx, run):
		e.Action, e.Hint = outputs.Unfit, "the server refuses this object and takes others: its code says why"
	}
	if doubt && e.Stored == outputs.StoredNo {
		e.Stored = outputs.StoredMaybe // the last attempt was refused, one before it may have arrived
	}
	return 0, e
}

// shrink makes the next objects smaller than size, which was too large.
func (o *Output) shrink(size int64) {
	o.largest.Store(size / 2)
	o.log.Warn("the server, or a proxy before it, finds an object too large; the next ones are smaller", "output", o.name,
		"bytes", size, "next", size/2, "hint", "set ROLL_BYTES of the output below its limit")
}

// onlyThis reports whether a refusal for no known reason is about run and nothing
// else: the third in a row for its key, while the server takes the probe.
func (o *Output) onlyThis(ctx context.Context, run *batch.Run) bool {
	o.mu.Lock()
	r := o.refused[run.Lane]
	if r.key != run.Key {
		r = refusal{key: run.Key}
	}
	r.times++
	o.refused[run.Lane] = r
	o.mu.Unlock()
	return r.times >= 3 && o.Probe(ctx, run.Lane) == nil
}

// put stores in, conditionally unless that is off. It takes two decisions that
// the SDK leaves to its user: credentials that the server calls old are fetched
// anew once, and a condition that the server does not know is left out. doubt says
// that an attempt ended without the server's word on what became of it.
func (o *Output) put(ctx context.Context, in *s3.PutObjectInput, size int64) (doubt bool, err error) {
	if o.c.Conditional != Off && !o.unconditional.Load() {
		in.IfNoneMatch = aws.String("*")
	}
	err = o.attempts(ctx, in, size, &doubt)
	if isCredentials(err) {
		o.renew()
		err = o.attempts(ctx, in, size, &doubt)
	}
	if o.c.Conditional == Auto && in.IfNoneMatch != nil && isNotImplemented(err) {
		in.IfNoneMatch = nil
		if err = o.attempts(ctx, in, size, &doubt); err == nil && !o.unconditional.Swap(true) {
			o.log.Warn("the server knows no If-None-Match; a repeated object replaces itself with the same bytes from now on", "output", o.name,
				"hint", "set CONDITIONAL=off of the output to accept that silently, CONDITIONAL=on to refuse such a server")
		}
	}
	return doubt, err
}

// attempts is one PutObject with the SDK's retries.
func (o *Output) attempts(ctx context.Context, in *s3.PutObjectInput, size int64, doubt *bool, options ...func(*s3.Options)) error {
	in.Body.(*body).rewind()
	cl := o.client.Load()
	limit := o.c.Timeout + time.Duration(size)*time.Second/time.Duration(o.c.MinRate)
	out, err := cl.s3.PutObject(ctx, in, append(slices.Concat(cl.options, options), func(so *s3.Options) {
		so.APIOptions = append(so.APIOptions, o.attempt(limit, doubt))
	})...)
	if err == nil && (aws.ToString(out.ETag) == "" || out.ChecksumCRC32C != nil && *out.ChecksumCRC32C != *in.ChecksumCRC32C) {
		*doubt = true
		return errStrangeAnswer
	}
	return err
}

// attempt ends every attempt after limit, and notes in doubt what it left open. The
// SDK does not retry what a context ended: a silent server costs one deadline, not
// three.
func (o *Output) attempt(limit time.Duration, doubt *bool) func(*middleware.Stack) error {
	return func(s *middleware.Stack) error {
		return s.Finalize.Insert(middleware.FinalizeMiddlewareFunc("Attempt",
			func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
				ctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				out, metadata, err := next.HandleFinalize(ctx, in)
				if err != nil && o.error("", err).Stored == outputs.StoredMaybe {
					*doubt = true
				}
				return out, metadata, err
			}), "Retry", middleware.After)
	}
}

// Probe stores <prefix>/_probe/<agent>/probe, an object that readers step over:
// it takes the same right, key policy and encryption as a run.
func (o *Output) Probe(ctx context.Context, _ string) error {
	if err := o.probe(ctx, nil); err != nil {
		return o.error("put s3://"+o.c.Bucket+"/"+o.probeKey(), err)
	}
	return nil
}

func (o *Output) probeKey() string {
	key := "_probe/" + o.agent + "/probe"
	if o.c.Prefix != "" {
		key = o.c.Prefix + "/" + key
	}
	return key
}

// probe stores the object of Probe, with If-None-Match if that is not nil.
func (o *Output) probe(ctx context.Context, ifNoneMatch *string, options ...func(*s3.Options)) error {
	text := []byte("spillway probe\n")
	in := &s3.PutObjectInput{
		Bucket: &o.c.Bucket, Key: aws.String(o.probeKey()), Body: newBody([]batch.Batch{{Payload: text}}), IfNoneMatch: ifNoneMatch,
		ChecksumCRC32C: checksum(batch.CRC32C(text)), ContentType: aws.String("text/plain"),
	}
	var doubt bool // of no interest: a probe may be stored any number of times
	err := o.attempts(ctx, in, int64(len(text)), &doubt, options...)
	if isCredentials(err) {
		o.renew()
		err = o.attempts(ctx, in, int64(len(text)), &doubt, options...)
	}
	return err
}

// checksum is the value of x-amz-checksum-crc32c: big-endian, base64. Given by
// hand it also keeps the SDK from sending the body in signed chunks with a
// trailer, which many compatible servers don't read.
func checksum(crc uint32) *string {
	return aws.String(base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc)))
}

// contentType of an object. There is no Content-Encoding: with one, clients and
// caches would decode the object on the way and its checksum would not hold.
func contentType(c batch.Codec) *string {
	switch c {
	case batch.Gzip:
		return aws.String("application/gzip")
	case batch.Zstd:
		return aws.String("application/zstd")
	}
	return aws.String("application/x-ndjson")
}

// Names of an object's metadata, without x-amz-meta-.
const (
	metaAgent   = "spillway-agent"
	metaSite    = "spillway-site"
	metaLane    = "spillway-lane"
	metaEpoch   = "spillway-epoch"
	metaFirst   = "spillway-first-seq"
	metaLast    = "spillway-last-seq"
	metaRecords = "spillway-records"
	metaSchema  = "spillway-schema"
	metaBefore  = "spillway-seal-before"
	metaSeal    = "spillway-seal"
	metaBatches = "spillway-batches"
	metaAttempt = "spillway-attempt"
)

// maxMetadata is how many bytes of names and values S3 takes.
const maxMetadata = 2 << 10

// metadata says of run what its key does not: numbers in decimal, seals in hex,
// sizes as batch.Run.Sizes.
func metadata(site string, run *batch.Run) map[string]string {
	m := map[string]string{
		metaAgent: run.Agent, metaSite: site, metaLane: run.Lane, metaEpoch: run.Epoch.String(),
		metaFirst: strconv.FormatUint(run.First(), 10), metaLast: strconv.FormatUint(run.Last(), 10),
		metaRecords: strconv.FormatUint(run.Count(), 10), metaSchema: "1",
		metaBefore: run.Before.String(), metaSeal: run.Seal().String(),
	}
	if run.Attempt > 1 {
		m[metaAttempt] = strconv.Itoa(run.Attempt)
	}
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
	}
	// Batches of a strange configuration (millions of records each) may need more
	// room than there is. Delivery matters more: frame ends can be told by walking.
	if sizes := run.Sizes(); n+len(metaBatches)+len(sizes) <= maxMetadata {
		m[metaBatches] = sizes
	}
	return m
}

// client is the SDK's client for one bucket, with what it was made of.
type client struct {
	s3          *s3.Client
	http        *http.Client
	credentials *aws.CredentialsCache
	options     []func(*s3.Options) // of every PutObject
}

// newClient reads the SDK's own settings (environment, profiles) and adds ours.
func newClient(ctx context.Context, c Config) (*client, error) {
	// The SDK may only add a CA (AWS_CA_BUNDLE) to a client of its own kind.
	buildable := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.DialContext = dial
		t.TLSHandshakeTimeout = 10 * time.Second
	})
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(buildable),
		config.WithLogger(logging.Nop{}), // what matters comes back as an error
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if c.Region != "" {
		load = append(load, config.WithRegion(c.Region))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("AWS settings (AWS_PROFILE, AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE, AWS_CA_BUNDLE): %w", &oneLine{err})
	}
	if cfg.Region == "" {
		if c.Endpoint == "" {
			return nil, errors.New("REGION: not set, nor AWS_REGION: name the bucket's region, as in eu-central-1")
		}
		cfg.Region = "us-east-1" // signatures need one
	}
	cache, ok := cfg.Credentials.(*aws.CredentialsCache)
	if !ok {
		cache = aws.NewCredentialsCache(cfg.Credentials)
	}
	if b, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		buildable = b
	}
	cl := &client{credentials: cache, http: &http.Client{
		Transport: transport{buildable.GetTransport()},
		// A redirect means the wrong region: to be told, not followed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	cl.s3 = s3.NewFromConfig(cfg, func(so *s3.Options) {
		so.HTTPClient = cl.http
		so.Credentials = provider{cache}
		if c.Endpoint != "" {
			so.BaseEndpoint = &c.Endpoint
		}
		so.UsePathStyle = c.PathStyle == On || c.PathStyle == Auto && so.BaseEndpoint != nil // AWS_ENDPOINT_URL counts too
	})
	// TLS and the signed CRC32C protect the body on its way; a SHA-256 besides costs
	// more than everything else here.
	if base := cl.s3.Options().BaseEndpoint; base == nil || strings.HasPrefix(*base, "https://") {
		cl.options = append(cl.options, s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware))
	}
	return cl, nil
}

// oneLine is an error of the SDK's settings, whose text has line feeds in it.
type oneLine struct{ err error }

func (e *oneLine) Error() string { return strings.Join(strings.Fields(e.err.Error()), " ") }
func (e *oneLine) Unwrap() error { return e.err }

// provider marks the errors of a credentials cache as such.
type provider struct{ *aws.CredentialsCache }

func (p provider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := p.CredentialsCache.Retrieve(ctx)
	if err != nil {
		err = &credentialsError{err}
	}
	return c, err
}
