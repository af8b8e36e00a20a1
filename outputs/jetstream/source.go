package jetstream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
)

// source reads the messages of one stream.
type source struct {
	c               Config
	stream, subject string
}

// NewSource returns the batches of a stream, in the stream's order, up to the last
// message that is there when reading begins; messages without the headers of a
// batch are stepped over. rawURL is
//
//	nats://[user:password@]host:port[,host:port…]/STREAM[?subject=logs.*.gw1.>]
//
// also with tls, ws or wss. Of c it uses what reaches the server: authentication,
// TLS, Domain, ConnectTimeout and PingInterval.
//
// Nothing is looked at yet: each Objects call makes a connection of its own. The
// reader needs to publish on $JS.API.STREAM.INFO.<stream>,
// $JS.API.CONSUMER.CREATE.<stream>.> and $JS.API.CONSUMER.MSG.NEXT.<stream>.>; with
// $JS.API.STREAM.MSG.GET.<stream> too it need not wait where a replica might lag.
func NewSource(_ context.Context, rawURL string, c Config) (outputs.Source, error) {
	s := &source{}
	servers, query, _ := strings.Cut(rawURL, "?")
	if i := strings.LastIndex(servers, "/"); i > strings.Index(servers, "://")+2 {
		servers, s.stream = servers[:i], servers[i+1:]
	}
	if !streamRule.MatchString(s.stream) {
		return nil, errors.New("URL: names no stream: write it as in nats://host:4222/STREAM")
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("URL: %w", err)
	}
	for k := range q {
		if k != "subject" {
			return nil, fmt.Errorf("URL: %s is no option of a stream: use subject, as in nats://host:4222/STREAM?subject=logs.*.gw1.>", k)
		}
	}
	s.subject = q.Get("subject")
	c.Servers = servers
	s.c = c.withDefaults()
	s.c.InboxPrefix = "_INBOX" // fields can't be filled in here
	if err := s.c.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// lull is how long the next message may take, while not a byte comes, before it is
// asked what became of it: those that were there at the start may have been removed.
const lull = 5 * time.Second

// Objects implements outputs.Source.
func (s *source) Objects(ctx context.Context) iter.Seq2[*outputs.Object, error] {
	return func(yield func(*outputs.Object, error) bool) {
		r := &reading{source: s, yield: yield}
		if err := r.read(ctx); err != nil {
			yield(nil, fmt.Errorf("stream %s: %w", s.stream, err))
		}
	}
}

// reading is one reading of a stream, over several sessions if need be.
type reading struct {
	*source
	yield func(*outputs.Object, error) bool

	created time.Time // of the stream; zero: it was not found yet
	last    uint64    // in the stream when reading began
	seen    uint64
	stopped bool // yield wants no more
	waited  bool // for a replica that may lag, since nobody tells
}

// read goes on where a session ended early: the consumer is held by one server of a
// cluster, which may be stopped, and be one that has not all of the stream. It gives
// up when that long nothing came that an election would be over.
func (r *reading) read(ctx context.Context) error {
	for since := time.Now(); ; {
		was := r.seen
		err := r.session(ctx)
		if r.seen > was {
			since = time.Now()
		}
		if err == nil || r.stopped || r.created.IsZero() || ctx.Err() != nil || time.Since(since) > r.c.AckTimeout+election {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

var (
	errBehind = errors.New("the server that was read from has not all that the stream's leader has")
	errLull   = errors.New("the next message does not come")
	errAnew   = errors.New("the stream was deleted and created anew while it was read: read it again")
)

// session reads over one connection from one consumer. Nil means that all was read.
func (r *reading) session(ctx context.Context) error {
	nc, js, read, err := r.connect()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer nc.Close()
	config := jetstream.OrderedConsumerConfig{InactiveThreshold: time.Minute, MaxResetAttempts: 1}
	if r.subject != "" {
		config.FilterSubjects = []string{r.subject}
	}
	if r.seen > 0 {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.seen+1
	}
	var consumer jetstream.Consumer
	var info *jetstream.StreamInfo
	if err := r.ask(ctx, func(ctx context.Context) error {
		stream, err := js.Stream(ctx, r.stream)
		if err != nil {
			return err
		}
		info = stream.CachedInfo()
		consumer, err = stream.OrderedConsumer(ctx, config)
		return err
	}); err != nil {
		return err
	}
	switch {
	case r.created.IsZero():
		r.created, r.last = info.Created, info.State.LastSeq
	case !info.Created.Equal(r.created):
		return errAnew
	}
	if consumer.CachedInfo().NumPending == 0 {
		return r.end(ctx, nc)
	}
	messages, err := consumer.Messages(jetstream.PullMaxBytes(max(8<<20, 2*int(nc.MaxPayload()))))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for r.seen < r.last {
		came := read.Load()
		msg, err := next(ctx, messages)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			if read.Load()-came > 1<<10 { // more than heartbeats
				continue // a large one, over a slow link
			}
			var info *jetstream.ConsumerInfo
			if err := r.ask(ctx, func(ctx context.Context) (err error) {
				info, err = consumer.Info(ctx)
				return err
			}); err != nil {
				return err
			}
			if info.NumPending == 0 && info.Delivered.Stream <= r.seen {
				return r.end(ctx, nc)
			}
			return errLull
		}
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Stream > r.last {
			return nil
		}
		if r.message(ctx, msg, meta); r.stopped {
			return nil
		}
		if meta.NumPending == 0 {
			return r.end(ctx, nc)
		}
	}
	return nil
}

// message hands out one message.
func (r *reading) message(ctx context.Context, msg jetstream.Msg, meta *jetstream.MsgMetadata) {
	r.seen = meta.Sequence.Stream
	name := fmt.Sprintf("%s@%d", msg.Subject(), r.seen)
	o, err := parseHeader(msg.Headers(), len(msg.Data()))
	switch {
	case err != nil && msg.Headers().Get(hdrEpoch) == "":
		outputs.Stranger(ctx, name, nil)
	case err != nil:
		outputs.Stranger(ctx, name, err)
	default:
		o.Name = name
		o.Body = io.NopCloser(bytes.NewReader(msg.Data()))
		r.stopped = !r.yield(o, nil)
	}
}

// end is for when the consumer has no more, though what it gave was not the stream's
// last message. Either that is not of the subject or was removed, or the server of
// the consumer lags; the stream's leader knows. A reader who may not ask it waits
// for what a healthy replica may lag.
func (r *reading) end(ctx context.Context, nc *nats.Conn) error {
	if r.seen >= r.last {
		return nil
	}
	request, err := json.Marshal(map[string]any{"seq": r.seen + 1, "next_by_subj": cmp.Or(r.subject, ">")})
	if err != nil {
		return err
	}
	api := "$JS.API."
	if r.c.Domain != "" {
		api = "$JS." + r.c.Domain + ".API."
	}
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	answer, err := nc.RequestWithContext(ctx, api+"STREAM.MSG.GET."+r.stream, request)
	var got struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq uint64 `json:"seq"`
		} `json:"message"`
	}
	switch {
	case err != nil && !r.waited:
		r.waited = true
		<-ctx.Done()
		return errBehind // look again
	case err != nil:
		return nil
	case json.Unmarshal(answer.Data, &got) != nil:
		return fmt.Errorf("%w: %q", jetstream.ErrInvalidJSAck, answer.Data)
	case got.Error != nil && got.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil
	case got.Error != nil:
		return got.Error
	case got.Message.Seq > r.last:
		return nil
	}
	return errBehind
}

// ask calls f with a short deadline until JetStream answers. While a cluster elects
// a leader it passes over what it is asked, or says that it can't answer now; a peer
// that stays silent must not hold a reader for longer than that takes.
func (s *source) ask(ctx context.Context, f func(context.Context) error) error {
	patient, cancel := context.WithTimeout(ctx, s.c.AckTimeout+election)
	defer cancel()
	for {
		short, cancel := context.WithTimeout(patient, s.c.AckTimeout/5)
		err := f(short)
		cancel()
		if err == nil || !errors.Is(err, context.DeadlineExceeded) && patience(err) == 0 {
			return err
		}
		select {
		case <-patient.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func next(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, lull)
	defer cancel()
	return messages.Next(jetstream.NextContext(ctx))
}

// connect returns also the count of bytes read from the connection.
func (s *source) connect() (*nats.Conn, jetstream.JetStream, *atomic.Int64, error) {
	files, err := s.c.files(func(option string) string { return option }, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, nil, err
	}
	d := &countingDialer{Dialer: net.Dialer{Timeout: s.c.ConnectTimeout}}
	o := append(files.options, nats.Name("spillway reader"), nats.Timeout(s.c.ConnectTimeout), nats.NoReconnect(), nats.SetCustomDialer(d),
		nats.PingInterval(s.c.PingInterval), nats.MaxPingsOutstanding(2))
	nc, err := nats.Connect(s.c.Servers, o...)
	if err != nil {
		return nil, nil, nil, err
	}
	js, err := jetstream.New(nc)
	if s.c.Domain != "" {
		js, err = jetstream.NewWithDomain(nc, s.c.Domain)
	}
	if err != nil {
		nc.Close()
		return nil, nil, nil, err
	}
	return nc, js, &d.read, nil
}

// countingDialer counts what comes.
type countingDialer struct {
	net.Dialer
	read atomic.Int64 // bytes
}

// Dial implements nats.CustomDialer.
func (d *countingDialer) Dial(network, address string) (net.Conn, error) {
	c, err := d.Dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return &countedConn{c, &d.read}, nil
}

type countedConn struct {
	net.Conn
	read *atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}
