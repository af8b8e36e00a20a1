package batch

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

// example is the header whose bytes are frozen in testdata/header-v1.golden.
func example() Header {
	h := Header{
		Codec: Zstd, Flags: Unclean | HasGap, Length: 0x01020304 & 0xffff, First: 0x1122334455667788, Count: 3, Raw: 99,
		FirstTime: 1_763_640_000_000_000_001, LastTime: 1_763_640_000_000_000_002, Salt: 0xa1a2a3a4a5a6a7a8, SyncedOff: 0xb1b2b3b4, CRC: 0xc1c2c3c4,
		Sum: sha256.Sum256([]byte("payload")),
	}
	h.Seal = h.Chain(Seal{1, 2, 3}, 0xdeadbeefcafef00d)
	return h
}

func TestHeaderGolden(t *testing.T) {
	h := example()
	b := AppendHeader(nil, &h)
	if len(b) != HeaderSize {
		t.Fatalf("header is %d bytes, want %d", len(b), HeaderSize)
	}
	name := filepath.Join("testdata", "header-v1.golden")
	text := hex.Dump(b)
	if *update {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("header bytes changed:\n%s\nwant:\n%s", text, want)
	}
	got, err := ParseHeader(b)
	if err != nil || got != h {
		t.Errorf("ParseHeader = %+v, %v; want %+v", got, err, h)
	}
}

