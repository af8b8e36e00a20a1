package jetstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
)

const (
	no    = outputs.StoredNo
	maybe = outputs.StoredMaybe
	yes   = outputs.StoredYes

	retry         = outputs.Retry
	failover      = outputs.Failover
	unfit         = outputs.Unfit
	misconfigured = outputs.Misconfigured
)

func apiError(code jetstream.ErrorCode, status int, description string) error {
	return &jetstream.APIError{ErrorCode: code, Code: status, Description: description}
}

// Every answer that is known, with what it means. Codes and texts are those of
// server/errors.json and server/store.go of nats-server 2.15.2.
func TestClassify(t *testing.T) {
	tested := map[jetstream.ErrorCode]bool{}
	for _, c := range []struct {
		err    error
		stored outputs.Stored
		action outputs.Action
	}{
		{jetstream.ErrNoStreamResponse, no, retry},
		{context.DeadlineExceeded, maybe, retry},
		{context.Canceled, maybe, retry},
		{jetstream.ErrAsyncPublishTimeout, maybe, retry},
		{errSilent, maybe, retry},
		{errEnded, maybe, retry},
		{nats.ErrDisconnected, maybe, retry},
		{nats.ErrStaleConnection, maybe, retry},
		{nats.ErrReconnectBufExceeded, no, retry},
		{nats.ErrConnectionReconnecting, no, retry},
		{nats.ErrConnectionClosed, no, retry},
		{nats.ErrConnectionDraining, no, retry},
		{nats.ErrMaxPayload, no, unfit},
		{errTooLarge, no, unfit},
		{errDenied, no, misconfigured},
		{errNoInbox, maybe, misconfigured},
		{errWrongStream, yes, misconfigured},
		{jetstream.ErrInvalidJSAck, maybe, misconfigured},
		{nats.ErrAuthorization, no, failover},
		{nats.ErrAuthExpired, no, failover},
		{nats.ErrAuthRevoked, no, failover},
		{nats.ErrAccountAuthExpired, no, failover},
		{nats.ErrMaxConnectionsExceeded, no, retry},
		{errMaxConnections, no, retry},
		{nats.ErrMaxAccountConnectionsExceeded, no, retry},
		{nats.ErrHeadersNotSupported, no, misconfigured},
		{nats.ErrSecureConnRequired, no, misconfigured},
		{nats.ErrSecureConnWanted, no, misconfigured},
		{nats.ErrBadSubject, no, misconfigured},
		{x509.UnknownAuthorityError{}, no, misconfigured},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "hub"}, no, misconfigured},
		{x509.CertificateInvalidError{Reason: x509.Expired}, no, misconfigured},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, no, misconfigured},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, no, misconfigured},
		{tls.AlertError(42), no, misconfigured},
		{&net.OpError{Op: "write", Err: errors.New("broken pipe")}, maybe, retry},
		{io.EOF, maybe, retry},

		{apiError(10002, 400, "resource limits exceeded for account"), no, failover},
		{apiError(10008, 503, "JetStream system temporarily unavailable"), no, retry},
		{apiError(10009, 500, "JetStream cluster can not handle request"), no, retry},
		{apiError(10023, 503, "insufficient resources"), no, failover},
		{apiError(10028, 500, "insufficient memory resources available"), no, failover},
		{apiError(10035, 503, "account not found"), no, misconfigured},
		{apiError(10039, 503, "JetStream not enabled for account"), no, misconfigured},
		{apiError(10047, 500, "insufficient storage resources available"), no, failover},
		{apiError(10054, 400, "message size exceeds maximum allowed"), no, unfit},
		{apiError(10060, 400, "expected stream does not match"), no, misconfigured},
		{apiError(10063, 503, "expected stream sequence does not match"), no, retry},
		{apiError(10070, 400, "wrong last msg ID: x"), maybe, retry},
		{apiError(10071, 400, "wrong last sequence: 7"), maybe, retry},
		{apiError(10076, 503, "JetStream not enabled"), no, misconfigured},
		{apiError(10077, 503, "message too large"), no, unfit},
		{apiError(10077, 503, "maximum bytes exceeded"), no, failover},
		{apiError(10077, 503, "maximum messages exceeded"), no, failover},
		{apiError(10077, 503, "maximum messages per subject exceeded"), no, failover},
		{apiError(10077, 503, "something new"), maybe, retry},
		{apiError(10097, 400, "header size exceeds maximum allowed of 64k"), no, unfit},
		{apiError(10109, 400, "invalid operation on sealed stream"), no, misconfigured},
		{apiError(10118, 500, "stream is offline"), no, retry},
		{apiError(10158, 409, "duplicate message id is in process"), maybe, retry},
		{apiError(10164, 400, "wrong last sequence"), maybe, retry},
		{apiError(10165, 400, "invalid per-message TTL"), no, misconfigured},
		{apiError(10166, 400, "per-message TTL is disabled"), no, misconfigured},
		{apiError(10167, 429, "too many requests"), no, retry},
		{apiError(10194, 500, "stream is offline: x"), no, retry},
		{apiError(10210, 429, "atomic publish too many inflight"), no, retry},
		{apiError(10211, 429, "batch publish too many inflight"), no, retry},
		{apiError(19999, 500, "a code of the future"), maybe, retry},
	} {
		for _, err := range []error{c.err, fmt.Errorf("nats: %w", c.err)} {
			if got := classify(err); got.stored != c.stored || got.action != c.action {
				t.Errorf("%v: stored %v, %v; want %v, %v", err, got.stored, got.action, c.stored, c.action)
			}
		}
		var a *jetstream.APIError
		if errors.As(c.err, &a) {
			tested[a.ErrorCode] = true
		}
	}
	for code := range api {
		if !tested[code] {
			t.Errorf("code %d is not tested", code)
		}
	}
}

