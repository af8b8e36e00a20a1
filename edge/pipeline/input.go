package pipeline

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/edge/listen"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/framing/syslog"
	"spillway/framing/vault"
)

// InputOptions configure an input.
type InputOptions struct {
	Name    string
	Lane    *Lane
	Parse   bool // false: the message is the text (PARSE=none)
	Format  syslog.Format
	Zone    *time.Location // of header times without one
	Filter  *Filter        // nil: none
	Vault   *VaultOptions  // nil: it is not Vault that sends; else Parse, Format and Zone mean nothing
	Records ecs.Options
	OnFull  OnFull
}

// Input turns the messages of one listening socket into records of a lane.
type Input struct {
	o InputOptions

	// Counters, only growing.
	Messages  atomic.Int64
	Bytes     atomic.Int64 // of messages, framing not counted
	Failures  atomic.Int64 // messages with error.message, of Vault also those that DropRaw drops
	Truncated atomic.Int64
	Admitted  atomic.Int64 // records handed to the lane

	// Of vault inputs. What a sender was told to send again counts each time.
	Entries       atomic.Int64 // messages that are audit entries
	Torn          atomic.Int64 // entries that were cut off with their connection
	Resent        atomic.Int64 // of these: the whole entry came too, on another connection
	Duplicates    atomic.Int64 // entries that came before, byte for byte
	Probes        atomic.Int64 // entries that enabling an audit device wrote
	RawSecrets    atomic.Int64 // entries with a token that is not hashed
	PrefixMissing atomic.Int64 // messages without the prefix that was asked for
	Missing       atomic.Int64 // responses that did not come within the timeout
	Orphans       atomic.Int64 // responses whose request did not
	Unwatched     atomic.Int64 // requests that were not waited for: too many were
	Alerts        atomic.Int64 // records of Missing and Orphans

	dropped  [lostReasons]atomic.Uint64     // records, by reason
	filtered [filteredReasons]atomic.Uint64 // messages that became no record, by reason

	vault   *vaultInput // nil: it is not Vault that sends
	maxLine int         // maxLine, and less in tests; more than lineRoom
}

// NewInput returns an input.
func NewInput(o InputOptions) *Input {
	if o.OnFull == Refuse {
		o.Lane.refuses.Store(true)
	}
	in := &Input{o: o, maxLine: maxLine}
	if o.Vault != nil {
		in.vault = newVaultInput(*o.Vault)
	}
	return in
}

// Dropped returns how many records the input lost before the lane numbered them,
// by reason: buffer_full, stopped (while there was no room), kernel (before they
// could be read, which Messages does not count). Gap records tell of them.
//
// While no Flush is under way,
//
//	Messages + Alerts = Admitted + buffer_full + stopped + all of Filtered
func (in *Input) Dropped() map[string]uint64 {
	m := make(map[string]uint64, lostReasons-1)
	for r := lostFull; r < lostReasons; r++ {
		m[r.String()] = in.dropped[r].Load()
	}
	return m
}

// Filtered returns how many messages became no record because the options of the input
// say so, by reason: severity and text (Filter), duplicate and raw_secret
// (VaultOptions).
func (in *Input) Filtered() map[string]uint64 {
	m := make(map[string]uint64, filteredReasons-1)
	for r := filteredSeverity; r < filteredReasons; r++ {
		m[r.String()] = in.filtered[r].Load()
	}
	return m
}

// Open returns a sink. Each message may name another sender.
func (in *Input) Open() listen.Sink {
	s := &sink{in: in, raw: in.o.Lane.o.Raw, enc: ecs.NewEncoder(in.o.Records)}
	switch {
	case in.vault != nil:
		s.vault = &vaultSink{in: in.vault}
	case in.o.Parse:
		s.parser = syslog.NewParser(in.o.Format, in.o.Zone)
	}
	return s
}

// sink encodes messages, in turn those of several connections. Used by one goroutine
// at a time.
type sink struct {
	in     *Input
	raw    bool
	enc    *ecs.Encoder
	vault  *vaultSink     // nil: it is not Vault that sends
	parser *syslog.Parser // nil: PARSE=none, or Vault
	msg    syslog.Message
	from   listen.Sender // of the last message

	block *block // nil: nothing since the last Flush
	n     counts // since the last Flush
	short bool   // the block has less of a message than was sent, for want of room in a record
}

type counts struct{ messages, bytes, failures, truncated int64 }

// Message encodes one message into the block, unless the input's options say that it
// becomes no record.
func (s *sink) Message(m framing.Message, from listen.Sender, now time.Time) {
	if from != s.from {
		s.setSender(from)
	}
	if why := s.read(m, from, now); why != filteredNot {
		s.in.Messages.Add(1)
		s.in.Bytes.Add(int64(len(m.Data)))
		s.in.filtered[why].Add(1)
	} else {
		s.encode(m, now)
	}
	if len(m.Data) > maxBlock {
		// What was read of it does not keep its memory until the next message.
		s.msg = syslog.Message{}
		if s.vault != nil {
			s.vault.entry = vault.Entry{}
		}
	}
}

