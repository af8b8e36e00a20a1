package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/url"
	"strings"
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
// $JS.API.CONSUMER.CREATE.<stream>.> and $JS.API.CONSUMER.MSG.NEXT.<stream>.>.
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

// lull is how long the next message may take before the server is asked whether
// there is one: those that were there at the start may have been removed since.
const lull = 5 * time.Second

// Objects implements outputs.Source.
func (s *source) Objects(ctx context.Context) iter.Seq2[*outputs.Object, error] {
	return func(yield func(*outputs.Object, error) bool) {
		if err := s.read(ctx, yield); err != nil {
			yield(nil, fmt.Errorf("stream %s: %w", s.stream, err))
		}
	}
}

func (s *source) read(ctx context.Context, yield func(*outputs.Object, error) bool) error {
	nc, js, err := s.connect()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer nc.Close()
	config := jetstream.OrderedConsumerConfig{InactiveThreshold: time.Minute, MaxResetAttempts: 1}
	if s.subject != "" {
		config.FilterSubjects = []string{s.subject}
	}
	var last uint64
	var consumer jetstream.Consumer
	if err := s.ask(ctx, func(ctx context.Context) error {
		stream, err := js.Stream(ctx, s.stream)
		if err != nil {
			return err
		}
		last = stream.CachedInfo().State.LastSeq
		consumer, err = stream.OrderedConsumer(ctx, config)
		return err
	}); err != nil {
		return err
	}
	if consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	messages, err := consumer.Messages(jetstream.PullMaxBytes(max(8<<20, 2*int(nc.MaxPayload()))))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for seen := uint64(0); seen < last; {
		msg, err := next(ctx, messages)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			var info *jetstream.ConsumerInfo
			if err := s.ask(ctx, func(ctx context.Context) (err error) {
				info, err = consumer.Info(ctx)
				return err
			}); err != nil {
				return err
			}
			if info.NumPending == 0 && info.Delivered.Stream <= seen {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		seen = meta.Sequence.Stream
		if seen > last {
			return nil
		}
		name := fmt.Sprintf("%s@%d", msg.Subject(), seen)
		o, err := parseHeader(msg.Headers(), len(msg.Data()))
		switch {
		case err != nil && msg.Headers().Get(hdrEpoch) == "":
			outputs.Stranger(ctx, name, nil)
		case err != nil:
			outputs.Stranger(ctx, name, err)
		default:
			o.Name = name
			o.Body = io.NopCloser(bytes.NewReader(msg.Data()))
			if !yield(o, nil) {
				return nil
			}
		}
		if meta.NumPending == 0 {
			return nil
		}
	}
	return nil
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

func (s *source) connect() (*nats.Conn, jetstream.JetStream, error) {
	files, err := s.c.files(func(option string) string { return option }, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	o := append(files.options, nats.Name("spillway reader"), nats.Timeout(s.c.ConnectTimeout), nats.NoReconnect(),
		nats.PingInterval(s.c.PingInterval), nats.MaxPingsOutstanding(2))
	nc, err := nats.Connect(s.c.Servers, o...)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if s.c.Domain != "" {
		js, err = jetstream.NewWithDomain(nc, s.c.Domain)
	}
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return nc, js, nil
}