// The seal's definition, spelt out once more and independently of Chain.
func TestSealDefinition(t *testing.T) {
	h := example()
	prev := bytes.Repeat([]byte{0x77}, 32)
	in := append([]byte{}, prev...)
	in = append(in, 0x0d, 0xf0, 0xfe, 0xca, 0xef, 0xbe, 0xad, 0xde) // epoch
	in = append(in, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11) // first
	in = append(in, 0x8a, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11) // last
	in = append(in, 2)                                              // codec
	in = append(in, h.Sum[:]...)
	if got, want := h.Chain(Seal(prev), 0xdeadbeefcafef00d), Seal(sha256.Sum256(in)); got != want {
		t.Errorf("seal = %v, want %v", got, want)
	}
	salted := h
	salted.Salt, salted.SyncedOff = 1, 2
	if salted.Chain(Seal(prev), 1) != h.Chain(Seal(prev), 1) {
		t.Error("seal depends on facts about the disk")
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	edit := func(f func(h *Header)) []byte {
		h := example()
		f(&h)
		return AppendHeader(nil, &h)
	}
	raw := func(f func(b []byte)) []byte {
		h := example()
		b := AppendHeader(nil, &h)
		f(b)
		return b
	}
	longer := func(more int, version byte) []byte {
		h := example()
		b := append(AppendHeader(nil, &h), make([]byte, more)...)
		b[8] = version
		le32(b[4:], uint32(len(b)-8))
		le32(b[len(b)-4:], CRC32C(b[:len(b)-4]))
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, ErrNotHeader},
		{"short", raw(func([]byte) {})[:HeaderSize-1], ErrNotHeader},
		{"bit flip in seal", raw(func(b []byte) { b[100] ^= 1 }), ErrNotHeader},
		{"bit flip in checksum", raw(func(b []byte) { b[135] ^= 0x80 }), ErrNotHeader},
		{"no payload", edit(func(h *Header) { h.Length = 0 }), ErrNotHeader},
		{"payload above the cap", edit(func(h *Header) { h.Length = MaxPayload + 1 }), ErrNotHeader},
		{"single of two", edit(func(h *Header) { h.Flags = Single; h.Count = 2 }), ErrNotHeader},
		{"no records", edit(func(h *Header) { h.Count = 0 }), ErrNotHeader},
		{"numbers overflow", edit(func(h *Header) { h.First = ^uint64(0) }), ErrNotHeader},
		{"unknown codec", edit(func(h *Header) { h.Codec = 3 }), ErrVersion},
		{"longer and newer", longer(64, 2), ErrVersion},
		{"as long as any", longer(MaxHeader-HeaderSize, 2), ErrVersion},
		{"longer than any", longer(MaxHeader-HeaderSize+1, 2), ErrNotHeader},
		{"longer, of this version", longer(64, 1), ErrNotHeader},
		{"longer and cut off", longer(64, 2)[:HeaderSize], ErrNotHeader},
		{"version 0", raw(func(b []byte) { b[8] = 0; le32(b[132:], CRC32C(b[:132])) }), ErrNotHeader},
		{"newer version", raw(func(b []byte) { b[8] = 2; le32(b[132:], CRC32C(b[:132])) }), ErrVersion},
	} {
		if _, err := ParseHeader(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := ParseHeader(edit(func(h *Header) { h.Flags = Single; h.Count = 1; h.Length = MaxSingle })); err != nil {
		t.Errorf("single of the largest size: %v", err)
	}
}

func le32(b []byte, v uint32) { b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24) }

func TestIdentity(t *testing.T) {
	const s = "gw-1/deadbeefcafef00d/000000000000000a-000000000000000c-c1c2c3c4"
	h := Header{First: 10, Count: 3, CRC: 0xc1c2c3c4}
	id := h.Identity("gw-1", 0xdeadbeefcafef00d)
	if id.String() != s {
		t.Errorf("identity %s, want %s", id, s)
	}
	if got, err := ParseIdentity(s); err != nil || got != id {
		t.Errorf("ParseIdentity = %+v, %v", got, err)
	}
	for _, bad := range []string{"", s[1:][4:], strings.ToUpper(s), s + "0", strings.Replace(s, "00a-", "00d-", 1), strings.Replace(s, "/", "-", 1)} {
		if _, err := ParseIdentity(bad); err == nil {
			t.Errorf("ParseIdentity(%q) passed", bad)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("gw-1/deadbeefcafef00d/000000000000000a-000000000000000c-c1c2c3c4")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseIdentity(s); err == nil && id.String() != s {
			t.Errorf("%q parsed, prints as %q", s, id)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	h := example()
	f.Add(AppendHeader(nil, &h))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= HeaderSize {
			le32(b[132:], CRC32C(b[:132])) // else nothing passes
		}
		if h, err := ParseHeader(b); err == nil && !bytes.Equal(AppendHeader(nil, &h)[:128], b[:128]) {
			t.Errorf("%x parsed, encodes otherwise", b)
		}
	})
}

func TestSizesRoundTrip(t *testing.T) {
	r := Run{Batches: []Batch{
		{Header: Header{Count: 5000}, Payload: make([]byte, 300_000)}, {Header: Header{Count: 1}, Payload: make([]byte, 1)},
	}}
	got, err := ParseSizes(r.Sizes())
	if err != nil || len(got) != 2 || got[0] != (Size{300_000, 5000}) || got[1] != (Size{1, 1}) {
		t.Errorf("sizes %q: %v, %v", r.Sizes(), got, err)
	}
	if _, err := ParseSizes("gA"); err == nil {
		t.Error("half a number passed")
	}
}

func fill(rng *rand.Rand, lines, width int, random bool) *Open {
	var o Open
	o.Reset(7, 0)
	for i := range lines {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("spillway ", width/9))
		if random {
			p := make([]byte, width)
			for j := range p {
				p[j] = byte('!' + rng.IntN(94))
			}
			line = string(p) + "\n"
		}
		o.Lines = append(o.Lines, line...)
		o.Added(int64(i + 1))
	}
	return &o
}

// Every codec gives back the lines it was given, and batches that compress worse
// than estimated are cut at line ends below the cap.
func TestEncode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, codec := range []Codec{None, Gzip, Zstd} {
		e, err := NewEncoder(codec, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			o    *Open
			want string
		}{
			{"one line", fill(rng, 1, 40, false), "one"},
			{"5,000 lines", fill(rng, 5000, 40, false), "one"},
			{"incompressible", fill(rng, 300, 10_000, true), "many"},
			{"one huge line", fill(rng, 1, 3<<20, true), "single"},
			{"huge line among small ones", func() *Open {
				o := fill(rng, 3, 50, false)
				h := fill(rng, 1, 3<<20, true)
				o.Lines = append(o.Lines, h.Lines...)
				o.Added(9)
				return o
			}(), "single"},
		} {
			bs, _, err := e.Encode(nil, c.o, nil)
			if err != nil {
				t.Fatalf("%v %s: %v", codec, c.name, err)
			}
			next, single := uint64(7), false
			var body, back []byte
			for _, b := range bs {
				if b.First != next || b.Count == 0 {
					t.Fatalf("%v %s: batch from %d, want %d", codec, c.name, b.First, next)
				}
				next = b.Last() + 1
				single = single || b.Flags&Single != 0
				if b.Flags&Single == 0 && len(b.Payload) > MaxPayload {
					t.Errorf("%v %s: payload of %d bytes", codec, c.name, len(b.Payload))
				}
				if err := b.Check(); err != nil {
					t.Errorf("%v %s: %v", codec, c.name, err)
				}
				body = append(body, b.Payload...)
				if back, err = Decode(back, b.Payload, b.Codec, int(b.Raw)); err != nil {
					t.Fatalf("%v %s: %v", codec, c.name, err)
				}
			}
			if next != c.o.Next() {
				t.Errorf("%v %s: numbers end at %d, want %d", codec, c.name, next, c.o.Next())
			}
			if !bytes.Equal(back, c.o.Lines) {
				t.Errorf("%v %s: lines differ", codec, c.name)
			}
			if c.want == "one" && len(bs) != 1 || c.want == "many" && len(bs) < 2 || single != (c.want == "single") {
				t.Errorf("%v %s: %d batches, single %v", codec, c.name, len(bs), single)
			}
			r, err := NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if all, err := io.ReadAll(r); err != nil || !bytes.Equal(all, c.o.Lines) {
				t.Errorf("%v %s: concatenated payloads: %d bytes, %v", codec, c.name, len(all), err)
			}
		}
	}
}

