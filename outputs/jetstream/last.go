package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// isChecked returns outputs.ErrUnchecked unless Last was asked for lane in s.
func (o *Output) isChecked(lane string, s session) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.checked[lane] != s {
		return &notSent{outputs.ErrUnchecked}
	}
	return nil
}

// Checked implements outputs.Stream.
func (o *Output) Checked(lane string) bool {
	o.mu.Lock()
	l, s := o.l, o.checked[lane]
	o.mu.Unlock()
	return !l.isUp() || s.l == l && !s.ended()
}

func (o *Output) uncheck(lane string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.checked, lane)
}

// Last implements outputs.Stream. It is a direct get (ADR-31 of NATS) whose subject
// holds stream and subject, so that a permission can name them:
//
//	$JS.API.DIRECT.GET.<stream>.<subject>     $JS.<domain>.API… with DOMAIN
//
// Without STREAM, the stream is the one that acknowledged last, before that the one
// that $JS.API.STREAM.NAMES finds. A stream without allow_direct is asked by
// $JS.API.STREAM.MSG.GET.<stream>, which takes the permission to read all of it. A
// missing permission and a message of somebody else give a Mark.Unknown.
//
// Any replica answers a direct get, also one that lags behind the leader. If it
// shows less than this Output saw acknowledged, it is asked again until it shows
// that, or has shown the same for settling. What lags longer, or was acknowledged to
// an earlier life of the agent, is taken for lost and sent again: within the
// stream's duplicate window that stores nothing.
func (o *Output) Last(ctx context.Context, lane string) (outputs.Mark, error) {
	subject := o.fill(o.c.Subject, lane)
	fail := func(err error) error {
		return o.fail("ask for the last message of "+subject, subject, outputs.StoredNo, err)
	}
	s, err := o.ready(ctx, subject)
	if err != nil {
		return outputs.Mark{}, fail(err)
	}
	mark, err := o.last(ctx, s, lane, subject)
	var why *unaskable
	switch {
	case s.ended():
		return outputs.Mark{}, fail(&notSent{nats.ErrDisconnected})
	case errors.As(err, &why):
		mark = outputs.Mark{Unknown: why.Error()}
	case err != nil:
		return outputs.Mark{}, fail(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.checked[lane] = s
	return mark, nil
}

// unaskable is why a stream that works can't be asked.
type unaskable struct{ why string }

func (e *unaskable) Error() string { return e.why }

// settling is how long a replica must show the same before that is taken for all it
// will have. Followers hear of a commit with the leader's next message, at the
// latest with its heartbeat, which comes each second.
const settling = 2500 * time.Millisecond

func (o *Output) last(ctx context.Context, s session, lane, subject string) (mark outputs.Mark, err error) {
	o.mu.Lock()
	acked, stream := o.acked[lane], o.stream
	o.mu.Unlock()
	if o.c.Stream != "" {
		stream = o.c.Stream
	}
	if stream == "" {
		if stream, err = o.streamOf(ctx, s, subject); err != nil {
			return mark, err
		}
	}
	for moved := time.Now(); ; {
		h, err := o.get(ctx, s, subject, stream)
		if err != nil {
			return mark, err
		}
		outputs.Moved(ctx)
		was := mark
		if mark, err = parseMark(h); err != nil {
			return mark, &unaskable{fmt.Sprintf("the last message on %s in stream %s: %v", subject, stream, err)}
		}
		if acked.Last == 0 || mark.Found && (mark.Epoch != acked.Epoch || mark.Last >= acked.Last) {
			return mark, nil
		}
		if mark != was {
			moved = time.Now()
		} else if time.Since(moved) > settling {
			return mark, nil
		}
		select {
		case <-time.After(settling / 25):
		case <-ctx.Done():
			return mark, fmt.Errorf("%w: %w", errEnded, ctx.Err())
		}
	}
}

// get returns the headers of the last message on subject in stream, or those of an
// answer that says that there is none.
func (o *Output) get(ctx context.Context, s session, subject, stream string) (nats.Header, error) {
	direct, err := o.ask(ctx, s, subject, "DIRECT.GET."+stream+"."+subject, nil)
	if err == nil {
		return direct.Header, nil
	}
	if !errors.Is(err, nats.ErrNoResponders) {
		return nil, err
	}
	request, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return nil, err
	}
	answer, err := o.ask(ctx, s, subject, "STREAM.MSG.GET."+stream, request)
	if err != nil {
		return nil, unless(err, fmt.Sprintf("stream %s has no direct get: nats stream edit %s --allow-direct", stream, stream))
	}
	var got struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Header []byte `json:"hdrs"`
		} `json:"message"`
	}
	err = json.Unmarshal(answer.Data, &got)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", jetstream.ErrInvalidJSAck, err)
	case got.Error != nil && got.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nats.Header{"Status": {"404"}}, nil
	case got.Error != nil:
		return nil, &unaskable{fmt.Sprintf("stream %s: %v", stream, got.Error)}
	}
	h, err := nats.DecodeHeadersMsg(got.Message.Header)
	if err != nil {
		h = nats.Header{} // it has none
	}
	return h, nil
}