// encode appends the record of the message that read has read to the block.
func (s *sink) encode(m framing.Message, now time.Time) {
	b := s.block
	if b == nil {
		b = s.in.o.Lane.block()
		b.time = now.UnixNano()
		s.block = b
	}
	s.n.messages++
	s.n.bytes += int64(len(m.Data))
	start := len(b.lines)
	if len(m.Data) > min(textLine/12, s.in.maxLine/maxGrowth) {
		line, keep := s.fit(m.Data)
		if keep < len(m.Data) {
			m = s.cut(m, keep, now)
		}
		b.lines = slices.Grow(b.lines, line+lineRoom) // in one step
	}
	b.lines = s.append(b.lines, m, now)
	if len(b.lines)-start > s.in.maxLine {
		// Parts of a header may stand in a record more than once.
		m = s.cut(m, s.in.maxLine/maxGrowth, now)
		b.lines = s.append(b.lines[:start], m, now)
	}
	if m.Flags&framing.Truncated != 0 {
		s.n.truncated++
	}
	if s.msg.Err != "" || s.vault != nil && s.vault.entry.Err != "" {
		s.n.failures++
	}
	b.ends = append(b.ends, uint32(len(b.lines)))
}

// read parses a message and says why it becomes no record.
func (s *sink) read(m framing.Message, from listen.Sender, now time.Time) filtered {
	s.parse(m, now)
	if s.vault != nil {
		return s.seeEntry(m, from, now)
	}
	if s.parser == nil || s.raw {
		return s.in.o.Filter.drops(-1, m.Data)
	}
	severity := -1
	if s.msg.Priority >= 0 {
		severity = s.msg.Priority & 7
	}
	return s.in.o.Filter.drops(severity, s.msg.Text)
}

func (s *sink) parse(m framing.Message, now time.Time) {
	switch {
	case s.vault != nil:
		vault.Parse(&s.vault.entry, m.Data, s.vault.in.o.Prefix)
	case s.parser != nil && !s.raw:
		s.parser.Parse(&s.msg, m.Data, now)
	}
}

// append appends the record of the message that parse read.
func (s *sink) append(dst []byte, m framing.Message, now time.Time) []byte {
	switch {
	case s.raw:
		return ecs.AppendRaw(dst, m.Data)
	case s.vault != nil:
		return s.appendEntry(dst, m, now)
	case s.parser == nil:
		return s.enc.AppendRecord(dst, m, nil, now)
	}
	return s.enc.AppendRecord(dst, m, &s.msg, now)
}

var errStopped = errors.New("stopped while there was no room for records")

// Flush hands the block to the lane, or drops it as ON_FULL says.
func (s *sink) Flush(ctx context.Context) error {
	b := s.block
	if b == nil {
		return nil
	}
	s.block, s.short = nil, false
	s.count()
	n := int64(len(b.ends))
	switch why := s.in.o.Lane.admit(ctx, b, s.in.o.OnFull); why {
	case lostNone:
		s.in.Admitted.Add(n) // b is the lane's now
		s.kept()
		return nil
	case lostStopped:
		s.drop(b, why)
		return errStopped
	default:
		s.drop(b, why)
		return nil
	}
}

// count adds what came since the last Flush.
func (s *sink) count() {
	s.in.Messages.Add(s.n.messages)
	s.in.Bytes.Add(s.n.bytes)
	s.in.Failures.Add(s.n.failures)
	s.in.Truncated.Add(s.n.truncated)
	s.n = counts{}
}

// kept notes that the block is the lane's.
func (s *sink) kept() {
	if s.vault != nil && len(s.vault.marks) > 0 {
		s.vault.in.keep(s.vault.marks)
		s.vault.marks = s.vault.marks[:0]
	}
}

// undo notes that the block is nobody's: what is sent again did not come before.
func (s *sink) undo() {
	if s.vault != nil && len(s.vault.marks) > 0 {
		s.vault.in.undo(s.vault.marks)
		s.vault.marks = s.vault.marks[:0]
	}
}

func (s *sink) drop(b *block, why lost) {
	s.undo()
	s.in.drop(b, why)
}

func (in *Input) drop(b *block, why lost) {
	in.lost(uint64(len(b.ends)), why, time.Unix(0, b.time))
	in.o.Lane.release(b)
}

func (in *Input) lost(n uint64, why lost, since time.Time) {
	in.dropped[why].Add(n)
	in.o.Lane.drops.add(in.o.Name, why.String(), n, since)
}

// Dropped implements listen.Dropper: the kernel had no room for n datagrams.
func (s *sink) Dropped(n uint64, since time.Time) { s.in.lost(n, lostKernel, since) }

// Close flushes nothing: its caller has.
func (s *sink) Close() {
	if s.block != nil {
		s.count()
		s.drop(s.block, lostStopped)
		s.block, s.short = nil, false
	}
}

// drops are records that inputs dropped before they had a number, until a gap
// record tells of them. Safe for concurrent use.
type drops struct {
	mu sync.Mutex
	m  map[[2]string]*ecs.Gap // by input and reason, guarded by mu
}

func (d *drops) add(input, reason string, n uint64, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m == nil {
		d.m = map[[2]string]*ecs.Gap{}
	}
	k := [2]string{input, reason}
	g := d.m[k]
	if g == nil {
		g = &ecs.Gap{Reason: reason, Input: input, Since: at}
		d.m[k] = g
	}
	g.Count += n
	g.Until = at
}

func (d *drops) any() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.m) > 0
}

// take returns what is to be told, with what is to be told again, and forgets it.
func (d *drops) take(gaps []ecs.Gap) []ecs.Gap {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.m {
		i := slices.IndexFunc(gaps, func(o ecs.Gap) bool { return o.Input == g.Input && o.Reason == g.Reason })
		if i < 0 {
			gaps = append(gaps, *g)
			continue
		}
		gaps[i].Count += g.Count
		gaps[i].Until = g.Until
	}
	clear(d.m)
	return gaps
}
