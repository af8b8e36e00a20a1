//go:build !no_s3

package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"spillway/outputs"
	"spillway/outputs/s3"
)

func init() {
	kinds = append(kinds, kind{
		name: "s3", schemes: []string{"s3"}, example: "s3://bucket/prefix",
		config: func() any { return new(s3.Config) },
		url: func(config any, raw string) (err error) {
			c := config.(*s3.Config)
			if c.Bucket, c.Prefix, err = s3URL(raw); err != nil && strings.Contains(raw, "?") {
				return errors.New("want s3://bucket/prefix: options have variables of their own, such as ENDPOINT and REGION")
			}
			return err
		},
		place: func(config any) string {
			c := config.(*s3.Config)
			return c.Endpoint + " " + c.Bucket + "/" + c.Prefix
		},
		largest: func(any) outputs.Size { return 0 },
		quiet:   true,
		open: func(config any, name string, env OpenEnv) (outputs.Inspector, error) {
			return s3.New(name, env.Site, env.Agent, *config.(*s3.Config), env.Log)
		},
		source: s3Source,
	})
}

// s3Source reads s3://bucket/prefix[?endpoint=…&region=…&path_style=…].
func s3Source(ctx context.Context, raw string) (outputs.Source, error) {
	bare, query, _ := strings.Cut(raw, "?")
	bucket, prefix, err := s3URL(bare)
	if err != nil {
		return nil, err
	}
	options, err := queryOptions(query, "endpoint", "region", "path_style")
	if err != nil {
		return nil, err
	}
	c := s3.Config{Bucket: bucket, Prefix: prefix, Endpoint: options["endpoint"], Region: options["region"]}
	if v := options["path_style"]; v != "" {
		if err := c.PathStyle.UnmarshalText([]byte(v)); err != nil {
			return nil, fmt.Errorf("path_style: %w", err)
		}
	}
	return s3.NewSource(ctx, bucket, prefix, c)
}

// s3URL splits a URL. Its error does not show it: people put keys there.
func s3URL(raw string) (bucket, prefix string, err error) {
	bucket, prefix, err = s3.ParseURL(raw)
	if err != nil {
		err = errors.New("want s3://bucket/prefix")
	}
	return bucket, prefix, err
}

// queryOptions reads the query of a source's URL, which may hold the names given.
func queryOptions(query string, names ...string) (map[string]string, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	options := map[string]string{}
	for k, v := range values {
		if !slices.Contains(names, k) {
			return nil, fmt.Errorf("no option %q: use %s", k, or(names))
		}
		options[k] = v[len(v)-1]
	}
	return options, nil
}
