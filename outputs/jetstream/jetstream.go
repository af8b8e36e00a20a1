// Package jetstream publishes batches to a stream of NATS JetStream, one message
// for each batch, and reads them back.
//
// The server deduplicates on a batch's identity (Nats-Msg-Id) within the stream's
// duplicate window, so what is in doubt is simply sent again. Its acknowledgement
// says that the stream has the message, not that it was fsynced there: that is
// the server's sync_interval, and its replicas.
package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// Output publishes to one stream. It has one connection, which all lanes share
// and which nats.go keeps up in the background. Safe for concurrent use.
type Output struct {
	name, site, agent string

	c     Config
	files *files
	inbox string
	log   *slog.Logger

	mu sync.Mutex
	// guarded by mu
	l       *link
	closed  bool
	stream  string                    // that acknowledged last
	checked map[string]session        // by lane: the one in which Last was asked
	acked   map[string]batch.Identity // by lane: the newest batch that was acknowledged

	delivered, already, bytes atomic.Uint64 // see outputs.Counts
}

var (
	_ outputs.Stream   = (*Output)(nil)
	_ outputs.Reloader = (*Output)(nil)
)

// New returns an output called name for agent at site. It connects in the
// background and waits for nothing: a server that is down is no error, a wrong
// option is.
func New(name, site, agent string, c Config, log *slog.Logger) (*Output, error) {
	c = c.withDefaults()
	err := c.Validate()
	for _, v := range []struct{ what, is string }{{"site", site}, {"agent", agent}} {
		if !tokenRule.MatchString(v.is) {
			err = errors.Join(err, fmt.Errorf("%s %q: use 1 to 64 of A-Z, a-z, 0-9, _ and -", v.what, v.is))
		}
	}
	if err != nil {
		return nil, err
	}
	o := &Output{name: name, site: site, agent: agent, c: c, log: log.With("output", name),
		checked: map[string]session{}, acked: map[string]batch.Identity{}}
	o.inbox = o.fill(c.InboxPrefix, "")
	if o.files, err = o.c.files(o.variable, o.log); err != nil {
		return nil, err
	}
	o.mu.Lock() // unmet may be called already
	defer o.mu.Unlock()
	if o.l, err = o.connect(); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *Output) connect() (*link, error) {
	return connect(&o.c, o.files.options, "spillway/"+o.site+"/"+o.agent, o.inbox, o.log, o.unmet)
}

// unmet tells that no server could be reached, for the reason of err.
func (o *Output) unmet(err error) {
	hint := o.hint(classify(err), "")
	if hint == "" {
		hint = hintReach
	}
	o.log.Warn("can't connect; trying again", "server", redacted(o.c.Servers), "error", err, "hint", hint)
}

// fill fills in the fields of a subject.
func (o *Output) fill(subject, lane string) string {
	return strings.NewReplacer("{site}", o.site, "{agent}", o.agent, "{lane}", lane).Replace(subject)
}

// Name implements outputs.Output.
func (o *Output) Name() string { return o.name }

// defaultPayload is nats-server's default max_payload, taken until a server has
// said its own.
const defaultPayload = 1 << 20

// Limits implements outputs.Output. BatchBytes follows the server's max_payload,
// as of the last connect, less what the headers may take.
func (o *Output) Limits() batch.Limits {
	payload := int64(defaultPayload)
	o.mu.Lock()
	l := o.l
	o.mu.Unlock()
	l.mu.Lock()
	if l.payload > 0 {
		payload = l.payload
	}
	l.mu.Unlock()
	return batch.Limits{Bytes: int64(o.c.MaxInflightBytes), Batches: o.c.MaxInflight, BatchBytes: max(1, payload-headerRoom)}
}

