package ledger_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// world is what the sources of one test hold.
type world struct {
	stream  []*outputs.Object // in the stream's order
	bucket  []*outputs.Object
	dir     []*outputs.Object // no seals, no sizes
	options ledger.Options
}

func (w *world) report() *ledger.Report {
	l := ledger.New(w.options)
	for _, s := range []struct {
		name    string
		ordered bool
		objects []*outputs.Object
	}{{"stream", true, w.stream}, {"bucket", false, w.bucket}, {"dir", false, w.dir}} {
		if s.objects == nil {
			continue
		}
		to := l.Source(s.name, s.ordered)
		for _, o := range s.objects {
			to.Object(o)
		}
	}
	return l.Report()
}

func messages(runs ...*batch.Run) (all []*outputs.Object) {
	for _, r := range runs {
		for i := range r.Batches {
			all = append(all, message(r, i))
		}
	}
	return all
}

func objects(runs ...*batch.Run) (all []*outputs.Object) {
	for _, r := range runs {
		all = append(all, object(r))
	}
	return all
}

func bares(runs ...*batch.Run) (all []*outputs.Object) {
	for _, r := range runs {
		all = append(all, bare(object(r)))
	}
	return all
}

// hole is the gap record of what is missing between two runs of one epoch, as the
// buffer writes it: with the seal of the first batch behind it.
func hole(before, after *batch.Run, reason string) ecs.Gap {
	return ecs.Gap{Reason: reason, Epoch: uint64(before.Epoch), First: before.Last() + 1, Last: after.First() - 1,
		Count: after.First() - before.Last() - 1, SealBefore: before.Seal(), SealAfter: after.Batches[0].Seal}
}

// split is the batches of r as runs of one.
func split(l *lane, r *batch.Run) (runs []*batch.Run) {
	for i := range r.Batches {
		one := l.of(r.BeforeOf(i), r.Batches[i])
		one.Epoch = r.Epoch
		runs = append(runs, one)
	}
	return runs
}

