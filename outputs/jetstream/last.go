package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
)

// Last implements outputs.Stream. It needs one narrow right: to publish on
//
//	$JS.API.DIRECT.GET.<stream>.<subject of the lane>          ($JS.<domain>.API… with a domain)
//
// which the server answers with the last message on that very subject (ADR-31). A
// stream without allow_direct is asked by $JS.API.STREAM.MSG.GET.<stream>, which
// takes a right to read all of it; STREAM, if it is not set, by $JS.API.STREAM.NAMES,
// unless an acknowledgement has named it before. Where a right is missing the mark is
// unknown, and says which. A replica that lags may answer: asking again helps.
func (o *Output) Last(ctx context.Context, lane string) (outputs.Mark, error) {
	subject := o.fill(o.c.Subject, lane)
	l, err := o.ready(ctx, subject)
	if err == nil {
		session := l.dial.session()
		var mark outputs.Mark
		if mark, err = o.last(ctx, l, subject); err == nil {
			l.check(lane, session)
			return mark, nil
		}
	}
	return outputs.Mark{}, o.fail("ask for the last message on "+subject, subject, outputs.StoredNo, err)
}

func (o *Output) last(ctx context.Context, l *link, subject string) (outputs.Mark, error) {
	stream, err := o.streamOf(ctx, l, subject)
	if stream == "" || err != nil {
		return unknown(err, "which stream takes "+subject+" is not known: set "+o.variable()+"STREAM")
	}
	direct := o.api("DIRECT.GET." + stream + "." + subject)
	msg, err := l.request(ctx, direct, nil, o.c.AckTimeout)
	if err != nil {
		return unknown(err, "grant publish on "+direct+" to this user")
	}
	switch msg.Header.Get("Status") {
	case "": // found
		return mark(msg.Header), nil
	case "404":
		return outputs.Mark{}, nil
	case "503": // nobody listens there
		return o.lastByLeader(ctx, l, stream, subject)
	}
	return outputs.Mark{Unknown: fmt.Sprintf("the server answers %s %s", msg.Header.Get("Status"), msg.Header.Get("Description"))}, nil
}

// lastByLeader asks a stream that has no direct get.
func (o *Output) lastByLeader(ctx context.Context, l *link, stream, subject string) (outputs.Mark, error) {
	get := o.api("STREAM.MSG.GET." + stream)
	body, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return outputs.Mark{}, err
	}
	msg, err := l.request(ctx, get, body, o.c.AckTimeout)
	if err != nil {
		return unknown(err, "stream "+stream+" has no direct get: set its allow_direct (nats stream edit "+stream+" --allow-direct), or grant publish on "+get+" to this user")
	}
	if msg.Header.Get("Status") == "503" {
		return outputs.Mark{}, errNoAPI
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Header []byte `json:"hdrs"`
		} `json:"message"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return outputs.Mark{}, fmt.Errorf("%w: %w", jetstream.ErrInvalidJSAck, err)
	}
	switch e := answer.Error; {
	case e == nil:
	case e.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return outputs.Mark{}, nil
	case e.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return outputs.Mark{Unknown: "there is no stream " + stream}, nil
	default:
		return outputs.Mark{}, e
	}
	h, err := nats.DecodeHeadersMsg(answer.Message.Header)
	if err != nil {
		h = nats.Header{} // not ours either
	}
	return mark(h), nil
}

// unknown turns a missing right into a mark: the lane must not wait for it.
func unknown(err error, hint string) (outputs.Mark, error) {
	if err == nil || errors.Is(err, errDenied) {
		return outputs.Mark{Unknown: hint}, nil
	}
	return outputs.Mark{}, err
}

// mark reads the headers of the last message of a lane.
func mark(h nats.Header) outputs.Mark {
	m, err := parseHeader(h, 0)
	if err != nil {
		return outputs.Mark{Unknown: "the last message there is " + err.Error()}
	}
	return outputs.Mark{Found: true, Epoch: m.Epoch, Last: m.Last}
}

// streamOf returns the name of the stream that takes subject, "" if it can't be found out.
func (o *Output) streamOf(ctx context.Context, l *link, subject string) (string, error) {
	if o.c.Stream != "" {
		return o.c.Stream, nil
	}
	if name := o.stream.Load(); name != nil {
		return *name, nil
	}
	body, err := json.Marshal(map[string]string{"subject": subject})
	if err != nil {
		return "", err
	}
	msg, err := l.request(ctx, o.api("STREAM.NAMES"), body, o.c.AckTimeout)
	if errors.Is(err, errDenied) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if msg.Header.Get("Status") == "503" {
		return "", errNoAPI
	}
	var answer struct {
		Streams []string `json:"streams"`
	}
	if json.Unmarshal(msg.Data, &answer) != nil || len(answer.Streams) != 1 {
		return "", nil
	}
	return answer.Streams[0], nil
}

// api returns the subject of a JetStream API.
func (o *Output) api(what string) string {
	if o.c.Domain != "" {
		return "$JS." + o.c.Domain + ".API." + what
	}
	return "$JS.API." + what
}

// request sends data to subject and returns the first answer. Unlike nats.go's own
// it ends as soon as the server refuses the subject (errDenied).
func (l *link) request(ctx context.Context, subject string, data []byte, patience time.Duration) (*nats.Msg, error) {
	l.mu.Lock()
	delete(l.denied, subject)
	l.mu.Unlock()
	answers := make(chan *nats.Msg, 1)
	var sub *nats.Subscription
	err := l.guard(ctx, func() (err error) {
		inbox := l.nc.NewInbox()
		if sub, err = l.nc.ChanSubscribe(inbox, answers); err != nil {
			return err
		}
		return l.nc.PublishRequest(subject, inbox, data)
	})
	if sub != nil {
		// Should the write wait for a dead peer, it has its own deadline.
		defer sub.Unsubscribe()
	}
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		changed, refused := l.refusal(subject)
		if refused != nil {
			return nil, refused
		}
		select {
		case msg := <-answers:
			return msg, nil
		case <-changed:
			if !l.isUp() {
				return nil, nats.ErrDisconnected
			}
		case <-timer.C:
			return nil, fmt.Errorf("%w within %v", errSilent, patience)
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errEnded, ctx.Err())
		}
	}
}

// check notes that what lane has was asked for in session.
func (l *link) check(lane string, session uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checked[lane] = session
}

// session returns the session in which lane was checked, if that is the present one.
func (l *link) session(lane string) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.checked[lane]
	if !ok || s != l.dial.session() {
		return 0, &notSent{outputs.ErrUnchecked}
	}
	return s, nil
}

func (l *link) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}
