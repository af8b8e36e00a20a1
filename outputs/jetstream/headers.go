package jetstream

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// Headers of a message, besides Nats-Msg-Id and Nats-Expected-Stream. A message
// is one batch: its data is the payload, these are what is known of it.
//
//	Nats-Msg-Id:          gw1/8f3a…/0000000000000001-0000000000000064-1a2b3c4d   the batch's identity
//	Nats-Expected-Stream: LOGS                     when STREAM is set
//	Content-Type:         application/x-ndjson     application/octet-stream for raw lines
//	Content-Encoding:     zstd                     or gzip; absent for plain lines
//	Spillway-Agent:       gw1
//	Spillway-Site:        default
//	Spillway-Lane:        main
//	Spillway-Epoch:       8f3a…                    16 hex digits
//	Spillway-First-Seq:   1                        decimal
//	Spillway-Last-Seq:    100
//	Spillway-Records:     100
//	Spillway-Raw-Bytes:   31874                    before compression
//	Spillway-First-Time:  2026-11-20T14:05:00.123456789Z   receive time of the first record, UTC
//	Spillway-Last-Time:   2026-11-20T14:05:01Z
//	Spillway-Schema:      1
//	Spillway-Seal:        64 hex digits
//	Spillway-Seal-Before: 64 hex digits
//	Spillway-Attempt:     2                        when it may have been sent before
//	Spillway-Path:        direct                   sent by the agent itself
const (
	hdrMsgID       = "Nats-Msg-Id"
	hdrExpected    = "Nats-Expected-Stream"
	hdrContentType = "Content-Type"
	hdrEncoding    = "Content-Encoding"
	hdrAgent       = "Spillway-Agent"
	hdrSite        = "Spillway-Site"
	hdrLane        = "Spillway-Lane"
	hdrEpoch       = "Spillway-Epoch"
	hdrFirst       = "Spillway-First-Seq"
	hdrLast        = "Spillway-Last-Seq"
	hdrRecords     = "Spillway-Records"
	hdrRawBytes    = "Spillway-Raw-Bytes"
	hdrFirstTime   = "Spillway-First-Time"
	hdrLastTime    = "Spillway-Last-Time"
	hdrSchema      = "Spillway-Schema"
	hdrSeal        = "Spillway-Seal"
	hdrBefore      = "Spillway-Seal-Before"
	hdrAttempt     = "Spillway-Attempt"
	hdrPath        = "Spillway-Path"
)

// rawLines is the Content-Type of lines that are no records.
const rawLines = "application/octet-stream"

// headerRoom is what the headers of one message may take, in bytes. All names at
// their longest need 1,212.
const headerRoom = 2 << 10

// header returns the headers of run.Batches[i]. stream may be "".
func header(site, stream string, run *batch.Run, i int) nats.Header {
	b := &run.Batches[i]
	contentType := "application/x-ndjson"
	if b.Flags&batch.RawLines != 0 {
		contentType = rawLines
	}
	// One array for all values: a header's value is a list of strings.
	values := make([]string, 0, 19)
	h := make(nats.Header, cap(values))
	set := func(name, v string) {
		values = append(values, v)
		h[name] = values[len(values)-1:]
	}
	set(hdrMsgID, b.Identity(run.Agent, run.Epoch).String())
	if stream != "" {
		set(hdrExpected, stream)
	}
	set(hdrContentType, contentType)
	if b.Codec != batch.None {
		set(hdrEncoding, b.Codec.String())
	}
	set(hdrAgent, run.Agent)
	set(hdrSite, site)
	set(hdrLane, run.Lane)
	set(hdrEpoch, run.Epoch.String())
	set(hdrFirst, strconv.FormatUint(b.First, 10))
	set(hdrLast, strconv.FormatUint(b.Last(), 10))
	set(hdrRecords, strconv.FormatUint(uint64(b.Count), 10))
	set(hdrRawBytes, strconv.FormatUint(uint64(b.Raw), 10))
	set(hdrFirstTime, time.Unix(0, b.FirstTime).UTC().Format(time.RFC3339Nano))
	set(hdrLastTime, time.Unix(0, b.LastTime).UTC().Format(time.RFC3339Nano))
	set(hdrSchema, "1")
	set(hdrSeal, b.Seal.String())
	set(hdrBefore, run.BeforeOf(i).String())
	if run.Attempt > 1 {
		set(hdrAttempt, strconv.Itoa(run.Attempt))
	}
	set(hdrPath, "direct")
	return h
}

// errNotOurs means that a message does not have the headers of a batch.
var errNotOurs = errors.New("not a batch of spillway")

// parseHeader restores an object, without its name and body, from the headers of
// a message with size bytes of data.
func parseHeader(h nats.Header, size int) (*outputs.Object, error) {
	id, err := batch.ParseIdentity(h.Get(hdrMsgID))
	if err != nil || h.Get(hdrEpoch) != id.Epoch.String() {
		return nil, errNotOurs
	}
	o := &outputs.Object{
		Lane: h.Get(hdrLane), Site: h.Get(hdrSite), Agent: id.Agent, Epoch: id.Epoch, First: id.First, Last: id.Last, CRC: id.CRC,
		Raw: h.Get(hdrContentType) == rawLines, Duplicate: id.String(),
	}
	if e := h.Get(hdrEncoding); e != "" {
		if o.Codec, err = batch.ParseCodec(e); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errNotOurs, hdrEncoding, err)
		}
	}
	for _, s := range []struct {
		name string
		v    *batch.Seal
	}{{hdrSeal, &o.Seal}, {hdrBefore, &o.Before}} {
		if *s.v, err = batch.ParseSeal(h.Get(s.name)); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errNotOurs, s.name, err)
		}
	}
	records, err := strconv.ParseUint(h.Get(hdrRecords), 10, 32)
	if err != nil || records != o.Last-o.First+1 {
		return nil, fmt.Errorf("%w: %s %q does not fit its numbers", errNotOurs, hdrRecords, h.Get(hdrRecords))
	}
	o.Sizes = []batch.Size{{Bytes: uint64(size), Count: records}}
	o.Attempt = 1
	if a := h.Get(hdrAttempt); a != "" {
		if o.Attempt, err = strconv.Atoi(a); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errNotOurs, hdrAttempt, err)
		}
	}
	return o, nil
}