// A hint names the subject, the command and the variable, not their fields.
func TestHints(t *testing.T) {
	o := &Output{name: "hub", inbox: "_INBOX_gw1", c: Config{Subject: "acme.{agent}.{lane}"}}
	e := o.fail("publish to acme.gw1.main", "acme.gw1.main", 0, jetstream.ErrNoStreamResponse)
	for _, want := range []string{"hub: publish to acme.gw1.main: ", "no stream takes acme.gw1.main", o.addStream("LOGS"), "nats stream add LOGS --subjects 'acme.>' --storage file --replicas 1 "} {
		if !strings.Contains(e.Error(), want) {
			t.Errorf("%q lacks %q", e, want)
		}
	}
	o.c.Stream = "FLEET"
	hints := []string{}
	for _, c := range client {
		hints = append(hints, o.fail("x", "logs.a", 0, c.err).Error())
	}
	for code := range api {
		hints = append(hints, o.fail("x", "logs.a", 0, apiError(code, 0, "")).Error())
	}
	for _, h := range hints {
		if strings.ContainsAny(h, "{}") {
			t.Errorf("a field is not filled in: %q", h)
		}
	}
	if s := o.fail("x", "logs.a", 0, apiError(10060, 400, "")).Error(); !strings.Contains(s, "SPILLWAY_OUTPUT_HUB_STREAM") {
		t.Errorf("%q does not name the variable", s)
	}
	if s := o.fail("x", "logs.a", 0, nats.ErrAuthorization).Error(); !strings.Contains(s, "_USER and _PASSWORD") || !strings.Contains(s, "the user in _URL") {
		t.Errorf("%q does not name all ways to log in", s)
	}
	if s := o.fail("x", "logs.a", 0, errNoInbox).Error(); !strings.Contains(s, "_INBOX_gw1.>") {
		t.Errorf("%q does not name the inbox", s)
	}
}

// What was never sent is not stored, whatever the reason was.
func TestNotSent(t *testing.T) {
	o := &Output{name: "hub"}
	for _, cause := range []error{context.Canceled, nats.ErrDisconnected, errNoInbox, errors.New("?")} {
		if stored, _ := outputs.Classify(o.fail("x", "a", 0, &notSent{cause})); stored != no {
			t.Errorf("%v before anything was sent: stored %v", cause, stored)
		}
	}
}

// The subject of a refusal is taken out of the server's text, which is all there is.
func TestAsyncErrors(t *testing.T) {
	l := &link{changed: make(chan struct{}), denied: map[string]error{}, log: slog.New(slog.DiscardHandler)}
	changed, err := l.refusal("logs.a")
	if err != nil {
		t.Fatal(err)
	}
	l.asyncError(fmt.Errorf("%w: %s", nats.ErrPermissionViolation, `Permissions Violation for Publish to "logs.a"`))
	select {
	case <-changed:
	default:
		t.Error("who waits is not woken")
	}
	if _, err := l.refusal("logs.a"); !errors.Is(err, errDenied) {
		t.Errorf("logs.a: %v", err)
	}
	if _, err := l.refusal("logs.b"); err != nil {
		t.Errorf("logs.b: %v", err)
	}
	l.asyncError(nats.ErrSlowConsumer)
	l.asyncError(fmt.Errorf("%w: %s", nats.ErrPermissionViolation, `Permissions Violation for Subscription to "_INBOX_gw1.x.*"`))
	if _, err := l.refusal("logs.b"); !errors.Is(err, errNoInbox) {
		t.Errorf("no inbox, and logs.b: %v", err)
	}
}
