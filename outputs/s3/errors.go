package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"spillway/outputs"
)

// credentialsError is an error of the credentials chain, before any request.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "no AWS credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// errStrangeAnswer means that a success is not one of S3: every S3 server names the
// ETag of what it stored.
var errStrangeAnswer = errors.New("answered with success, but without the object's ETag, or with another checksum")

// class says what an answer means.
type class struct {
	codes  []string // of the error's body; "KMS." stands for all that begin so
	status int      // used when no code matches; 0: none
	stored outputs.Stored
	action outputs.Action
	hint   string
}

// Short names for the table.
const (
	no            = outputs.StoredNo
	maybe         = outputs.StoredMaybe
	retry         = outputs.Retry
	failover      = outputs.Failover
	misconfigured = outputs.Misconfigured
)

const otherRegion = "set REGION to the bucket's"

// classes are the answers of S3 and of servers like it to a PutObject. Where an
// error has a code (Amazon S3 API reference, "Error responses") it decides,
// elsewhere the status. What is not here: 412 (see Publish), and statuses by their
// hundred.
var classes = []class{
	{[]string{"ConditionalRequestConflict", "OperationAborted"}, http.StatusConflict, maybe, retry, ""},
	{[]string{"RequestTimeout"}, http.StatusRequestTimeout, maybe, retry, ""},
	{[]string{"InternalError"}, http.StatusInternalServerError, maybe, retry, ""},
	{[]string{"SlowDown", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"},
		http.StatusTooManyRequests, no, retry, ""},
	{[]string{"ServiceUnavailable"}, http.StatusServiceUnavailable, maybe, retry, ""},
	{[]string{"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody"}, 0, no, retry,
		"the bytes changed on the way: look for a proxy that alters bodies; if it lasts, check the buffer with spillway buffer verify"},
	{[]string{"RequestTimeTooSkewed"}, 0, no, misconfigured,
		"set the clock of this host"},
	{[]string{"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "XAdminUserNotFound"}, 0, no, misconfigured,
		"renew the credentials: the server does not take them"},
	{[]string{"SignatureDoesNotMatch"}, 0, no, misconfigured,
		"the secret key is wrong, or a proxy changes headers"},
	{[]string{"KMS."}, 0, no, misconfigured,
		"enable the bucket's KMS key and grant kms:GenerateDataKey on it"},
	{[]string{"AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp"}, http.StatusForbidden, no, misconfigured,
		"grant s3:PutObject on this key, and kms:GenerateDataKey when the bucket encrypts with KMS"},
	{[]string{"Unauthorized"}, http.StatusUnauthorized, no, misconfigured,
		"the credentials are not taken"},
	{[]string{"NoSuchBucket", "InvalidBucketName"}, http.StatusNotFound, no, misconfigured,
		"create the bucket, or correct URL, ENDPOINT and PATH_STYLE"},
	{[]string{"MethodNotAllowed"}, http.StatusMethodNotAllowed, no, misconfigured,
		"this is no S3 endpoint: correct ENDPOINT and PATH_STYLE"},
	{[]string{"PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"},
		http.StatusMovedPermanently, no, misconfigured, otherRegion},
	{nil, http.StatusTemporaryRedirect, no, misconfigured, otherRegion},
	{[]string{"NotImplemented"}, http.StatusNotImplemented, no, misconfigured,
		"the server lacks something of the request: set CONDITIONAL=off"},
	{[]string{"InvalidArgument", "InvalidRequest"}, 0, no, misconfigured,
		"the server does not take a header of the request: try CONDITIONAL=off"},
	{[]string{"EntityTooLarge", "MaxMessageLengthExceeded"}, http.StatusRequestEntityTooLarge, no, outputs.Unfit,
		"the server, or a proxy before it, takes no object of this size: lower ROLL_BYTES, for a single batch SPILLWAY_BATCH_MAX_BYTES"},
	{[]string{"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}, http.StatusInsufficientStorage, no, failover,
		"the storage is full: free space or raise the quota"},
}

// answer returns the error code and the status of a server's answer: "" and 0 when
// there was none.
func answer(err error) (code string, status int) {
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	var re *awshttp.ResponseError
	if errors.As(err, &re) {
		status = re.HTTPStatusCode()
	}
	return code, status
}

// isExists reports whether the key holds an object already (If-None-Match).
func isExists(err error) bool {
	code, status := answer(err)
	return code == "PreconditionFailed" || status == http.StatusPreconditionFailed
}

// isCredentials reports whether other credentials may help.
func isCredentials(err error) bool {
	switch code, _ := answer(err); code {
	case "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId":
		return true
	}
	return false
}

// isNotImplemented reports whether the server may not know a header of the request.
func isNotImplemented(err error) bool {
	code, status := answer(err)
	return code == "NotImplemented" || code == "InvalidArgument" || status == http.StatusNotImplemented
}

// isUnknown reports whether the server refuses for a reason that classes lacks.
func isUnknown(err error) bool {
	code, status := answer(err)
	c := find(code, status)
	return status/100 == 4 && c.codes == nil && c.status == 0
}

// error is the classified form of err, which ended op.
func (o *Output) error(op string, err error) *outputs.Error {
	e := &outputs.Error{Output: o.name, Op: op, Stored: maybe, Action: retry, Err: &shortError{err}}
	code, status := answer(err)
	if status == 0 {
		noAnswer(e)
		return e
	}
	c := find(code, status)
	e.Stored, e.Action, e.Hint = c.stored, c.action, c.hint
	var re *awshttp.ResponseError
	if c.hint == otherRegion && errors.As(err, &re) {
		if region := re.HTTPResponse().Header.Get("X-Amz-Bucket-Region"); region != "" {
			e.Hint = "the bucket is in " + region + ": set REGION to it"
		}
	}
	return e
}

// find returns the class of an answer.
func find(code string, status int) class {
	for _, c := range classes {
		for _, known := range c.codes {
			if code == known || strings.HasSuffix(known, ".") && strings.HasPrefix(code, known) {
				return c
			}
		}
	}
	for _, c := range classes {
		if status == c.status {
			return c
		}
	}
	switch status / 100 {
	case 3:
		return class{stored: no, action: misconfigured, hint: otherRegion}
	case 4:
		return class{stored: no, action: misconfigured, hint: "the server refuses the request: its code says why"}
	}
	return class{stored: maybe, action: retry}
}

// noAnswer classifies an error without an answer of the server.
func noAnswer(e *outputs.Error) {
	var credentials *credentialsError
	var certificate *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var network *net.OpError
	switch {
	case errors.Is(e.Err, context.Canceled):
		// The caller's wish, wherever it struck.
	case errors.Is(e.Err, errStrangeAnswer):
		e.Hint = "something on the way answers in the server's place, as portals do, or ENDPOINT is no S3 server"
	case errors.As(e.Err, &credentials):
		e.Stored, e.Action = no, failover
		e.Hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or another source of the AWS chain; outside EC2 also AWS_EC2_METADATA_DISABLED=true"
	case errors.As(e.Err, &invalid) && invalid.Reason == x509.Expired:
		e.Stored, e.Action, e.Hint = no, misconfigured, "the server's certificate is out of date, or this host's clock is wrong"
	case errors.As(e.Err, &certificate):
		e.Stored, e.Action, e.Hint = no, misconfigured, "name the server's CA file in AWS_CA_BUNDLE, and in ENDPOINT the host that the certificate is for"
	case errors.Is(e.Err, http.ErrSchemeMismatch):
		e.Stored, e.Action, e.Hint = no, misconfigured, "the server does not speak TLS: write http:// in ENDPOINT"
	case errors.As(e.Err, &network) && (network.Op == "dial" || network.Op == "proxyconnect"):
		e.Stored = no // there was no connection to send it on
	}
}

// shortError says of an SDK error what an operator needs; the SDK's own text comes
// with every layer it went through.
type shortError struct{ err error }

func (e *shortError) Unwrap() error { return e.err }

func (e *shortError) Error() string {
	var api smithy.APIError
	var re *awshttp.ResponseError
	var send *smithyhttp.RequestSendError
	var why *url.Error
	var credentials *credentialsError
	switch {
	case errors.As(e.err, &credentials):
		return credentials.Error()
	case errors.As(e.err, &api) && errors.As(e.err, &re):
		s := fmt.Sprintf("%d %s: %s", re.HTTPStatusCode(), api.ErrorCode(), api.ErrorMessage())
		if id := re.ServiceRequestID(); id != "" {
			s += ", request " + id
		}
		return s
	case errors.As(e.err, &send):
		// The key is told anyway; what is left of a url.Error is why.
		cause := send.Err
		if errors.As(cause, &why) {
			cause = why.Err
		}
		if cause == io.EOF {
			return "the connection was closed before an answer"
		}
		return cause.Error()
	case errors.Is(e.err, context.DeadlineExceeded):
		return "no answer within TIMEOUT: " + context.DeadlineExceeded.Error()
	}
	return e.err.Error()
}
