package outputs

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"spillway/buffer/batch"
)

func runOf(lane, agent string, epoch batch.Epoch, first uint64, at time.Time, h batch.Header, payloads ...string) *batch.Run {
	run := &batch.Run{Lane: lane, Agent: agent, Epoch: epoch}
	for _, p := range payloads {
		h.First, h.Count, h.FirstTime = first, 3, at.UnixNano()
		first += 3
		run.Batches = append(run.Batches, batch.Batch{Header: h, Payload: []byte(p)})
	}
	return run
}

// The spelling of keys is a format: policies, notifications and queries hang on it.
func TestKey(t *testing.T) {
	at := time.Date(2026, 11, 20, 23, 59, 59, 999999999, time.FixedZone("", -2*3600)) // 01:59 UTC on the 21st
	zstd := batch.Header{Codec: batch.Zstd}
	for _, c := range []struct {
		name, prefix, reason, want string
		run                        *batch.Run
	}{
		{"zstd", "logs/edge", "",
			"logs/edge/main/dt=2026-11-21/site=plant-1/hr=01/gw1/00000000000000ab-0000000000000010-0000000000000015-52a4fb0b.ndjson.zst",
			runOf("main", "gw1", 0xab, 16, at, zstd, "a\n", "b\n")},
		{"no prefix, gzip", "", "",
			"audit/dt=2026-11-21/site=plant-1/hr=01/gw_2/ffffffffffffffff-0000000000000001-0000000000000003-09bde29b.ndjson.gz",
			runOf("audit", "gw_2", math.MaxUint64, 1, at, batch.Header{Codec: batch.Gzip}, "a\n")},
		{"failover, plain", "logs", "failover",
			"logs/failover/main/dt=2026-11-21/site=plant-1/hr=01/gw1/0000000000000000-0000000000000001-0000000000000003-09bde29b.ndjson",
			runOf("main", "gw1", 0, 1, at, batch.Header{}, "a\n")},
		{"large, raw lines", "", "large",
			"large/main/dt=2026-11-21/site=plant-1/hr=01/gw1/0000000000000001-fffffffffffffffd-ffffffffffffffff-09bde29b.log.zst",
			runOf("main", "gw1", 1, math.MaxUint64-2, at, batch.Header{Codec: batch.Zstd, Flags: batch.RawLines}, "a\n")},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run.Reason = c.reason
			got := Key(c.prefix, "plant-1", c.run)
			if got != c.want {
				t.Errorf("key is\n\t%s, want\n\t%s", got, c.want)
			}
			if again := Key(c.prefix, "plant-1", c.run); again != got {
				t.Errorf("and again\n\t%s", again)
			}
		})
	}
}