// Publish implements outputs.Output. It sends the run's batches without waiting
// for each acknowledgement, as far as MAX_INFLIGHT and MAX_INFLIGHT_BYTES allow,
// and sends nothing more after the first that fails. For an Unfit error, Stored
// speaks of the batch that does not fit; those behind it are in doubt.
//
// A server that refuses one batch and takes the next one, already on its way (it
// is smaller, or a limit was raised in between), stores them out of order, as the
// refused one follows later; so may a cluster whose leader goes. Readers order by
// number. What is sent again begins with one batch alone, until that is acknowledged.
//
// All of a run goes over the connection over which Last was asked for its lane.
// When that is gone, or the stream was without a leader since, Publish returns
// outputs.ErrUnchecked.
func (o *Output) Publish(ctx context.Context, run *batch.Run) (accepted int, err error) {
	subject := o.fill(o.c.Subject, run.Lane)
	fail := func(stored outputs.Stored, err error) error {
		return o.fail("publish to "+subject, subject, stored, err)
	}
	s, err := o.ready(ctx, subject)
	if err == nil {
		err = o.isChecked(run.Lane, s)
	}
	if err != nil {
		return 0, fail(0, err)
	}
	var (
		most    = o.Limits()
		flight  []sent // oldest first; the first is run.Batches[accepted]
		bytes   int64  // of flight
		stopped error  // why nothing more is sent
	)
	for next := 0; accepted < len(run.Batches); {
		for stopped == nil && next < len(run.Batches) {
			n := int64(len(run.Batches[next].Payload))
			if len(flight) > 0 && (len(flight) >= o.c.MaxInflight || bytes+n > int64(o.c.MaxInflightBytes)) {
				break
			}
			if next == 1 && accepted == 0 && run.Attempt > 1 {
				break // of a stream that nobody led the first would be lost, and the rest stored before it
			}
			if n > most.BatchBytes {
				stopped = &notSent{fmt.Errorf("%w: %d bytes, and max_payload leaves %d", errTooLarge, n, most.BatchBytes)}
				break
			}
			msg := &nats.Msg{Subject: subject, Data: run.Batches[next].Payload, Header: header(o.site, o.c.Stream, run, next)}
			f, err := s.publish(ctx, msg)
			if err != nil {
				stopped = err
				break
			}
			flight, bytes = append(flight, sent{f, n}), bytes+n
			next++
		}
		if len(flight) == 0 {
			return accepted, fail(0, stopped)
		}
		if err := o.settle(ctx, s.l, flight[0], subject); err != nil {
			if patience(err) > 0 {
				o.uncheck(run.Lane) // nobody led the stream: who leads it next may have less
			}
			return accepted, fail(o.settleRest(ctx, s.l, err, flight[1:], subject), err)
		}
		outputs.Moved(ctx)
		o.mu.Lock()
		o.acked[run.Lane] = run.Batches[accepted].Identity(run.Agent, run.Epoch)
		o.mu.Unlock()
		bytes -= flight[0].bytes
		flight = flight[1:]
		accepted++
	}
	return accepted, nil
}

// sent is a batch on its way.
type sent struct {
	jetstream.PubAckFuture
	bytes int64
}

// settle waits for the acknowledgement of s and takes it into the counters.
func (o *Output) settle(ctx context.Context, l *link, s sent, subject string) error {
	ack, err := l.wait(ctx, s, subject, o.c.AckTimeout)
	if err != nil {
		return err
	}
	// A server that knows Nats-Expected-Stream never gets here with another stream.
	if o.c.Stream != "" && ack.Stream != o.c.Stream || o.c.Domain != "" && ack.Domain != o.c.Domain {
		return fmt.Errorf("%w: stream %q, domain %q", errWrongStream, ack.Stream, ack.Domain)
	}
	o.mu.Lock()
	o.stream = ack.Stream
	o.mu.Unlock()
	if ack.Duplicate {
		o.already.Add(1)
		return nil
	}
	o.delivered.Add(1)
	o.bytes.Add(uint64(s.bytes))
	return nil
}

// settleRest hears what became of the batches behind one that failed with err, and
// returns what that makes of the whole: what of it may be stored.
func (o *Output) settleRest(ctx context.Context, l *link, err error, rest []sent, subject string) outputs.Stored {
	c := classify(err)
	if c.stored != outputs.StoredNo || len(rest) == 0 {
		return c.stored
	}
	if errors.Is(err, errDenied) {
		return outputs.StoredMaybe // the refusal names a subject, not a message
	}
	stored := outputs.StoredNo
	for _, s := range rest {
		_, err := l.wait(ctx, s, subject, o.c.AckTimeout)
		if err == nil || classify(err).stored != outputs.StoredNo {
			stored = outputs.StoredMaybe
		}
		if errors.Is(err, errSilent) || ctx.Err() != nil {
			break
		}
	}
	if c.action == outputs.Unfit {
		return c.stored
	}
	return stored
}