// A small payload that unpacks to a huge one is an error, not an allocation.
func TestDecodeBounds(t *testing.T) {
	for _, codec := range []Codec{None, Gzip, Zstd} {
		e, _ := NewEncoder(codec, 0)
		var o Open
		o.Reset(1, 0)
		o.Lines = bytes.Repeat([]byte("a\n"), 400<<10)
		o.Added(1)
		bs, _, err := e.Encode(nil, &o, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(nil, bs[0].Payload, codec, 64<<10); err == nil {
			t.Errorf("%v: 800 KiB unpacked with a limit of 64 KiB", codec)
		}
	}
}

func TestBuilderDue(t *testing.T) {
	b := NewBuilder(BuilderOptions{Bytes: 1000, Raw: 10_000, Records: 3})
	var o Open
	o.Reset(1, 0)
	if b.Due(&o, 1<<20) {
		t.Error("an empty batch is due: a huge line would never go in")
	}
	o.Lines = append(o.Lines, make([]byte, 3900)...)
	o.Added(1)
	if b.Full(&o) || !b.Due(&o, 200) || b.Due(&o, 100) {
		t.Error("size: want due at 1000 compressed bytes with ratio 4")
	}
	b.Learn(1)
	if !b.Full(&o) {
		t.Error("a batch that did not compress must lower the estimate at once")
	}
	for range 100 {
		b.Learn(1e9) // the estimate is then above the largest int of a 32-bit system
	}
	if b.Due(&o, 6000) || !b.Due(&o, 6200) {
		t.Error("the raw limit does not hold")
	}
	o.Added(2)
	o.Added(3)
	if !b.Full(&o) || o.Next() != 4 {
		t.Error("the record limit does not hold")
	}
}

func BenchmarkEncode(b *testing.B) {
	rng := rand.New(rand.NewPCG(3, 4))
	var o Open
	o.Reset(1, 0)
	for i := range 4000 {
		o.Lines = fmt.Appendf(o.Lines, `{"@timestamp":"2026-11-20T12:00:00.%09dZ","message":"Accepted publickey for root from 192.0.2.%d port %d ssh2","log":{"syslog":{"priority":38}},"seq":%d}`+"\n", rng.IntN(1e9), rng.IntN(256), rng.IntN(65536), i)
		o.Added(int64(i))
	}
	for _, codec := range []Codec{Zstd, Gzip, None} {
		e, _ := NewEncoder(codec, 0)
		b.Run(codec.String(), func(b *testing.B) {
			b.SetBytes(int64(len(o.Lines)))
			b.ReportAllocs()
			var bs []*Batch
			var mem []byte
			for b.Loop() {
				bs, mem, _ = e.Encode(bs[:0], &o, mem[:0])
			}
			b.ReportMetric(float64(len(o.Lines))/float64(len(bs[0].Payload)), "ratio")
		})
	}
}
