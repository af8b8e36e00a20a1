package jetstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/outputs"
)

// class is what an error says about a batch, and what follows. The hint may hold
// {subject}, {stream} (the configured one, else LOGS), {add} (the command that makes
// it), {inbox} (what acknowledgements come to) and {var} (the beginning of the
// output's variables).
type class struct {
	stored outputs.Stored
	action outputs.Action
	hint   string
}

// Errors that this package finds itself.
var (
	errSilent      = errors.New("no answer")
	errWrongStream = errors.New("acknowledged by a stream that should not have it")
	errDenied      = errors.New("permission denied")
	errNoInbox     = errors.New("permission denied to receive acknowledgements")
	errTooLarge    = errors.New("batch larger than the server takes")
	errEnded       = errors.New("ended before all was acknowledged")

	// What nats.go returns for its ErrMaxConnectionsExceeded in a handshake is equal
	// to this and not to that.
	errMaxConnections = errors.New("nats: " + nats.MAX_CONNECTIONS_ERR)
)

const (
	hintGrant       = "grant publish on {subject} to this user"
	hintFull        = "raise the limits of stream {stream} (nats stream edit {stream}), or let it discard old messages"
	hintAuth        = "check {var}CREDS_FILE, _NKEY_FILE, _USER and _PASSWORD, _TOKEN, or the user in _URL, and that the server knows this user"
	hintConnections = "raise max_connections of the server"
	hintReach       = "see whether a nats-server listens there, and what is between: names, routes, firewalls"
	hintTLS         = "check the certificates, {var}TLS_CA_FILE and this host's clock"
)

// client are the errors of nats.go and of this package. The first that errors.Is
// finds is taken.
var client = []struct {
	err error
	class
}{
	{errTooLarge, class{outputs.StoredNo, outputs.Unfit, "raise max_payload of the server"}},
	{nats.ErrMaxPayload, class{outputs.StoredNo, outputs.Unfit, "raise max_payload of the server"}},
	{errDenied, class{outputs.StoredNo, outputs.Misconfigured, hintGrant}},
	{errNoInbox, class{outputs.StoredMaybe, outputs.Misconfigured, "grant subscribe on {inbox} to this user, or set {var}INBOX_PREFIX to what it may use"}},
	{errWrongStream, class{outputs.StoredYes, outputs.Misconfigured, "two streams take {subject}, or {var}STREAM and {var}DOMAIN name another one"}},
	{errSilent, class{outputs.StoredMaybe, outputs.Retry, "the server hangs or can't write to its disk, or the stream has no_ack set"}},
	{outputs.ErrUnchecked, class{outputs.StoredNo, outputs.Retry, ""}},
	{errEnded, class{outputs.StoredMaybe, outputs.Retry, ""}},
	{context.Canceled, class{outputs.StoredMaybe, outputs.Retry, ""}},
	{context.DeadlineExceeded, class{outputs.StoredMaybe, outputs.Retry, ""}},
	{jetstream.ErrAsyncPublishTimeout, class{outputs.StoredMaybe, outputs.Retry, ""}},
	{jetstream.ErrNoStreamResponse, class{outputs.StoredNo, outputs.Retry, "no stream takes {subject}, or its leader is being elected: {add}"}},
	// A plain responder listens on our subject and answers what is no acknowledgement.
	{jetstream.ErrInvalidJSAck, class{outputs.StoredMaybe, outputs.Misconfigured, "something that is no stream answers on {subject}: use another subject"}},
	{nats.ErrReconnectBufExceeded, class{outputs.StoredNo, outputs.Retry, ""}},
	{nats.ErrConnectionReconnecting, class{outputs.StoredNo, outputs.Retry, ""}},
	{nats.ErrConnectionClosed, class{outputs.StoredNo, outputs.Retry, ""}},
	{nats.ErrConnectionDraining, class{outputs.StoredNo, outputs.Retry, ""}},
	{nats.ErrDisconnected, class{outputs.StoredMaybe, outputs.Retry, ""}},
	{nats.ErrStaleConnection, class{outputs.StoredMaybe, outputs.Retry, ""}},
	{nats.ErrAuthorization, class{outputs.StoredNo, outputs.Failover, hintAuth}},
	{nats.ErrAuthExpired, class{outputs.StoredNo, outputs.Failover, hintAuth}},
	{nats.ErrAuthRevoked, class{outputs.StoredNo, outputs.Failover, hintAuth}},
	{nats.ErrAccountAuthExpired, class{outputs.StoredNo, outputs.Failover, hintAuth}},
	{nats.ErrMaxConnectionsExceeded, class{outputs.StoredNo, outputs.Retry, hintConnections}},
	{errMaxConnections, class{outputs.StoredNo, outputs.Retry, hintConnections}},
	{nats.ErrMaxAccountConnectionsExceeded, class{outputs.StoredNo, outputs.Retry, "raise the connections of the account"}},
	{nats.ErrHeadersNotSupported, class{outputs.StoredNo, outputs.Misconfigured, "use a nats-server of 2.2 or newer"}},
	{nats.ErrSecureConnRequired, class{outputs.StoredNo, outputs.Misconfigured, "write {var}URL as in tls://host:4222"}},
	{nats.ErrSecureConnWanted, class{outputs.StoredNo, outputs.Misconfigured, "the server has no TLS: set it up there, or write {var}URL as in nats://host:4222"}},
	{nats.ErrBadSubject, class{outputs.StoredNo, outputs.Misconfigured, "change {var}SUBJECT"}},
}

