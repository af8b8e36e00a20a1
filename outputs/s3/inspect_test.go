package s3

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"spillway/outputs"
)

// TestInspect is about answers that the server of the conformance tests does not
// give.
func TestInspect(t *testing.T) {
	setenv(t)
	conditional := func(r *http.Request) bool { return r.Header.Get("If-None-Match") != "" }
	for _, tt := range []struct {
		name   string
		change func(*Config)
		answer func(w http.ResponseWriter, r *http.Request)
		want   []outputs.Finding // Text and Hint: parts; without what is Good
	}{
		{"ignores the condition", nil, func(http.ResponseWriter, *http.Request) {},
			[]outputs.Finding{{Level: outputs.Warning, What: "condition", Text: "the server stored an object that was there", Hint: "set CONDITIONAL=off"}}},
		{"is not asked for the condition", func(c *Config) { c.Conditional = Off }, func(http.ResponseWriter, *http.Request) {}, nil},
		{"does not know the condition", nil, func(w http.ResponseWriter, r *http.Request) {
			if conditional(r) {
				refuse(w, 501, "NotImplemented")
			}
		}, []outputs.Finding{{Level: outputs.Warning, What: "condition", Text: "501 NotImplemented", Hint: "set CONDITIONAL=off"}}},
		{"does not know a condition that must be", func(c *Config) { c.Conditional = On }, func(w http.ResponseWriter, r *http.Request) {
			if conditional(r) {
				refuse(w, 501, "NotImplemented")
			}
		}, []outputs.Finding{{Level: outputs.Problem, What: "condition", Text: "501 NotImplemented", Hint: "set CONDITIONAL=off"}}},
		{"fails the second time", nil, func(w http.ResponseWriter, r *http.Request) {
			if conditional(r) {
				refuse(w, 403, "AccessDenied")
			}
		}, []outputs.Finding{{Level: outputs.Problem, What: "condition", Text: "403 AccessDenied", Hint: "s3:PutObject"}}},
		{"another time", nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-90*time.Minute).UTC().Format(http.TimeFormat))
			if conditional(r) {
				refuse(w, 412, "PreconditionFailed")
			}
		}, []outputs.Finding{{Level: outputs.Warning, What: "clock", Text: ": 1h30m", Hint: "set the clock of this host"}}},
		{"another time, and refused for it", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(90*time.Minute).UTC().Format(http.TimeFormat))
			refuse(w, 403, "RequestTimeTooSkewed")
		}, []outputs.Finding{{Level: outputs.Warning, What: "clock", Text: "apart", Hint: "set the clock"},
			{Level: outputs.Problem, What: "put", Text: "403 RequestTimeTooSkewed", Hint: "set the clock of this host"}}},
		{"another region", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Amz-Bucket-Region", "eu-north-1")
			refuse(w, 301, "PermanentRedirect")
		}, []outputs.Finding{{Level: outputs.Problem, What: "put", Text: "in region us-east-1 at http://127.0.0.1:", Hint: "the bucket is in eu-north-1: set REGION to it"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFar(t, false, func(_ int, w http.ResponseWriter, r *http.Request) { tt.answer(w, r) })
			c := settings(f.URL)
			if tt.change != nil {
				tt.change(&c)
			}
			var got []outputs.Finding
			for _, f := range open(t, c).Inspect(t.Context(), outputs.Need{Lanes: []string{"main"}}) {
				if f.Level != outputs.Good {
					got = append(got, f)
				}
			}
			if len(got) != len(tt.want) {
				t.Fatalf("%+v", got)
			}
			for i, want := range tt.want {
				if g := got[i]; g.Level != want.Level || g.What != want.What || !strings.Contains(g.Text, want.Text) || !strings.Contains(g.Hint, want.Hint) {
					t.Errorf("%+v, want %+v", g, want)
				}
			}
		})
	}
}

// TestCreateBucket holds the command to what the tool of AWS takes: us-east-1 has no
// constraint.
func TestCreateBucket(t *testing.T) {
	setenv(t)
	for _, tt := range []struct{ endpoint, region, want string }{
		{"", "us-east-1", "aws s3api create-bucket --bucket logs --region us-east-1"},
		{"", "eu-central-1", "aws s3api create-bucket --bucket logs --region eu-central-1 --create-bucket-configuration LocationConstraint=eu-central-1"},
		{"http://127.0.0.1:9000", "eu-central-1", "aws s3api create-bucket --bucket logs --endpoint-url http://127.0.0.1:9000"},
	} {
		c := settings(tt.endpoint)
		c.Region = tt.region
		o := open(t, c)
		if got := o.createBucket(o.client.Load().s3.Options()); got != tt.want {
			t.Errorf("%s\nwant %s", got, tt.want)
		}
	}
	if got := (&Output{c: Config{Bucket: "logs"}}).arn(); got != "arn:aws:s3:::logs/*" {
		t.Error(got)
	}
}