// unless returns err, or that the stream can't be asked, and why, if it is about no
// more than this request.
func unless(err error, why string) error {
	var u *unaskable
	if errors.As(err, &u) || errors.Is(err, nats.ErrNoResponders) {
		return &unaskable{why}
	}
	return err
}

// parseMark returns what the headers of a direct get's answer say.
func parseMark(h nats.Header) (m outputs.Mark, err error) {
	switch status := h.Get("Status"); status {
	case "":
	case "404":
		return m, nil
	default:
		return m, fmt.Errorf("the server says %s %s", status, h.Get("Description"))
	}
	m.Found = true
	if m.Epoch, err = batch.ParseEpoch(h.Get(hdrEpoch)); err == nil {
		m.Last, err = strconv.ParseUint(h.Get(hdrLast), 10, 64)
	}
	if err != nil {
		return outputs.Mark{}, errNotOurs
	}
	return m, nil
}

// streamOf asks which stream takes subject.
func (o *Output) streamOf(ctx context.Context, s session, subject string) (string, error) {
	request, err := json.Marshal(map[string]string{"subject": subject})
	if err != nil {
		return "", err
	}
	why := "the name of the stream can't be found out: set " + o.variable("STREAM")
	answer, err := o.ask(ctx, s, subject, "STREAM.NAMES", request)
	if err != nil {
		return "", unless(err, why)
	}
	var names struct {
		Streams []string `json:"streams"`
	}
	if json.Unmarshal(answer.Data, &names) == nil && len(names.Streams) == 1 {
		return names.Streams[0], nil
	}
	if err := o.probe(ctx, subject); err != nil { // there is none
		return "", err
	}
	return "", &unaskable{why}
}

// ask sends a request to JetStream's API. When there is no answer, a probe tells
// whether anything could be published now. If not, its error is that of ask, else
// ask is tried once more, and its error is an unaskable or nats.ErrNoResponders.
func (o *Output) ask(ctx context.Context, s session, subject, api string, data []byte) (*nats.Msg, error) {
	api = o.api() + api
	for again := false; ; again = true {
		answer, err := s.request(ctx, &nats.Msg{Subject: api, Data: data}, o.c.AckTimeout/2)
		switch {
		case errors.Is(err, errDenied):
			return nil, &unaskable{"grant publish on " + api + " to this user"}
		case !errors.Is(err, errSilent) && !errors.Is(err, nats.ErrNoResponders):
			return answer, err
		case again && errors.Is(err, errSilent):
			return nil, &unaskable{"no answer on " + api}
		case again:
			return nil, err
		}
		if err := o.probe(ctx, subject); err != nil {
			return nil, err
		}
	}
}

// api is what all subjects of JetStream's API begin with.
func (o *Output) api() string {
	if o.c.Domain != "" {
		return "$JS." + o.c.Domain + ".API."
	}
	return "$JS.API."
}

// request returns the first answer to msg. It asks again meanwhile, as one of
// several that may answer can hang, and gives up after patience in which not a byte
// came, or after 20 times that: the answer is a message that may take long.
func (s session) request(ctx context.Context, msg *nats.Msg, patience time.Duration) (*nats.Msg, error) {
	l := s.l
	defer l.cutAfter(ctx)()
	l.mu.Lock()
	delete(l.denied, msg.Subject)
	l.mu.Unlock()
	answers := make(chan *nats.Msg, 1)
	msg.Reply = l.nc.NewInbox()
	sub, err := l.nc.ChanSubscribe(msg.Reply, answers)
	if err != nil {
		return nil, &notSent{err}
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails if the connection has ended
	const parts = 4
	part := time.NewTicker(patience / parts)
	defer part.Stop()
	begin := time.Now()
	for idle := 0; idle < parts && time.Since(begin) < 20*patience; idle++ {
		if idle%2 == 0 {
			if err := s.send(ctx, func() error { return l.nc.PublishMsg(msg) }); err != nil {
				return nil, err
			}
		}
		read := l.dial.read.Load()
		answer, err := l.answer(ctx, msg.Subject, answers, part.C)
		if answer != nil || err != nil {
			return answer, err
		}
		if l.dial.read.Load() > read {
			idle = 0 // and 1 in the next turn, which does not ask
			outputs.Moved(ctx)
		}
	}
	return nil, fmt.Errorf("%w within %v", errSilent, time.Since(begin).Round(time.Millisecond))
}

// answer returns the next of answers, nil when part fires before.
func (l *link) answer(ctx context.Context, subject string, answers <-chan *nats.Msg, part <-chan time.Time) (*nats.Msg, error) {
	for {
		changed, refused := l.refusal(subject)
		if refused != nil {
			return nil, refused
		}
		select {
		case m := <-answers:
			if m.Header.Get("Status") == "503" && len(m.Data) == 0 {
				return nil, nats.ErrNoResponders
			}
			return m, nil
		case <-part:
			return nil, nil
		case <-changed:
			if !l.isUp() {
				return nil, nats.ErrDisconnected
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errEnded, ctx.Err())
		}
	}
}
