package outputs

import (
	"context"
	"fmt"
	"io"
	"iter"
	"path"
	"strconv"
	"strings"

	"spillway/buffer/batch"
)

// Object is one thing that a far side holds: an S3 object, a file, a message.
// What a source can't tell is zero.
type Object struct {
	Name string // key, file name, or subject and stream sequence

	Lane, Site, Agent string
	Epoch             batch.Epoch
	First, Last       uint64
	CRC               uint32 // of the body, as its name says
	Codec             batch.Codec
	Reason            string // "", "failover" or "large"
	Raw               bool   // lines are message bytes, not records

	Before, Seal batch.Seal
	Sizes        []batch.Size // of the batches inside; nil when unknown
	Attempt      int
	Duplicate    string // identity in the far side's own words (Nats-Msg-Id), "" when it has none

	Body io.ReadCloser // the delivered bytes; the consumer closes it
}

// Source reads back what an output stored, in the far side's order.
type Source interface {
	// Objects yields each object once. The sequence ends after the first error.
	Objects(ctx context.Context) iter.Seq2[*Object, error]
}

type strangerKey struct{}

// WithStrangers returns a context with which a Source calls f for what it holds
// besides whole objects: err is nil for what is not Spillway's; else name is, and
// err says what can't be true of it. f is called between two yields.
func WithStrangers(ctx context.Context, f func(name string, err error)) context.Context {
	return context.WithValue(ctx, strangerKey{}, f)
}

// Stranger is for a Source to say so; see WithStrangers.
func Stranger(ctx context.Context, name string, err error) {
	if f, ok := ctx.Value(strangerKey{}).(func(string, error)); ok {
		f(name, err)
	}
}

// ParseKey restores from a key what Key put into it. It is how a reader knows an
// object of Spillway from a stranger's.
func ParseKey(key string) (*Object, error) {
	bad := fmt.Errorf("key %q: want …/<lane>/dt=…/site=…/hr=…/<agent>/<epoch>-<first>-<last>-<crc>.ndjson.zst", key)
	o := &Object{Name: key}
	p := strings.Split(key, "/")
	if len(p) < 6 {
		return nil, bad
	}
	p, lead := p[len(p)-6:], p[:len(p)-6]
	o.Lane, o.Agent = p[0], p[4]
	site, isSite := strings.CutPrefix(p[2], "site=")
	if !strings.HasPrefix(p[1], "dt=") || !isSite || !strings.HasPrefix(p[3], "hr=") {
		return nil, bad
	}
	o.Site = site
	if n := len(lead); n > 0 && (lead[n-1] == "failover" || lead[n-1] == "large") {
		o.Reason = lead[n-1]
	}
	base := path.Base(key)
	switch path.Ext(base) {
	case ".zst":
		o.Codec, base = batch.Zstd, strings.TrimSuffix(base, ".zst")
	case ".gz":
		o.Codec, base = batch.Gzip, strings.TrimSuffix(base, ".gz")
	}
	base, o.Raw = strings.CutSuffix(strings.TrimSuffix(base, ".ndjson"), ".log")
	f := strings.Split(base, "-")
	if len(f) != 4 || len(f[3]) != 8 {
		return nil, bad
	}
	crc, err := strconv.ParseUint(f[3], 16, 32)
	if err != nil {
		return nil, bad
	}
	o.CRC = uint32(crc)
	if o.Epoch, err = batch.ParseEpoch(f[0]); err != nil {
		return nil, bad
	}
	first, err1 := batch.ParseEpoch(f[1])
	last, err2 := batch.ParseEpoch(f[2])
	if err1 != nil || err2 != nil || first == 0 || last < first {
		return nil, bad
	}
	o.First, o.Last = uint64(first), uint64(last)
	return o, nil
}