// TestFaults seeds faults into what streams and buckets return, and into two or
// three places together.
func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(l *lane) world
		want string // kinds of faults
		says string // what the report says, faults and epochs
	}{
		{"clean stream", func(l *lane) world { return world{stream: messages(history(l)...)} }, "", "Begins:first"},
		{"clean bucket", func(l *lane) world { return world{bucket: objects(history(l)...)} }, "", "Begins:follows"},
		{"bucket listed backwards", func(l *lane) world {
			o := objects(history(l)...)
			slices.Reverse(o)
			return world{bucket: o}
		}, "", "Seals:{Chains:1 Unchecked:0}"},
		{"directory listed backwards", func(l *lane) world {
			o := bares(history(l)...)
			slices.Reverse(o)
			return world{dir: o}
		}, "", "Seals:{Chains:1 Unchecked:0}"},
		{"failover: stream, bucket, stream", func(l *lane) world {
			h := history(l)
			return world{stream: messages(h[0], h[2], h[4]), bucket: objects(h[1], h[3], h[5])}
		}, "", "Seals:{Chains:1 Unchecked:0}"},
		{"stream, directory, stream: the recomputed chain arrives at the next seal", func(l *lane) world {
			h := history(l)
			return world{stream: messages(h[0], h[2]), dir: bares(h[1], h[3])}
		}, "", "Seals:{Chains:1 Unchecked:0}"},
		{"a removed message", func(l *lane) world {
			m := messages(history(l)...)
			return world{stream: slices.Delete(m, 4, 5)}
		}, "gap", "records 41 to 50 are missing, 10 of them unexplained"},
		{"a deleted object", func(l *lane) world {
			return world{bucket: slices.Delete(objects(history(l)...), 1, 2)}
		}, "gap", "records 31 to 60 are missing"},
		{"retention took the first messages", func(l *lane) world {
			return world{stream: messages(history(l)...)[5:]}
		}, "", "Begins:middle"},
		{"retention, with --from-start", func(l *lane) world {
			return world{stream: messages(history(l)...)[5:], options: ledger.Options{FromStart: true}}
		}, "gap", "records 1 to 50 are missing"},
		{"retention took the first epoch", func(l *lane) world {
			return world{stream: messages(history(l)...)[12:]}
		}, "", "Here:false"},
		{"retention took the first epoch, with --from-start", func(l *lane) world {
			return world{stream: messages(history(l)...)[12:], options: ledger.Options{FromStart: true}}
		}, "epoch", "of which nothing is here"},
		{"a swapped payload of the same length", func(l *lane) world {
			h := history(l)
			o := object(h[1])
			b := payloads(h[1])
			b[len(b)/2] ^= 0x20
			return world{bucket: []*outputs.Object{object(h[0]), body(o, b), object(h[2])}}
		}, "bytes gap", "as when it was sent"},
		{"a swapped payload whose CRC was adjusted too", func(l *lane) world {
			h := history(l)
			other := newLane(l.t, batch.Zstd, 7, 31)
			other.salt = "forged"
			forged := other.run(3, 10)
			o := object(forged) // key, CRC and sizes of the forged bytes, seals of the true ones
			o.Before, o.Seal = h[1].Before, h[1].Seal()
			return world{bucket: []*outputs.Object{object(h[0]), o, object(h[2])}}
		}, "gap seal", "bytes, numbers or seals were changed"},
		{"a forged run with seals that fit in themselves", func(l *lane) world {
			h := history(l)
			other := newLane(l.t, batch.Zstd, 7, 31)
			other.salt = "forged"
			other.sealer.Prev = h[1].Before
			return world{bucket: []*outputs.Object{object(h[0]), object(other.run(3, 10)), object(h[2]), object(h[3])}}
		}, "seal", "the seals do not join"},
		{"a seal before that was changed", func(l *lane) world {
			h := history(l)
			o := object(h[1])
			o.Before[3] ^= 1
			return world{bucket: []*outputs.Object{object(h[0]), o, object(h[2])}}
		}, "gap seal", "bytes, numbers or seals were changed"},
		{"a first batch with a seal before it", func(l *lane) world {
			l.sealer.Prev = batch.Seal{1}
			return world{stream: messages(l.run(2, 10))}
		}, "seal", "is the first of its epoch"},
		{"a re-ordered pair", func(l *lane) world {
			m := messages(history(l)...)
			m[4], m[5] = m[5], m[4]
			return world{stream: m}
		}, "order", "records 41 to 50 come behind record 60"},
		{"sent again behind a higher number, as it says", func(l *lane) world {
			m := messages(history(l)...)
			m[4], m[5] = m[5], m[4]
			m[5].Attempt = 2
			return world{stream: m}
		}, "", "SentAgain:1"},
		{"a message twice, outside the deduplication window", func(l *lane) world {
			h := history(l)
			return world{stream: append(messages(h...), message(h[2], 1))}
		}, "", "Duplicates:{Batches:1 Records:10}"},
		{"duplicates with equal bytes in two places", func(l *lane) world {
			h := history(l)
			return world{stream: messages(h...), bucket: objects(h[1], h[2])}
		}, "", "Duplicates:{Batches:6 Records:60}"},
		{"duplicates in a directory and a bucket", func(l *lane) world {
			h := history(l)
			return world{dir: bares(h...), bucket: objects(h[1:3]...)}
		}, "", "Duplicates:{Batches:6 Records:60}"},
		{"the same numbers with other bytes", func(l *lane) world {
			h := history(l)
			other := newLane(l.t, batch.Zstd, 7, 31)
			other.salt = "other"
			other.sealer.Prev = h[1].Before
			return world{stream: messages(h...), bucket: objects(other.run(3, 10))}
		}, "contents contents contents", "records 31 to 40 have other bytes here than in another place"},
		{"the same records cut into other batches", func(l *lane) world {
			h := history(l)
			other := newLane(l.t, batch.Zstd, 7, 31)
			other.sealer.Prev = h[1].Before
			return world{stream: messages(h...), bucket: objects(other.run(2, 15))}
		}, "contents contents", "have other bytes"},
		{"the same bytes in a chain of another beginning", func(l *lane) world {
			h := history(l)
			other := newLane(l.t, batch.Zstd, 7, 1)
			other.run(3, 10)
			other.sealer.Prev[0] ^= 1
			return world{stream: messages(h...), bucket: objects(other.run(1, 10))}
		}, "seal", "two chains over the same records"},
		{"objects of one source that overlap", func(l *lane) world {
			h := history(l)
			b := slices.Concat(h[0].Batches[1:], h[1].Batches)
			return world{bucket: append(objects(h...), object(l.as(7).of(h[0].BeforeOf(1), b...)))}
		}, "overlap", "records 11 to 60 are in another object of this source too"},
		{"the same object under failover/ too", func(l *lane) world {
			h := history(l)
			again := object(h[1])
			again.Name, again.Reason = "failover/"+again.Name, "failover"
			return world{bucket: append(objects(h...), again)}
		}, "", "Duplicates:{Batches:3 Records:30}"},
		{"an object whose metadata is gone", func(l *lane) world {
			h := history(l)
			o := objects(h...)
			bare(o[1])
			return world{bucket: o}
		}, "", "Seals:{Chains:1 Unchecked:0}"},
		{"an object without sizes, which has its seals", func(l *lane) world {
			o := objects(history(l)...)
			o[1].Sizes = nil
			return world{bucket: o}
		}, "", "Seals:{Chains:1 Unchecked:0}"},
		{"sizes that do not add up", func(l *lane) world {
			o := objects(history(l)...)
			o[1].Sizes = o[1].Sizes[:2]
			return world{bucket: o}
		}, "gap metadata", "do not add up"},
		{"sizes of other batches", func(l *lane) world {
			o := objects(history(l)...)
			o[1].Sizes[0].Bytes--
			o[1].Sizes[1].Bytes++
			return world{bucket: o}
		}, "gap payload", "can't be decoded"},
		{"a body that can't be read to its end", func(l *lane) world {
			o := objects(history(l)...)
			o[2].Body = broken{}
			return world{bucket: o}
		}, "gap unreadable", "connection lost"},
		{"an explained gap", func(l *lane) world {
			a, lost, b := l.run(2, 10), l.run(1, 10), l.run(1, 10)
			_ = lost
			return world{stream: messages(a, b, l.telling(10, hole(a, b, "full_oldest")))}
		}, "", "Reasons:[full_oldest]"},
		{"an explained gap in a directory: its seal carries the chain over", func(l *lane) world {
			a, _, b := l.run(2, 10), l.run(1, 10), l.run(2, 10)
			return world{dir: bares(a, b, l.telling(10, hole(a, b, "damaged")))}
		}, "", "Seals:{Chains:2 Unchecked:0}"},
		{"a gap told twice", func(l *lane) world {
			a, _, b := l.run(2, 10), l.run(1, 10), l.run(1, 10)
			g := hole(a, b, "full_oldest")
			return world{stream: messages(a, b, l.telling(10, g), l.telling(10, g))}
		}, "", "{First:21 Last:30 Explained:10 Missing:0 Reasons:[full_oldest]}"},
		{"a gap that is told of in part", func(l *lane) world {
			a, _, b := l.run(2, 10), l.run(1, 10), l.run(1, 10)
			g := hole(a, b, "full_oldest")
			g.First, g.Count = g.First+3, g.Count-3
			return world{stream: messages(a, b, l.telling(10, g))}
		}, "gap", "records 21 to 30 are missing, 3 of them unexplained"},
		{"one gap, told of by several records", func(l *lane) world {
			a, _, b := l.run(2, 10), l.run(3, 10), l.run(1, 10)
			g, h := hole(a, b, "full_oldest"), hole(a, b, "torn")
			g.Last, g.Count = 40, 20
			h.First, h.Count = 36, 15
			return world{stream: messages(a, b, l.telling(10, g, h))}
		}, "", "Reasons:[full_oldest torn]"},
		{"two holes in one merged gap record", func(l *lane) world {
			r := split(l, l.run(6, 10))
			g := ecs.Gap{Reason: "damaged", Epoch: 7, First: 11, Last: 50, Count: 20}
			return world{stream: messages(r[0], r[2], r[3], r[5], l.telling(10, g))}
		}, "", "{First:41 Last:50 Explained:10 Missing:0 Reasons:[damaged]}"},
		{"two holes, and a merged gap record of fewer", func(l *lane) world {
			r := split(l, l.run(6, 10))
			g := ecs.Gap{Reason: "damaged", Epoch: 7, First: 11, Last: 50, Count: 17}
			return world{stream: messages(r[0], r[2], r[3], r[5], l.telling(10, g))}
		}, "gap", "records 41 to 50 are missing, 3 of them unexplained: gap records tell of fewer"},
		{"an explained gap before the first record", func(l *lane) world {
			l.run(2, 10)
			g := ecs.Gap{Reason: "full_oldest", Epoch: 7, First: 1, Last: 20, Count: 20}
			return world{stream: messages(l.telling(10, g)), options: ledger.Options{FromStart: true}}
		}, "", "{First:1 Last:20 Explained:20 Missing:0 Reasons:[full_oldest]}"},
		{"numbers that the writer left out", func(l *lane) world {
			a := l.run(2, 10)
			l.next += 100
			return world{stream: messages(a, l.run(2, 10))}
		}, "", "Reasons:[left_out]"},
		{"the end of an epoch is missing", func(l *lane) world {
			m := messages(history(l)...)
			return world{stream: slices.Delete(m, 11, 12)}
		}, "gap", "records 111 to 120 are missing"},
		{"the beginning of an epoch is missing", func(l *lane) world {
			m := messages(history(l)...)
			return world{stream: slices.Delete(m, 12, 13)}
		}, "epoch", "although older ones are here"},
		{"an epoch begins without the record that names the one before", func(l *lane) world {
			a := l.run(2, 10)
			l.sealer = batch.Sealer{Epoch: 9}
			return world{stream: messages(a, l.run(2, 10))}
		}, "epoch", "no record of it names the epoch before"},
		{"an epoch's record is dropped with its batch and told again", func(l *lane) world {
			a := l.run(2, 10)
			b := l.newEpoch(9, 10)
			g := ecs.Gap{Reason: "full_oldest", Epoch: 9, First: 21, Last: 30, Count: 10}
			e := ecs.Gap{Reason: "epoch", Epoch: 7, Last: 20, SealBefore: a.Seal()}
			rest := l.as(9).of(b.BeforeOf(1), b.Batches[1:]...)
			return world{stream: messages(a, rest, l.telling(10, g, e))}
		}, "", "Begins:follows"},
		{"an epoch's record tells another seal", func(l *lane) world {
			h := history(l)
			l2 := newLane(l.t, batch.Zstd, 7, 1)
			l2.run(12, 10)
			l2.sealer.Prev[0] ^= 1
			return world{stream: messages(append(h[:4:4], l2.newEpoch(9, 10))...)}
		}, "seal", "the epoch after it tells another seal of its record 120"},
		{"a new directory", func(l *lane) world {
			a := l.run(2, 10)
			l.sealer, l.next = batch.Sealer{Epoch: 9}, 1
			return world{stream: messages(a, l.run(2, 10))}
		}, "", "Begins:first"},
		{"a changed number", func(l *lane) world {
			o := objects(history(l)...)
			o[1].First, o[1].Last = o[1].First+1, o[1].Last+1
			return world{bucket: o}
		}, "gap numbers", "record 32 says that it is 31"},
		{"a changed epoch", func(l *lane) world {
			o := objects(history(l)[:3]...)
			o[1].Epoch++
			return world{bucket: o}
		}, "gap numbers", "says that it is 31 of epoch 0000000000000007"},
		{"raw lines", func(l *lane) world {
			l.raw = true
			return world{bucket: objects(l.run(3, 10))}
		}, "", "Seals:{Chains:1 Unchecked:0}"},
		{"raw lines with an explained gap", func(l *lane) world {
			l.raw = true
			a, _, b := l.run(2, 10), l.run(1, 10), l.run(1, 10)
			return world{bucket: objects(a, b, l.telling(10, hole(a, b, "full_oldest")))}
		}, "", "Reasons:[full_oldest]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := test.make(newLane(t, batch.Zstd, 7, 1))
			r := w.report()
			if got := kinds(r); got != test.want {
				t.Fatalf("found %q, want %q\n%s", got, test.want, show(r))
			}
			if r.Complete != (test.want == "") {
				t.Errorf("complete: %v", r.Complete)
			}
			if !strings.Contains(show(r), test.says) {
				t.Errorf("nothing says %q:\n%s", test.says, show(r))
			}
			for _, f := range r.Faults {
				if f.Hint == "" {
					t.Errorf("no hint for %s", f.Kind)
				}
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection lost") }
func (broken) Close() error             { return nil }

// telling is a run of one batch of n records that begins with gap records.
func (l *lane) telling(n int, gaps ...ecs.Gap) *batch.Run {
	r := l.begin()
	r.Batches = append(r.Batches, l.batch(n, gaps...))
	return r
}

// as is l while it was in epoch e.
func (l *lane) as(e batch.Epoch) *lane {
	c := *l
	c.sealer.Epoch = e
	return &c
}
