package s3

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"spillway/outputs"
)

// Config is SPILLWAY_OUTPUT_<NAME>_* of an S3 output. Credentials are not in it:
// they come from the AWS SDK's own chain (AWS_ACCESS_KEY_ID, AWS_PROFILE, a
// container's or instance's role, …).
type Config struct {
	Bucket string `env:"-"` // from s3://bucket/prefix
	Prefix string `env:"-"` // before every key, without slashes at its ends; "" is none

	Endpoint    string        `env:"ENDPOINT" doc:"http or https URL of an S3-compatible server; empty is Amazon S3"`
	Region      string        `env:"REGION" doc:"region of the bucket" default:"AWS_REGION; with ENDPOINT us-east-1"`
	PathStyle   Choice        `env:"PATH_STYLE" envDefault:"auto" doc:"true: the bucket is part of the path, false: of the host name; auto: true with ENDPOINT"`
	Conditional Choice        `env:"CONDITIONAL" envDefault:"auto" doc:"on: an object is only created, never replaced (If-None-Match); off: it may be replaced by the same bytes; auto: on, until the server turns out to know no such condition"`
	RollBytes   outputs.Size  `env:"ROLL_BYTES" envDefault:"8MiB" doc:"most bytes of one object"`
	RollAge     time.Duration `env:"ROLL_AGE" envDefault:"5m" doc:"how long the first batch of an object may wait for more"`
	RollBatches int           `env:"ROLL_BATCHES" envDefault:"200" doc:"most batches in one object, at most 200"`
	Timeout     time.Duration `env:"TIMEOUT" envDefault:"30s" doc:"how long one attempt to store an object may take, to which comes its size at MIN_RATE"`
	MinRate     outputs.Size  `env:"MIN_RATE" envDefault:"32KiB" doc:"bytes a second that the uplink carries at least"`
}

// maxBatches keeps the sizes of an object's batches within its metadata, of which
// S3 takes 2 KB.
const maxBatches = 200

// maxPrefix keeps keys below the 1,024 bytes that S3 takes.
const maxPrefix = 700

// Validate returns what is wrong with c, one line for each option.
func (c *Config) Validate() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.Bucket == "", "URL: want s3://bucket/prefix")
	parts := strings.Split(c.Prefix, "/")
	bad(c.Prefix != "" && slices.ContainsFunc(parts, func(p string) bool { return p == "" || p == "." || p == ".." }),
		"URL: the prefix %q has an element that is empty, . or ..", c.Prefix)
	last := parts[len(parts)-1]
	bad(last == "failover" || last == "large", "URL: the prefix %q may not end in %s, which marks objects of a failover: add an element", c.Prefix, last)
	bad(len(c.Prefix) > maxPrefix, "URL: the prefix is longer than %d bytes", maxPrefix)
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		bad(err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "",
			"ENDPOINT: want http://host:port or https://host:port, without user or query")
	}
	bad(c.RollBytes <= 0, "ROLL_BYTES=%v: want a size above 0", c.RollBytes)
	bad(c.RollAge < 0, "ROLL_AGE=%v: want 0 or more", c.RollAge)
	bad(c.RollBatches <= 0 || c.RollBatches > maxBatches, "ROLL_BATCHES=%d: want 1 to %d", c.RollBatches, maxBatches)
	bad(c.Timeout <= 0, "TIMEOUT=%v: want a duration above 0", c.Timeout)
	bad(c.MinRate <= 0, "MIN_RATE=%v: want a size above 0", c.MinRate)
	return errors.Join(errs...)
}

// ParseURL splits s3://bucket/prefix. Slashes around the prefix don't count.
func ParseURL(s string) (bucket, prefix string, err error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return "", "", fmt.Errorf("%q: want s3://bucket/prefix", s)
	}
	return u.Host, strings.Trim(u.Path, "/"), nil
}

// Choice is a switch that may be left to the output.
type Choice uint8

// Choices.
const (
	Auto Choice = 0
	On   Choice = 1
	Off  Choice = 2
)

// UnmarshalText reads auto, or a boolean in any of its spellings.
func (c *Choice) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "auto":
		*c = Auto
	case "true", "on", "yes", "1":
		*c = On
	case "false", "off", "no", "0":
		*c = Off
	default:
		return fmt.Errorf("%q: want auto, true or false", text)
	}
	return nil
}

// String returns auto, true or false.
func (c Choice) String() string {
	switch c {
	case On:
		return "true"
	case Off:
		return "false"
	}
	return "auto"
}