// api are the answers of JetStream, by their error code (server/errors.json of
// nats-server 2.15). A code that is not here is retried.
var api = map[jetstream.ErrorCode]class{
	10002: {outputs.StoredNo, outputs.Failover, "raise the JetStream limits of the account"}, // account resources; its status is 400, yet the batch is well
	10008: {outputs.StoredNo, outputs.Retry, ""},                                             // JetStream temporarily unavailable
	10009: {outputs.StoredNo, outputs.Retry, ""},                                             // not the leader
	10023: {outputs.StoredNo, outputs.Failover, "the server is out of resources"},
	10028: {outputs.StoredNo, outputs.Failover, "the server is out of memory for JetStream"},
	10035: {outputs.StoredNo, outputs.Misconfigured, "the account does not exist"},
	10039: {outputs.StoredNo, outputs.Misconfigured, "enable JetStream for the account"},
	10047: {outputs.StoredNo, outputs.Failover, "the server is out of disk space for JetStream"},
	10054: {outputs.StoredNo, outputs.Unfit, "raise max_msg_size of stream {stream}"},
	10060: {outputs.StoredNo, outputs.Misconfigured, "{var}STREAM is not the stream that takes {subject}"}, // expected stream does not match
	10063: {outputs.StoredNo, outputs.Retry, ""},                                                           // expected stream sequence does not match
	10070: {outputs.StoredMaybe, outputs.Retry, ""},                                                        // wrong last message id
	10071: {outputs.StoredMaybe, outputs.Retry, ""},                                                        // wrong last sequence
	10076: {outputs.StoredNo, outputs.Misconfigured, "enable JetStream on the server"},
	10097: {outputs.StoredNo, outputs.Unfit, ""}, // headers above 64 KiB
	10109: {outputs.StoredNo, outputs.Misconfigured, "stream {stream} is sealed: make another one for {subject}"},
	10118: {outputs.StoredNo, outputs.Retry, ""},    // stream offline
	10158: {outputs.StoredMaybe, outputs.Retry, ""}, // the same identity is being stored
	10164: {outputs.StoredMaybe, outputs.Retry, ""}, // wrong last sequence, without the number
	10165: {outputs.StoredNo, outputs.Misconfigured, ""},
	10166: {outputs.StoredNo, outputs.Misconfigured, ""},
	10167: {outputs.StoredNo, outputs.Retry, ""}, // too many requests
	10194: {outputs.StoredNo, outputs.Retry, ""}, // stream offline, with a reason
	10210: {outputs.StoredNo, outputs.Retry, ""},
	10211: {outputs.StoredNo, outputs.Retry, ""},
}

// Code 10077, "store failed", is the one code whose description must be read: it
// is both a full stream and a message that is too large, and the texts are those
// of server/store.go.
const (
	codeStoreFailed   jetstream.ErrorCode = 10077
	descTooLarge                          = "message too large"
	descMaxBytes                          = "maximum bytes exceeded"
	descMaxMsgs                           = "maximum messages exceeded"
	descMaxPerSubject                     = "maximum messages per subject exceeded"
)

// classify says what err means for the batch that it was the answer to.
func classify(err error) class {
	var a *jetstream.APIError
	if errors.As(err, &a) {
		if a.ErrorCode == codeStoreFailed {
			switch a.Description {
			case descTooLarge:
				return class{outputs.StoredNo, outputs.Unfit, "raise max_payload of the server and max_msg_size of stream {stream}"}
			case descMaxBytes, descMaxMsgs, descMaxPerSubject:
				return class{outputs.StoredNo, outputs.Failover, hintFull}
			}
			return class{outputs.StoredMaybe, outputs.Retry, "see the server's log"}
		}
		if c, ok := api[a.ErrorCode]; ok {
			return c
		}
		return class{outputs.StoredMaybe, outputs.Retry, ""}
	}
	for _, e := range client {
		if errors.Is(err, e.err) {
			return e.class
		}
	}
	if isTLS(err) {
		return class{outputs.StoredNo, outputs.Misconfigured, hintTLS}
	}
	return class{outputs.StoredMaybe, outputs.Retry, ""}
}

// election is how long nobody may lead a stream before that is no election any more:
// it was deleted, its servers are down, or JetStream gave up over a full disk.
const election = 10 * time.Second

// patience is election for the answers of a stream that nobody leads, else 0.
func patience(err error) time.Duration {
	var a *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return election
	case errors.As(err, &a):
		switch a.ErrorCode {
		case 10008, 10009, 10063, 10118, 10194:
			return election
		}
	}
	return 0
}

// isTLS reports whether err is a certificate that is not trusted, or a handshake
// with something that speaks no TLS or refused us.
func isTLS(err error) bool {
	var (
		verify    *tls.CertificateVerificationError
		alert     tls.AlertError
		record    tls.RecordHeaderError
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		host      x509.HostnameError
	)
	return errors.As(err, &verify) || errors.As(err, &alert) || errors.As(err, &record) ||
		errors.As(err, &authority) || errors.As(err, &invalid) || errors.As(err, &host)
}
