package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// TestCursorBadBlock: a cursor with a bad block is replaced, also where delivered segments
// fill the buffer, which can't go before the position is durable.
func TestCursorBadBlock(t *testing.T) {
	for _, memory := range []int64{0, 64 << 10} {
		t.Run(fmt.Sprint("memory ", memory), func(t *testing.T) {
			now := time.Unix(1_800_000_000, 0)
			o := Options{Memory: memory, MaxBytes: 64 << 10, SegmentBytes: 4 << 10, KeepAcked: time.Hour, Now: func() time.Time { return now }}
			b, d := simulated(t, o)
			w := newWriter(b.Begin())
			for range 14 {
				put(t, b, w.seal(1, text(4000, 1)))
				drain(t, b, 1)
			}
			later(b, &now, 10*time.Second)
			bad := d.names[cursorFile]
			d.fail = func(op string, _ int, name string) error {
				if name == cursorFile && (op == "write" || op == "sync") && d.names[cursorFile] == bad {
					return syscall.EIO
				}
				return nil
			}
			for range 20 {
				x := w.seal(1, text(4000, 1))
				err := b.Append(t.Context(), x)
				for i := 0; err != nil && !errors.Is(err, ErrMemory) && i < 9; i++ {
					later(b, &now, time.Second)
					err = b.Append(t.Context(), x)
				}
				if err != nil && !errors.Is(err, ErrMemory) {
					t.Fatal(err)
				}
				drain(t, b, 1)
				later(b, &now, 10*time.Second)
			}
			if s := b.Stats(); s.Degraded || s.DiskError != nil || d.names[cursorFile] == bad {
				t.Fatalf("%+v", s)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			if d.names[scratchFile] != nil {
				t.Error("the file that tried the disk is still there")
			}
		})
	}
}

// TestCursorOutage: a disk that takes nothing for a while costs no cursor.
func TestCursorOutage(t *testing.T) {
	for _, err := range []error{syscall.EIO, syscall.EROFS, syscall.ENOSPC} {
		for _, ops := range [][]string{{"create", "write", "sync"}, {"write"}, {"sync"}, {"open", "create", "write"}} {
			t.Run(fmt.Sprint(err, " of ", ops), func(t *testing.T) {
				now := time.Unix(1_800_000_000, 0)
				o := Options{Now: func() time.Time { return now }}
				b, d := simulated(t, o)
				w := newWriter(b.Begin())
				put(t, b, w.seal(3, text(100, 1)), w.seal(4, text(100, 2)))
				next(t, b, batch.Limits{})
				if err := b.SetPlan(Plan{"out", 1, 3, "key"}); err != nil {
					t.Fatal(err)
				}
				before := d.names[cursorFile]
				d.fail = fails(err, ops...)
				for range 9 {
					if e := b.SetPlan(Plan{"out", 1, 7, "other"}); !errors.Is(e, err) {
						t.Fatal(e)
					}
					later(b, &now, 10*time.Second)
				}
				d.fail = nil
				if d.names[cursorFile] != before {
					t.Fatal("the cursor was replaced")
				}
				b = again(t, d, o)
				if p, _ := b.Plan(); !slices.Contains([]string{"key", "other"}, p.Key) {
					t.Errorf("plan %+v", p)
				}
			})
		}
	}
}

// TestUnreadableSlot: a slot that can't be read does not cost the other one.
func TestUnreadableSlot(t *testing.T) {
	for bad := range 2 {
		b, d := simulated(t, Options{})
		fill(t, b, newWriter(b.Begin()), 3)
		drain(t, b, 2)
		for range 2 { // both slots
			end(t, b, false)
		}
		d.bad = map[badBlock]int{{d.names[cursorFile], bad}: -1}
		b = again(t, d, Options{})
		if st := b.Begin(); !st.Unclean || st.Next != 31 || b.Stats().Committed != 20 {
			t.Errorf("slot %d: %+v, %d committed", bad, st, b.Stats().Committed)
		}
	}
}

// TestCursorIsReadAgain: of a cursor that could not be read, and can be when it is saved, the
// newest slot is not overwritten: if nothing more is saved, the one before it would say that the
// last life ended in order.
func TestCursorIsReadAgain(t *testing.T) {
	b, d := simulated(t, Options{})
	fill(t, b, newWriter(b.Begin()), 3)
	end(t, b, false) // so that the newest slot is the one that would be written
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = again(t, d, Options{})
	b.Begin()
	d.fail = fails(syscall.EIO, "open")
	b = again(t, d, Options{})
	b.Begin()
	writes := 0
	var killed []byte // the cursor before a second write
	d.fail = func(op string, _ int, name string) error {
		if op == "write" {
			writes++
		}
		if op == "write" && writes == 2 {
			killed = bytes.Clone(d.names[cursorFile].data)
		}
		return nil
	}
	end(t, b, false)
	d.fail = nil
	if d.kill(); killed != nil {
		d.put(cursorFile, killed)
	}
	b = again(t, d, Options{})
	if st := b.Begin(); !st.Unclean {
		t.Errorf("%+v", st)
	}
}
