package ecs

import (
	"encoding/hex"
	"strconv"
	"time"
)

// Gap says what is missing from a lane and why. Members that are zero are left
// out of the record.
//
//	"spillway":{"gap":{"reason":"drop_oldest","input":"tcp","count":500,
//	                   "since":"2026-11-20T11:00:00Z","until":"2026-11-20T12:00:00Z",
//	                   "epoch":"00c0ffee00c0ffee","first":1001,"last":1500,
//	                   "seal_before":"<64 hex digits>","seal_after":"<64 hex digits>"},
//	            "epoch":"00c0ffee00c0ffee","seq":1501}
type Gap struct {
	Reason string // one word
	Input  string // the input that refused or lost records; "" for the lane
	Count  uint64 // records missing; 0: not known

	Since, Until time.Time // when the first and the last went missing, or were received

	// Of a hole in the numbers: its epoch, first and last sequence. Of a new
	// epoch: the previous epoch and its last sequence.
	Epoch       uint64
	First, Last uint64

	// SealBefore is the seal of the batch before the hole (or the last one of
	// the previous epoch), SealAfter that of the first batch behind it.
	SealBefore, SealAfter [32]byte
}

// AppendGap appends the record of g, open at its end like those of
// AppendRecord: AppendTail completes it. now is its time. Of e it carries what
// Options give, not the source.
func (e *Encoder) AppendGap(dst []byte, g Gap, now time.Time) []byte {
	dst = append(dst, `{"@timestamp":"`...)
	dst = e.stamp.appendTime(dst, now)
	dst = append(dst, `","event":{"created":"`...)
	dst = e.created.appendTime(dst, now)
	dst = append(dst, `","kind":"pipeline_error"`...)
	dst = append(dst, e.middle[:e.fixed]...)

	dst = append(dst, `,"message":"gap: `...)
	if g.Count > 0 {
		dst = strconv.AppendUint(dst, g.Count, 10)
		dst = append(dst, ` records: `...)
	}
	dst = e.appendText(dst, []byte(g.Reason))
	dst = append(dst, '"')
	if len(e.tags) > 0 {
		dst = append(dst, e.tags...)
		dst = append(dst, ']')
	}

	dst = append(dst, `,"spillway":{"gap":{"reason":"`...)
	dst = e.appendText(dst, []byte(g.Reason))
	dst = append(dst, '"')
	dst = e.appendMember(dst, `,"input":"`, []byte(g.Input))
	dst = appendNumber(dst, `,"count":`, g.Count)
	dst = e.appendMoment(dst, `,"since":"`, g.Since)
	dst = e.appendMoment(dst, `,"until":"`, g.Until)
	if g.Epoch != 0 {
		dst = append(dst, `,"epoch":"`...)
		dst = appendEpoch(dst, g.Epoch)
		dst = append(dst, '"')
	}
	dst = appendNumber(dst, `,"first":`, g.First)
	dst = appendNumber(dst, `,"last":`, g.Last)
	dst = appendSeal(dst, `,"seal_before":"`, g.SealBefore)
	dst = appendSeal(dst, `,"seal_after":"`, g.SealAfter)
	return append(dst, `},`...)
}

func appendNumber(dst []byte, name string, n uint64) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendUint(append(dst, name...), n, 10)
}

func (e *Encoder) appendMoment(dst []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	dst = append(dst, name...)
	dst = e.stamp.appendTime(dst, t)
	return append(dst, '"')
}

func appendSeal(dst []byte, name string, seal [32]byte) []byte {
	if seal == [32]byte{} {
		return dst
	}
	dst = append(dst, name...)
	dst = hex.AppendEncode(dst, seal[:])
	return append(dst, '"')
}