// ready returns the session of a link that is up.
func (o *Output) ready(ctx context.Context, subject string) (session, error) {
	o.mu.Lock()
	l := o.l
	l.mu.Lock()
	ended, why := l.closed, l.down
	l.mu.Unlock()
	switch {
	case o.closed:
		o.mu.Unlock()
		return session{}, &notSent{nats.ErrConnectionClosed}
	case ended:
		// The server said something that nats.go takes for final.
		o.log.Warn("connection closed for good; making another one", "error", why)
		l.close()
		var err error
		if l, err = o.connect(); err != nil {
			o.mu.Unlock()
			return session{}, &notSent{err}
		}
		o.l = l
	}
	o.mu.Unlock()
	return l.ready(ctx, subject, o.c.ConnectTimeout)
}

// publish hands msg to the connection. When it returns, msg.Data is written or
// copied, and not referred to any more.
func (s session) publish(ctx context.Context, msg *nats.Msg) (f jetstream.PubAckFuture, err error) {
	err = s.send(ctx, func() error {
		f, err = s.l.js.PublishMsgAsync(msg, jetstream.WithRetryAttempts(0))
		return err
	})
	msg.Data = nil // the future keeps msg, but no payload
	return f, err
}

// send calls f, which hands something to the connection: to this session's, or to
// none.
//
// A write waits for the peer under nats.go's lock and knows no ctx. Should ctx end
// meanwhile, the connection is cut.
func (s session) send(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return &notSent{err}
	}
	this := s.l.dial.begin(ctx, s.dial)
	if this == nil {
		return &notSent{outputs.ErrUnchecked}
	}
	defer s.l.dial.end(this)
	defer s.l.cutAfter(ctx)()
	err := f()
	if errors.Is(err, nats.ErrReconnectBufExceeded) {
		// nats.go's word for "not now": there is no such buffer, see connect.
		err = &notSent{fmt.Errorf("not connected: %w", nats.ErrConnectionReconnecting)}
	}
	return err
}

// cutAfter cuts the connection if ctx has ended for a while before done is called.
func (l *link) cutAfter(ctx context.Context) (done func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(grace):
			l.dial.cut()
		}
	})
	return func() {
		close(ended)
		stop()
	}
}

// grace is how long a write that is under way may go on when its ctx has ended.
const grace = 500 * time.Millisecond

// wait returns the answer to s. It waits no longer than patience, and not at all
// once the server refused the subject.
func (l *link) wait(ctx context.Context, s sent, subject string, patience time.Duration) (*jetstream.PubAck, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		changed, refused := l.refusal(subject)
		if refused != nil {
			select {
			case ack := <-s.Ok():
				return ack, nil
			case err := <-s.Err():
				return nil, err
			default:
				return nil, refused
			}
		}
		select {
		case ack := <-s.Ok():
			return ack, nil
		case err := <-s.Err():
			return nil, err
		case <-changed:
		case <-timer.C:
			return nil, l.nor(fmt.Errorf("%w within %v", errSilent, patience))
		case <-ctx.Done():
			return nil, l.nor(fmt.Errorf("%w: %w", errEnded, ctx.Err()))
		}
	}
}

// neverStream can't be the name of a stream, as those have no dots.
const neverStream = "spillway.probe"

// Probe implements outputs.Output. It publishes an empty message that expects to
// be stored by a stream that can't exist. The answer 10060 proves the connection,
// the permission to publish, and a stream with a leader; nothing is stored. It
// does not see that the stream is full or sealed: the next run finds out.
func (o *Output) Probe(ctx context.Context, lane string) error {
	subject := o.fill(o.c.Subject, lane)
	err := o.probe(ctx, subject)
	if err != nil {
		return o.fail("probe "+subject, subject, 0, err)
	}
	return nil
}

