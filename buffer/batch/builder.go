package batch

import "time"

// Sealing limits that SPILLWAY_BATCH_* defaults to.
const (
	DefaultBytes   = 512 << 10 // compressed, an estimate while the batch is open
	DefaultRaw     = 4 << 20
	DefaultRecords = 5000
	DefaultAge     = time.Second
)

// BuilderOptions are the limits at which an open batch is due. A zero field is the default.
type BuilderOptions struct {
	Bytes   int           // compressed bytes, estimated with the ratio of batches before; at most MaxPayload
	Raw     int           // bytes before compression
	Records int           // records
	Age     time.Duration // since the first record was added
	Flags   Flags         // RawLines for batches that hold message bytes only
}

func (o BuilderOptions) withDefaults() BuilderOptions {
	if o.Bytes <= 0 || o.Bytes > MaxPayload {
		o.Bytes = DefaultBytes
	}
	if o.Raw <= 0 {
		o.Raw = DefaultRaw
	}
	if o.Records <= 0 {
		o.Records = DefaultRecords
	}
	if o.Age <= 0 {
		o.Age = DefaultAge
	}
	return o
}

// Open is an open batch: numbered lines, one behind the other, and what the
// header will say of them. It is not safe for concurrent use and is handed from
// the goroutine that fills it to the one that encodes it.
type Open struct {
	Lines     []byte // whole lines, each ending in \n; owned by the Open
	First     uint64
	Count     uint32
	FirstTime int64 // receive time, unix ns
	LastTime  int64
	Flags     Flags
}

// Reset empties o for a batch whose first record has number first. Memory is kept.
func (o *Open) Reset(first uint64, flags Flags) {
	*o = Open{Lines: o.Lines[:0], First: first, Flags: flags}
}

// Next is the number that the next line gets.
func (o *Open) Next() uint64 { return o.First + uint64(o.Count) }

// Added notes that one line, received at t (unix ns), was appended to o.Lines
// under the number Next() had.
func (o *Open) Added(t int64) {
	if o.Count == 0 {
		o.FirstTime = t
	}
	o.LastTime = t
	o.Count++
}

// Builder decides when an open batch is due. It holds no lines itself, so that
// one Open can be filled while others are encoded. Not safe for concurrent use.
type Builder struct {
	o     BuilderOptions
	ratio float64 // raw bytes per compressed byte, of recent batches
}

// NewBuilder returns a builder with o's limits.
func NewBuilder(o BuilderOptions) *Builder {
	return &Builder{o: o.withDefaults(), ratio: 4}
}

// Due reports whether b must be sealed before another line of n bytes goes in.
func (b *Builder) Due(o *Open, n int) bool {
	return o.Count > 0 && (int(o.Count) >= b.o.Records || len(o.Lines)+n > b.rawLimit())
}

// Full reports whether o has reached a limit.
func (b *Builder) Full(o *Open) bool {
	return int(o.Count) >= b.o.Records || len(o.Lines) >= b.rawLimit()
}

// rawLimit is how many raw bytes an open batch takes at present.
func (b *Builder) rawLimit() int {
	return int(min(float64(b.o.Raw), float64(b.o.Bytes)*b.ratio)) // the product may be above the largest int
}

// Age is how long a batch may stay open.
func (b *Builder) Age() time.Duration { return b.o.Age }

// Flags are the flags every batch of this builder starts with.
func (b *Builder) Flags() Flags { return b.o.Flags }

// Learn tells the builder how a batch compressed, in raw bytes per compressed
// byte; the estimate follows it, downwards at once (the next batch must fit) and
// upwards slowly. Batches of a few KiB compress badly and say little: leave them out.
func (b *Builder) Learn(ratio float64) {
	r := max(1, ratio)
	if r > b.ratio {
		r = b.ratio + (r-b.ratio)/4
	}
	b.ratio = r
}
