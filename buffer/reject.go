package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"spillway/buffer/batch"
)

const maxDetail = 512

// Reject takes run, which Next returned last, out of the line because no output
// takes it: it is kept aside in rejected/, a gap with ReasonRejected and why as its
// Detail is noted, and the position moves over it. The file is durable before
// that; a crash before the position is saved leaves the run at the head of the
// line. The head of the line is never blocked for good by what nobody takes.
//
// A file in rejected/ is a segment, which the tools read. All of them take
// RejectedBytes at most, whatever MinFree says: the oldest go first, and a run that
// alone takes more is not kept, only told. A full disk is no reason to do without:
// delivered segments make room, else the error is ErrFull, and it is tried again. A directory
// that may not be written (its owner, its mode, something else in its place) would block
// the line until somebody looks: the run is only told, and Detail begins with why it is not
// kept. While the disk takes no writes (Options.Memory) nothing is kept, only told. After an
// error nothing has changed. Of Detail, 512 bytes are kept.
//
// Rejecting what lies behind the position changes nothing. What does not begin
// right behind it, or was not handed out, is ErrOrder.
func (b *Buffer) Reject(run *batch.Run, why string) error {
	first, last := run.First(), run.Last()
	b.w.Lock()
	defer b.w.Unlock()
	b.mu.Lock()
	closed, committed, out := b.closed, b.pos.committed, b.handed
	b.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case last <= committed:
		return nil
	case first != committed+1 || last > out:
		return fmt.Errorf("reject records %d to %d, but %d are committed and %d handed out: %w", first, last, committed, out, ErrOrder)
	}
	err := b.aside(run, committed)
	if isBarred(err) {
		why, err = fmt.Sprintf("not kept: %v: %s", err, why), nil
	}
	if err != nil {
		return fmt.Errorf("reject records %d to %d: %w", first, last, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	g := Gap{Reason: ReasonRejected, Epoch: run.Epoch, First: first, Last: last, Count: last - first + 1, Before: run.Before,
		Detail: strings.ToValidUTF8(why[:min(len(why), maxDetail)], "")}
	if len(b.index) > 0 && b.index[0].h.First == first {
		g.Since = instant(b.index[0].since)
	}
	if i := slices.IndexFunc(b.index, func(e entry) bool { return e.h.First > last }); i >= 0 {
		g.Until = instant(b.index[i].h.FirstTime)
		if b.index[i].seg.epoch == run.Epoch {
			g.After = b.index[i].h.Seal
		}
	}
	if b.pos.plan.First <= last {
		b.pos.plan = Plan{}
	}
	b.addGap(g)
	b.move(last)
	return nil
}

// aside is keepAside, unless the disk takes no writes: then it is only told. w is held.
func (b *Buffer) aside(run *batch.Run, floor uint64) error {
	if b.ring.degraded {
		return nil
	}
	err := b.keepAside(run, floor)
	if err != nil && b.o.Memory > 0 && !isFull(err) && !isBarred(err) {
		if err = b.keepAside(run, floor); err != nil && b.degrade(err) {
			return nil
		}
	}
	return err
}

// isBarred reports whether err is of a directory that may not be written, or is none. To try
// again is no use.
func isBarred(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOTDIR)
}

// keepAside writes run to rejected/, makes it durable, and removes what is there
// too much. w is held.
func (b *Buffer) keepAside(run *batch.Run, floor uint64) error {
	n := segmentHeaderSize + int64(len(run.Batches))*batch.HeaderSize + run.Bytes() + footerSize
	if n > b.o.RejectedBytes {
		return nil
	}
	name, err := b.writeAside(run, floor)
	for isFull(err) {
		// Delivered segments make room. Dropping others for it would cost more than it saves.
		size, ferr := b.freeDone(true)
		if ferr != nil || size == 0 {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		name, err = b.writeAside(run, floor)
	}
	if err != nil {
		return err
	}
	b.removeTries(run, name, n)
	b.trimDir(rejected, b.o.RejectedBytes, name)
	return nil
}

// writeAside writes run as a segment of its own:
//
//	rejected/<first>-<epoch>-<first>-<salt>-<agent>.seg
//
// Its ordinal is the number of its first record, so that the names give the order;
// its header has flag 1. After an error it is gone again, if that is possible.
func (b *Buffer) writeAside(run *batch.Run, floor uint64) (name string, err error) {
	h := segmentHeader{Opens: b.opens, Epoch: run.Epoch, Ordinal: run.First(), First: run.First(), Created: b.o.Now().UnixNano(),
		Salt: b.o.random(), Floor: floor, Before: run.Before, Aside: true}
	name = segmentName(h.Ordinal, h.Epoch, h.First, h.Salt, run.Agent)
	f, err := b.fs.Create(rejected + "/" + name)
	if err != nil {
		return "", fmt.Errorf("create %s/%s: %w", rejected, name, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			b.fs.Remove(rejected + "/" + name)
			err = fmt.Errorf("write %s/%s: %w", rejected, name, err)
		}
	}()
	w := segmentWriter{f: f}
	w.begin(&h)
	for i := range run.Batches {
		if err := w.add(&run.Batches[i]); err != nil {
			return name, err
		}
	}
	if err := w.end(); err != nil {
		return name, err
	}
	return name, b.fs.SyncDir()
}

// segmentWriter writes a segment whose batches all lie elsewhere already: the
// buffer's own are written by Append.
type segmentWriter struct {
	f    File
	off  int64
	buf  []byte // the segment header, until the first batch
	foot Footer
}

func (w *segmentWriter) begin(h *segmentHeader) {
	w.buf, w.off, w.foot = appendSegmentHeader(w.buf[:0], h), 0, Footer{Salt: h.Salt}
}

func (w *segmentWriter) write(p []byte) error {
	n, err := writeAt(w.f, p, w.off)
	w.off += int64(n)
	return err
}

// add writes x, of which it changes and keeps nothing.
func (w *segmentWriter) add(x *batch.Batch) error {
	h := x.Header
	h.Salt, h.SyncedOff = w.foot.Salt, 0
	if err := w.write(batch.AppendHeader(w.buf, &h)); err != nil {
		return err
	}
	if err := w.write(x.Payload); err != nil {
		return err
	}
	w.buf = w.buf[:0]
	if w.foot.Batches == 0 {
		w.foot.FirstTime = x.FirstTime
	}
	w.foot.Batches++
	w.foot.Last, w.foot.LastTime = x.Last(), x.LastTime
	w.foot.Raw += uint64(x.Raw)
	return nil
}

// end makes the segment durable; its name is not.
func (w *segmentWriter) end() error {
	if err := w.f.Sync(); err != nil {
		return err
	}
	// The footer says that all before it is durable: damage is never taken for a torn write.
	w.foot.End, w.foot.SyncedOff = w.off, uint32(w.off)
	if err := w.write(appendFooter(w.buf[:0], &w.foot)); err != nil {
		return err
	}
	return w.f.Sync()
}

// removeTries removes what an earlier try left of run, which is in name now and has n bytes. A
// longer try holds more than run, of which the line may have nothing any more.
func (b *Buffer) removeTries(run *batch.Run, name string, n int64) {
	files, _ := b.fs.List(rejected) // else the limit removes them
	for _, f := range files {
		if s, ok := parseName(f.Name); ok && s.first == run.First() && s.epoch == run.Epoch && f.Name != name && f.Size <= n {
			b.fs.Remove(rejected + "/" + f.Name)
		}
	}
}
