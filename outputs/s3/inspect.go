package s3

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"spillway/outputs"
)

var _ outputs.Inspector = (*Output)(nil)

// skewed is how far this host's clock may be from the server's without a word.
const skewed = 30 * time.Second

// Inspect implements outputs.Inspector. It stores the object of Probe twice, the
// second time on the condition that there is none.
func (o *Output) Inspect(ctx context.Context, _ outputs.Need) (all []outputs.Finding) {
	good := func(what, format string, args ...any) {
		all = append(all, outputs.Finding{Level: outputs.Good, What: what, Text: fmt.Sprintf(format, args...)})
	}
	cl := o.client.Load()
	c, err := provider{cl.credentials}.Retrieve(ctx)
	if err != nil {
		return append(all, outputs.FindingOf("credentials", o.error("look for AWS credentials", err)))
	}
	until := ""
	if c.CanExpire {
		until = ", valid until " + c.Expires.UTC().Format(time.RFC3339)
	}
	good("credentials", "access key %s from %s%s", c.AccessKeyID, c.Source, until)

	so := cl.s3.Options()
	where := "s3://" + o.c.Bucket + "/" + o.probeKey() + " in region " + so.Region
	if so.BaseEndpoint != nil {
		where += " at " + *so.BaseEndpoint
	}
	var header http.Header
	start := time.Now()
	err = o.probe(ctx, nil, seen(&header))
	middle := start.Add(time.Since(start) / 2)
	if skew := skew(header, middle); skew.Abs() > skewed {
		all = append(all, outputs.Finding{Level: outputs.Warning, What: "clock", Text: fmt.Sprintf("the server's clock says %s, this host's %s: %v apart",
			middle.Add(skew).UTC().Format(time.RFC3339), middle.UTC().Format(time.RFC3339), skew.Abs().Round(time.Second)),
			Hint: "set the clock of this host (chrony, systemd-timesyncd): times of records and keys come from it"})
	}
	if err != nil {
		f := outputs.FindingOf("put", o.error("put "+where+" after "+outputs.Took(start), err))
		switch code, status := answer(err); {
		case status == 0 && f.Hint == "":
			f.Hint = "see whether an S3 server listens there, and what is between: names, routes, firewalls, proxies"
		case code == "NoSuchBucket":
			f.Hint = o.createBucket(so)
		case code == "AccessDenied" || code == "" && status == http.StatusForbidden:
			f.Hint = "let this access key s3:PutObject on " + o.arn() + ", and kms:GenerateDataKey on the bucket's key if it has one"
		}
		return append(all, f)
	}
	good("put", "%s: stored in %s", where, outputs.Took(start))
	if o.c.Conditional == Off {
		return all
	}
	start = time.Now()
	switch err := o.probe(ctx, aws.String("*")); {
	case isExists(err):
		good("condition", "If-None-Match: refused to store it again (412) in %s", outputs.Took(start))
	case err == nil:
		all = append(all, outputs.Finding{Level: outputs.Warning, What: "condition", Text: "If-None-Match: the server stored an object that was there",
			Hint: "a repeated object replaces itself with the same bytes: set CONDITIONAL=off to accept that, or use a server that knows conditional writes"})
	case isNotImplemented(err):
		f := outputs.FindingOf("condition", o.error("put with If-None-Match", err))
		f.Hint = "set CONDITIONAL=off: a repeated object then replaces itself with the same bytes"
		if o.c.Conditional == Auto {
			f.Level = outputs.Warning
		}
		all = append(all, f)
	default:
		all = append(all, outputs.FindingOf("condition", o.error("put with If-None-Match", err)))
	}
	return all
}

// createBucket is the command that would make the bucket.
func (o *Output) createBucket(so s3.Options) string {
	command := "aws s3api create-bucket --bucket " + o.c.Bucket
	if so.BaseEndpoint != nil {
		return command + " --endpoint-url " + *so.BaseEndpoint
	}
	command += " --region " + so.Region
	if so.Region != "us-east-1" { // which takes no constraint
		command += " --create-bucket-configuration LocationConstraint=" + so.Region
	}
	return command
}

// arn names all objects of the output.
func (o *Output) arn() string {
	arn := "arn:aws:s3:::" + o.c.Bucket + "/"
	if o.c.Prefix != "" {
		arn += o.c.Prefix + "/"
	}
	return arn + "*"
}

// seen notes the headers of each answer.
func seen(header *http.Header) func(*s3.Options) {
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("Seen",
			func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
				out, metadata, err := next.HandleDeserialize(ctx, in)
				if r, ok := out.RawResponse.(*smithyhttp.Response); ok {
					*header = r.Header
				}
				return out, metadata, err
			}), middleware.Before)
	})
}

// skew is how far the Date of an answer is ahead of now; 0 when there is none. It
// has whole seconds.
func skew(header http.Header, now time.Time) time.Duration {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return 0
	}
	return date.Sub(now)
}