// What Key wrote ParseKey restores, whatever is in it.
func TestKeyRoundTrip(t *testing.T) {
	name := rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`)
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint64Range(1, math.MaxUint64-100).Draw(t, "first")
		var payloads []string
		for range rapid.IntRange(1, 4).Draw(t, "batches") {
			payloads = append(payloads, rapid.StringN(1, 20, -1).Draw(t, "payload"))
		}
		h := batch.Header{Codec: rapid.SampledFrom([]batch.Codec{batch.None, batch.Gzip, batch.Zstd}).Draw(t, "codec"),
			Flags: rapid.SampledFrom([]batch.Flags{0, batch.RawLines}).Draw(t, "flags")}
		run := runOf(rapid.StringMatching(`[a-z][a-z0-9]{0,15}`).Filter(func(s string) bool { return s != "failover" && s != "large" }).Draw(t, "lane"),
			name.Draw(t, "agent"), batch.Epoch(rapid.Uint64().Draw(t, "epoch")), first,
			time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "time"), 0), h, payloads...)
		run.Reason = rapid.SampledFrom([]string{"", "failover", "large"}).Draw(t, "reason")
		site := name.Draw(t, "site")
		prefix := rapid.SampledFrom([]string{"", "logs", "logs/edge", "a/b/c/d/e/f/g"}).Draw(t, "prefix")
		key := Key(prefix, site, run)
		o, err := ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		want := Object{Name: key, Lane: run.Lane, Site: site, Agent: run.Agent, Epoch: run.Epoch, First: run.First(), Last: run.Last(),
			CRC: run.CRC(), Codec: h.Codec, Reason: run.Reason}
		if o.Name != want.Name || o.Lane != want.Lane || o.Site != want.Site || o.Agent != want.Agent || o.Epoch != want.Epoch ||
			o.First != want.First || o.Last != want.Last || o.CRC != want.CRC || o.Codec != want.Codec || o.Reason != want.Reason {
			t.Fatalf("%s\nreads as %+v\nwant     %+v", key, *o, want)
		}
	})
}

// Within an epoch, names sort as numbers do: a listing shows gaps.
func TestKeyOrder(t *testing.T) {
	at := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	var keys []string
	for _, first := range []uint64{1, 9, 10, 15, 16, 255, 256, 1 << 20, 1 << 40, 1<<63 - 1, 1 << 63} {
		keys = append(keys, Key("logs", "plant", runOf("main", "gw1", 7, first, at, batch.Header{Codec: batch.Zstd}, "a\n")))
	}
	if !slices.IsSorted(keys) {
		t.Errorf("out of order:\n%s", strings.Join(keys, "\n"))
	}
}

// A reader knows a stranger's object by its key.
func TestParseKeyStrangers(t *testing.T) {
	good := "logs/main/dt=2026-11-20/site=plant/hr=14/gw1/00000000000000ab-0000000000000010-0000000000000015-c6830f9c.ndjson.zst"
	if _, err := ParseKey(good); err != nil {
		t.Fatal(err)
	}
	change := func(old, new string) string {
		s := strings.Replace(good, old, new, 1)
		if s == good {
			t.Fatalf("%q is not in the key", old)
		}
		return s
	}
	for _, key := range []string{
		"", "/", "a", "logs/_probe/gw1/probe", "logs/readme.txt", "a/b/c/d/e/f", strings.Repeat("/", 10),
		change("dt=", "day="), change("site=", "place="), change("hr=", "h="), change("/gw1", ""),
		change("00000000000000ab", "ab"), change("00000000000000ab", "00000000000000xy"), change("ab-", "ab_"),
		change("0000000000000010", "0000000000000016"), // last before first
		change("0000000000000010", "0000000000000000"), // numbers begin at 1
		change("c6830f9c", "c6830f9"), change("c6830f9c", "c6830f9cc"), change("c6830f9c", "c6830fxx"),
		change(".ndjson.zst", ".parquet"), change(".ndjson.zst", ".ndjson.zst.tmp"),
	} {
		if o, err := ParseKey(key); err == nil {
			t.Errorf("%q is taken for %+v", key, *o)
		} else if !strings.Contains(err.Error(), "key ") {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("logs/main/dt=2026-11-20/site=plant/hr=14/gw1/00000000000000ab-0000000000000010-0000000000000015-c6830f9c.ndjson.zst")
	f.Add("logs/_probe/gw1/probe")
	f.Fuzz(func(t *testing.T, key string) {
		o, err := ParseKey(key)
		if err == nil && (o.First == 0 || o.Last < o.First || o.Name != key) {
			t.Errorf("%q is taken for %+v", key, *o)
		}
	})
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "65536": 65536, "1KiB": 1024, "512KiB": 512 << 10, "20MiB": 20 << 20, "20 MiB": 20 << 20, " 1GiB ": 1 << 30,
		"8589934591GiB": 8589934591 << 30,
	} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q is %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "-1KiB", "1.5MiB", "1KB", "1MB", "1k", "1kib", "0x10", "1e3", "8589934592GiB", "9223372036854775808", "1KiBKiB"} {
		s := Size(7)
		if err := s.UnmarshalText([]byte(text)); err == nil || s != 7 || !strings.Contains(err.Error(), text) {
			t.Errorf("%q is %d, %v", text, s, err)
		}
	}
	for s, want := range map[Size]string{0: "0", 1: "1", 1023: "1023", 1024: "1KiB", 1536: "1536", 512 << 10: "512KiB", 1 << 20: "1MiB", 256 << 20: "256MiB", 3 << 30: "3GiB", 1<<40 + 1024: "1073741825KiB"} {
		if s.String() != want {
			t.Errorf("%d is %q, want %q", int64(s), s.String(), want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := Size(rapid.Int64Range(0, math.MaxInt64).Draw(t, "size"))
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Fatalf("%d is %q, which reads as %d, %v", int64(s), s, again, err)
		}
	})
}

func TestNames(t *testing.T) {
	for s, want := range map[Stored]string{0: "unknown", StoredNo: "no", StoredMaybe: "maybe", StoredYes: "yes"} {
		if s.String() != want {
			t.Errorf("%d is %q, want %q", s, s, want)
		}
	}
	for a, want := range map[Action]string{0: "unknown", Retry: "retry", Failover: "failover", Unfit: "unfit", Misconfigured: "misconfigured", 5: "unknown"} {
		if a.String() != want {
			t.Errorf("%d is %q, want %q", a, a, want)
		}
	}
}