func (o *Output) probe(ctx context.Context, subject string) error {
	s, err := o.ready(ctx, subject)
	if err != nil {
		return err
	}
	f, err := s.publish(ctx, &nats.Msg{Subject: subject, Header: nats.Header{hdrExpected: {neverStream}}})
	if err != nil {
		return err
	}
	ack, err := s.l.wait(ctx, sent{PubAckFuture: f}, subject, o.c.AckTimeout)
	if err == nil {
		return fmt.Errorf("%w: stream %q stored the probe", errWrongStream, ack.Stream)
	}
	var a *jetstream.APIError
	if errors.As(err, &a) && a.ErrorCode == codeNotMatch {
		return nil
	}
	return err
}

const codeNotMatch jetstream.ErrorCode = 10060 // expected stream does not match

// fail returns err as the one kind of error that an output has. stored is what is
// known beyond err's class, 0 for nothing.
func (o *Output) fail(op, subject string, stored outputs.Stored, err error) error {
	c := classify(err)
	var n *notSent
	switch {
	case stored != 0:
		c.stored = stored
	case errors.As(err, &n):
		c.stored = outputs.StoredNo
	}
	return &outputs.Error{Output: o.name, Op: op, Stored: c.stored, Action: c.action, Err: err, Hint: o.hint(c, subject), Patience: patience(err)}
}

// hint is c's with its fields filled in.
func (o *Output) hint(c class, subject string) string {
	return strings.NewReplacer("{subject}", subject, "{stream}", o.streamName(), "{add}", o.addStream(o.streamName()), "{inbox}", o.inbox+".>",
		"{var}", o.variable("")).Replace(c.hint)
}

// streamName is the configured stream, or what to call one.
func (o *Output) streamName() string {
	if o.c.Stream != "" {
		return o.c.Stream
	}
	return "LOGS"
}

// addStream is the command that would make the stream, with three replicas if the
// server belongs to a cluster.
func (o *Output) addStream(stream string) string {
	replicas := 1
	o.mu.Lock()
	l := o.l
	o.mu.Unlock()
	if l != nil {
		l.mu.Lock()
		if l.cluster {
			replicas = 3
		}
		l.mu.Unlock()
	}
	return fmt.Sprintf("nats stream add %s --subjects '%s' --storage file --replicas %d --retention limits --discard old --max-age 30d --dupe-window 1h --allow-direct --defaults",
		stream, o.filter(), replicas)
}

// filter takes the subjects of all agents: the beginning of ours that has no field,
// as far as a dot.
func (o *Output) filter() string {
	fixed, _, some := strings.Cut(o.c.Subject, "{")
	if !some {
		return o.c.Subject
	}
	return fixed[:strings.LastIndex(fixed, ".")+1] + ">"
}

// variable returns the name of the variable that sets option.
func (o *Output) variable(option string) string {
	return "SPILLWAY_OUTPUT_" + strings.ToUpper(o.name) + "_" + option
}

// Reload implements outputs.Reloader. If there is no connection, one is tried now
// and not after the pause that runs: what was refused before may be taken.
func (o *Output) Reload() error {
	var errs []error
	for _, f := range o.files.all {
		errs = append(errs, f.reload())
	}
	o.mu.Lock()
	l, closed := o.l, o.closed
	o.mu.Unlock()
	if !closed && !l.isUp() {
		_ = l.nc.ForceReconnect() // it fails when the link is closed, and ready makes another
	}
	return errors.Join(errs...)
}

// Counts implements outputs.Output.
func (o *Output) Counts() outputs.Counts {
	return outputs.Counts{Delivered: o.delivered.Load(), AlreadyThere: o.already.Load(), Bytes: o.bytes.Load()}
}

// Connected reports whether there is a connection to a server. It never waits.
func (o *Output) Connected() bool {
	o.mu.Lock()
	l := o.l
	o.mu.Unlock()
	return l.isUp()
}

// Close implements outputs.Output.
func (o *Output) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.closed = true
		o.l.close()
	}
	return nil
}
