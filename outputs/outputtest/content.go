package outputtest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// lane makes the sealed batches of one lane, with its own epoch.
type lane struct {
	t      *testing.T
	name   string
	agent  string
	next   uint64
	now    time.Time
	rng    *rand.Rand
	enc    *batch.Encoder
	sealer batch.Sealer
}

// lane returns a new lane. Same names give the same bytes.
func (s *side) lane(t *testing.T, name string, codec batch.Codec) *lane {
	t.Helper()
	enc, err := batch.NewEncoder(codec, 0)
	if err != nil {
		t.Fatal(err)
	}
	seed := sha256.Sum256([]byte(name))
	rng := rand.New(rand.NewChaCha8(seed))
	return &lane{
		t: t, name: name, agent: s.Agent, next: 1, rng: rng, enc: enc,
		now:    time.Date(2026, 11, 20, 14, 5, 0, 0, time.UTC),
		sealer: batch.Sealer{Epoch: batch.Epoch(rng.Uint64())},
	}
}

// run returns a run of n batches of records records each.
func (l *lane) run(n, records int) *batch.Run {
	run := &batch.Run{Lane: l.name, Agent: l.agent, Epoch: l.sealer.Epoch, Before: l.sealer.Prev, Attempt: 1}
	var open batch.Open
	for range n {
		open.Reset(l.next, 0)
		for range records {
			open.Lines = fmt.Appendf(open.Lines, `{"@timestamp":%q,"message":"port %d is up, token %x","spillway":{"epoch":%q,"seq":%d}}`+"\n",
				l.now.Format(time.RFC3339Nano), l.rng.IntN(48), l.rng.Uint64(), l.sealer.Epoch, open.Next())
			open.Added(l.now.UnixNano())
			l.now = l.now.Add(time.Microsecond)
		}
		bs, _, err := l.enc.Encode(nil, &open, nil)
		if err != nil || len(bs) != 1 {
			l.t.Fatalf("encode: %d batches, %v", len(bs), err)
		}
		run.Batches = append(run.Batches, *l.seal(bs[0]))
	}
	return run
}

// noise returns a batch of one record whose payload has exactly size bytes. No
// compressor makes it smaller: it is a frame of raw blocks.
func (l *lane) noise(size int) batch.Batch {
	payload := rawFrame(l.rng, size)
	h := batch.Header{Codec: batch.Zstd, Length: uint32(size), Raw: uint32(size), First: l.next, Count: 1,
		FirstTime: l.now.UnixNano(), LastTime: l.now.UnixNano(), CRC: batch.CRC32C(payload), Sum: sha256.Sum256(payload)}
	if size > batch.MaxPayload {
		h.Flags |= batch.Single
	}
	return *l.seal(&batch.Batch{Header: h, Payload: payload})
}

func (l *lane) seal(b *batch.Batch) *batch.Batch {
	l.sealer.Seal(b)
	l.next = b.Last() + 1
	return b
}

// rawFrame returns a zstd frame (RFC 8878 section 3.1) of exactly size bytes, at
// least 16, that holds one line of random base64:
//
//	magic 28 B5 2F FD │ descriptor 00 │ window 50 (1 MiB) │ blocks: 3-byte header, up to 64 KiB raw
func rawFrame(rng *rand.Rand, size int) []byte {
	const block = 64 << 10
	out := append(make([]byte, 0, size), 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50)
	random := make([]byte, block*3/4)
	for len(out) < size {
		n := min(size-len(out)-3, block)
		// What is left behind this block must hold another block's header, or nothing.
		if rest := size - len(out) - 3 - n; rest > 0 && rest < 4 {
			n -= 4
		}
		for i := range random {
			random[i] = byte(rng.Uint32())
		}
		text := base64.StdEncoding.AppendEncode(nil, random)[:n]
		last := 0
		if len(out)+3+n == size {
			last = 1
			text[n-1] = '\n'
		}
		h := n<<3 | last // block type 0, raw
		out = append(out, byte(h), byte(h>>8), byte(h>>16))
		out = append(out, text...)
	}
	return out
}

// stored is an object as it was read back.
type stored struct {
	*outputs.Object
	body []byte
}

