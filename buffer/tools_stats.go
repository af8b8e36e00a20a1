package buffer

import (
	"fmt"
	"math/bits"
	"time"

	"spillway/buffer/batch"
)

// Totals adds up batches.
type Totals struct {
	Batches uint64 `json:"batches"`
	Records uint64 `json:"records"`
	Raw     uint64 `json:"raw_bytes"`     // before compression
	Payload uint64 `json:"payload_bytes"` // as it is delivered
}

func (t *Totals) add(b *batch.Header) {
	t.Batches++
	t.Records += uint64(b.Count)
	t.Raw += uint64(b.Raw)
	t.Payload += uint64(b.Length)
}

// Ratio is how many raw bytes became one of payload; 0 of nothing.
func (t *Totals) Ratio() float64 {
	if t.Payload == 0 {
		return 0
	}
	return float64(t.Raw) / float64(t.Payload)
}

// Times encloses receive times of records. The zero Times encloses none.
type Times struct {
	From  time.Time `json:"from,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

func (t *Times) add(b *batch.Header) {
	if from := instant(b.FirstTime); t.From.IsZero() || from.Before(t.From) {
		t.From = from
	}
	if until := instant(b.LastTime); until.After(t.Until) {
		t.Until = until
	}
}

// Spread counts values by their size: of n > 0 in [2^n, 2^(n+1)) the n-th, below 2
// the first. The last also counts what is larger.
type Spread [32]uint64

func (s *Spread) add(v uint64) { s[min(len(s)-1, max(1, bits.Len64(v))-1)]++ }

// Below returns a power of two that a share q, from 0 to 1, of the values lies
// below, at most twice the value at q. It is 0 without values.
func (s *Spread) Below(q float64) uint64 {
	var n, sum uint64
	for _, c := range s {
		n += c
	}
	for i, c := range s {
		if sum += c; c > 0 && float64(sum) >= q*float64(n) {
			return 2 << i
		}
	}
	return 0
}

// SegmentUsage is what Usage says of one segment.
type SegmentUsage struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"` // of the file
	// State is "delivered" (kept for KeepAcked, or as the newest), "pending" (no record of
	// it is delivered) or "partly".
	State string `json:"state"`
	Totals
	Times
}

// Aside is what is kept in rejected/ or quarantine/.
type Aside struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	Totals
}

// Usage is what a directory holds, as the headers say. Batches that lie there twice
// count once.
type Usage struct {
	Segments []SegmentUsage `json:"segments"`
	Bytes    int64          `json:"bytes"` // of all segments
	Totals
	Times
	Delivered  Totals            `json:"delivered"`  // and kept
	Pending    Totals            `json:"pending"`    // not delivered
	Missing    uint64            `json:"missing"`    // records between the batches or behind them that are not there, and that nobody told of
	Unread     int64             `json:"unread"`     // bytes that are no part of a batch: torn writes, or damage
	Sizes      Spread            `json:"-"`          // bytes of payload per batch
	Counts     Spread            `json:"-"`          // records per batch
	Ages       Spread            `json:"-"`          // seconds since the last record of each pending batch was received
	Lost       map[string]uint64 `json:"lost"`       // records by reason, as the cursor says; empty without one
	Cursor     bool              `json:"cursor"`     // there is one that can be read; without, everything counts as pending
	Rejected   Aside             `json:"rejected"`   //
	Quarantine Aside             `json:"quarantine"` //
	Failed     []Finding         `json:"-"`          // files that can't be opened
}

// States of a SegmentUsage.
const (
	StateDelivered = "delivered"
	StatePartly    = "partly"
	StatePending   = "pending"
)

// Measure adds up what dir holds at now, from headers alone: payloads are not read
// and not checked, Verify does that. It takes one small read per batch, and memory
// for one SegmentUsage per segment. It takes no lock and changes nothing.
func Measure(dir string, now time.Time) (*Usage, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	u := &Usage{Segments: []SegmentUsage{}, Lost: map[string]uint64{}}
	p, ok, err := readPosition(d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cursorFile, err)
	}
	if u.Cursor = ok; ok {
		for i, reason := range dropped {
			if reason != "" {
				u.Lost[reason] = p.drops[i]
			}
		}
	}
	files, err := listed(d)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	w := walker{headers: true, committed: p.committed, passed: p.passed, again: func() (position, bool, error) { return readPosition(d) }}
	w.find = func(f Finding) {
		if f.What == "unreadable" {
			u.Failed = append(u.Failed, f)
		}
	}
	segs := parseNames(files)
	for i, s := range segs {
		use := SegmentUsage{Name: s.name(), Bytes: s.size, State: StateDelivered}
		if s.first > p.committed {
			use.State = StatePending
		}
		w.each = func(b *batch.Batch, _ *segment, _ batch.Seal) error {
			h := &b.Header
			use.Totals.add(h)
			use.Times.add(h)
			u.Times.add(h)
			u.Sizes.add(uint64(h.Length))
			u.Counts.add(uint64(h.Count))
			if h.Last() <= p.committed {
				u.Delivered.add(h)
				return nil
			}
			switch {
			case use.State != StateDelivered:
			case use.Batches > 1:
				use.State = StatePartly
			default:
				use.State = StatePending
			}
			u.Pending.add(h)
			u.Ages.add(uint64(max(0, now.Sub(instant(h.LastTime))/time.Second)))
			return nil
		}
		w.follow(segs, i)
		if err := w.copies(d, s, []string{s.name()}); err != nil {
			return nil, err
		}
		u.Segments = append(u.Segments, use)
		u.Totals.sum(&use.Totals)
	}
	w.end(segs, &p, ok)
	u.Bytes, u.Missing, u.Unread = w.report.Bytes, w.report.Lost, w.report.Damaged+w.report.Torn
	for sub, aside := range map[string]*Aside{rejected: &u.Rejected, quarantine: &u.Quarantine} {
		if err := aside.measure(d, sub); err != nil {
			return nil, fmt.Errorf("list %s/%s: %w", dir, sub, err)
		}
	}
	return u, nil
}

func (t *Totals) sum(o *Totals) {
	t.Batches += o.Batches
	t.Records += o.Records
	t.Raw += o.Raw
	t.Payload += o.Payload
}

// measure adds up the segments in a sub-directory.
func (a *Aside) measure(d FS, sub string) error {
	files, err := d.List(sub)
	if err != nil {
		return err
	}
	for _, f := range files {
		a.Files++
		a.Bytes += f.Size
	}
	w := walker{headers: true, find: func(Finding) {}}
	w.each = func(b *batch.Batch, _ *segment, _ batch.Seal) error {
		a.Totals.add(&b.Header)
		return nil
	}
	segs := parseNames(files)
	for i, s := range segs {
		w.follow(segs, i)
		if err := w.copies(d, s, []string{sub + "/" + s.name()}); err != nil {
			return err
		}
	}
	return nil
}
