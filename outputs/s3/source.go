package s3

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// source reads the objects of one bucket.
type source struct {
	*client
	bucket, prefix string
}

// NewSource returns the objects of bucket whose keys begin with prefix and a
// slash, in the order of their keys; keys that are not Spillway's, the probe's
// among them, are stepped over. Of c it uses what reaches the server (Endpoint,
// Region, PathStyle). The reader needs s3:ListBucket and s3:GetObject.
func NewSource(ctx context.Context, bucket, prefix string, c Config) (outputs.Source, error) {
	cl, err := newClient(ctx, c)
	if err != nil {
		return nil, err
	}
	return &source{client: cl, bucket: bucket, prefix: prefix}, nil
}

// Objects lists the bucket a page at a time and gets each object when it is
// yielded.
func (s *source) Objects(ctx context.Context) iter.Seq2[*outputs.Object, error] {
	return func(yield func(*outputs.Object, error) bool) {
		defer s.http.CloseIdleConnections()
		in := &s3.ListObjectsV2Input{Bucket: &s.bucket}
		if s.prefix != "" {
			in.Prefix = aws.String(s.prefix + "/")
		}
		for pages := s3.NewListObjectsV2Paginator(s.s3, in); pages.HasMorePages(); {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(nil, fmt.Errorf("list s3://%s/%s: %w", s.bucket, s.prefix, &shortError{err}))
				return
			}
			for _, entry := range page.Contents {
				object, err := outputs.ParseKey(aws.ToString(entry.Key))
				if err != nil {
					if !strings.Contains("/"+aws.ToString(entry.Key), "/_probe/") {
						outputs.Stranger(ctx, aws.ToString(entry.Key), nil)
					}
					continue
				}
				err = s.get(ctx, object)
				var gone *types.NoSuchKey
				if errors.As(err, &gone) {
					continue // deleted since it was listed
				}
				if err != nil {
					yield(nil, fmt.Errorf("get s3://%s/%s: %w", s.bucket, object.Name, &shortError{err}))
					return
				}
				if !yield(object, nil) {
					return
				}
			}
		}
	}
}

// get opens o's body and adds what its metadata says. An object without (copied by
// a tool that drops it), or with metadata that can't be true, has what its key says.
func (s *source) get(ctx context.Context, o *outputs.Object) error {
	out, err := s.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &o.Name})
	if err != nil {
		return err
	}
	if err := addMetadata(o, out.Metadata); err != nil {
		outputs.Stranger(ctx, o.Name, err)
		o.Before, o.Seal, o.Sizes, o.Attempt = batch.Seal{}, batch.Seal{}, nil, 0
	}
	o.Body = out.Body
	return nil
}

// addMetadata is the reverse of metadata for what a key does not say.
func addMetadata(o *outputs.Object, m map[string]string) (err error) {
	if v, ok := m[metaBefore]; ok {
		if o.Before, err = batch.ParseSeal(v); err != nil {
			return fmt.Errorf("%s: %w", metaBefore, err)
		}
	}
	if v, ok := m[metaSeal]; ok {
		if o.Seal, err = batch.ParseSeal(v); err != nil {
			return fmt.Errorf("%s: %w", metaSeal, err)
		}
	}
	if v, ok := m[metaBatches]; ok {
		if o.Sizes, err = batch.ParseSizes(v); err != nil {
			return fmt.Errorf("%s: %w", metaBatches, err)
		}
	}
	if v, ok := m[metaAttempt]; ok {
		if o.Attempt, err = strconv.Atoi(v); err != nil {
			return fmt.Errorf("%s: %w", metaAttempt, err)
		}
	}
	return nil
}