// holds fails unless the far side holds exactly runs, each batch once: their
// bytes, identities and, within a lane, order.
func (s *side) holds(t *testing.T, o outputs.Output, runs ...*batch.Run) {
	t.Helper()
	var want []stored
	_, planner := o.(outputs.Planner)
	for _, run := range runs {
		if planner {
			want = append(want, s.object(run))
			continue
		}
		for i, b := range run.Batches {
			one := *run
			one.Batches, one.Before = []batch.Batch{b}, run.BeforeOf(i)
			want = append(want, s.object(&one))
		}
	}
	byLane := func(list []stored) map[string][]stored {
		m := map[string][]stored{}
		for _, o := range list {
			m[o.Lane] = append(m[o.Lane], o)
		}
		return m
	}
	wantLanes, gotLanes := byLane(want), byLane(s.read(t))
	for _, name := range slices.Sorted(maps.Keys(gotLanes)) {
		if wantLanes[name] == nil {
			t.Errorf("%d objects in lane %q, which nobody sent", len(gotLanes[name]), name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wantLanes)) {
		s.same(t, name, gotLanes[name], wantLanes[name])
	}
}

// object is what must be read back of run, stored as one object.
func (s *side) object(run *batch.Run) stored {
	var body []byte
	for _, b := range run.Batches {
		body = append(body, b.Payload...)
	}
	sizes, err := batch.ParseSizes(run.Sizes())
	if err != nil {
		panic(err)
	}
	return stored{body: body, Object: &outputs.Object{
		Lane: run.Lane, Site: s.Site, Agent: s.Agent, Epoch: run.Epoch, First: run.First(), Last: run.Last(), CRC: batch.CRC32C(body),
		Codec: run.Batches[0].Codec, Reason: run.Reason, Before: run.Before, Seal: run.Seal(), Sizes: sizes,
	}}
}

// read returns all that the source yields.
func (s *side) read(t *testing.T) (all []stored) {
	t.Helper()
	for o, err := range s.Source.Objects(t.Context()) {
		if err != nil {
			t.Fatalf("read back: %v", err)
		}
		body, err := io.ReadAll(o.Body)
		if cerr := o.Body.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			t.Fatalf("read back %s: %v", o.Name, err)
		}
		all = append(all, stored{o, body})
	}
	return all
}

// same compares the objects of one lane, in their order.
func (s *side) same(t *testing.T, lane string, got, want []stored) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("lane %s: %d objects are stored, want %d:\n%s", lane, len(got), len(want), names(got))
	}
	if !slices.IsSortedFunc(got, func(a, b stored) int { return cmp.Compare(a.First, b.First) }) {
		t.Errorf("lane %s: read back out of order:\n%s", lane, names(got))
	}
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if !bytes.Equal(g.body, w.body) {
			t.Errorf("%s: %d bytes read back differ from the %d sent", g.Name, len(g.body), len(w.body))
		}
		type identity struct {
			lane, site, agent, reason string
			epoch                     batch.Epoch
			first, last               uint64
			crc                       uint32
			codec                     batch.Codec
		}
		id := func(o stored) identity {
			return identity{o.Lane, o.Site, o.Agent, o.Reason, o.Epoch, o.First, o.Last, o.CRC, o.Codec}
		}
		if id(g) != id(w) {
			t.Errorf("%s: identity is\n\t%+v, want\n\t%+v", g.Name, id(g), id(w))
		}
		if !s.Bare && (g.Before != w.Before || g.Seal != w.Seal || !slices.Equal(g.Sizes, w.Sizes)) {
			t.Errorf("%s: seals %s to %s, sizes %v; want %s to %s, %v", g.Name, g.Before, g.Seal, g.Sizes, w.Before, w.Seal, w.Sizes)
		}
		if one := (batch.Identity{Agent: w.Agent, Epoch: w.Epoch, First: w.First, Last: w.Last, CRC: w.CRC}).String(); g.Duplicate != "" && g.Duplicate != one {
			t.Errorf("%s: deduplicated as %q, want %q", g.Name, g.Duplicate, one)
		}
	}
}

func names(list []stored) string {
	var b strings.Builder
	for _, o := range list {
		fmt.Fprintf(&b, "\t%s %d-%d %d bytes\n", o.Name, o.First, o.Last, len(o.body))
	}
	return b.String()
}
