package ledger_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// TestEpochs is about what only the numbers of several epochs can tell.
func TestEpochs(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(l *lane) world
		want string
		says string
	}{
		{"an epoch of which nothing is left", func(l *lane) world {
			a := l.run(2, 10)
			l.newEpoch(8, 10)
			return world{stream: messages(a, l.newEpoch(9, 10))}
		}, "gap", "records 21 to 50 are missing, 30 of them unexplained"},
		{"an epoch of which nothing is left, as gap records tell", func(l *lane) world {
			a := l.run(2, 10)
			l.next += 5 // numbers that no record ever had
			b := l.newEpoch(8, 10)
			c := l.newEpoch(9, 10)
			g := ecs.Gap{Reason: "full_oldest", Epoch: 8, First: b.First(), Last: b.Last(), Count: 30}
			return world{stream: messages(a, c, l.telling(10, g))}
		}, "", "{First:26 Last:55 Explained:30 Missing:0 Reasons:[full_oldest]}"},
		{"an epoch without records between two", func(l *lane) world {
			a := l.run(2, 10)
			l.sealer = batch.Sealer{Epoch: 8}
			return world{stream: messages(a, l.newEpoch(9, 10))}
		}, "", ""},
		{"an epoch with records above what the next one tells as its last: they never were on the disk", func(l *lane) world {
			a := l.run(2, 10)
			last, seal := l.next-1, l.sealer.Prev
			a2 := l.run(2, 10) // delivered from memory, and then the power went
			l.next, l.sealer.Prev = last+1, seal
			return world{stream: messages(a, a2, l.newEpoch(9, 10))}
		}, "", "Last:40"},
		{"records above the last of which only some came out", func(l *lane) world {
			a := l.run(2, 10)
			last, seal := l.next-1, l.sealer.Prev
			l.run(1, 10)
			b := l.run(1, 10)
			l.next, l.sealer.Prev = last+1, seal
			return world{stream: messages(a, b, l.newEpoch(9, 10))}
		}, "gap", "records 21 to 30 are missing"},
		{"an agent that was killed before its first record was stored", func(l *lane) world {
			return world{stream: messages(l.newEpoch(9, 10)), options: ledger.Options{FromStart: true}}
		}, "", "Begins:first"},
		{"an agent whose first records were delivered from memory only", func(l *lane) world {
			a := l.run(2, 10)
			l.next, l.sealer.Prev = 1, batch.Seal{}
			return world{stream: messages(a, l.newEpoch(9, 10))}
		}, "", "Last:20"},
		{"retention took all of the epochs before", func(l *lane) world {
			l.run(2, 10)
			l.newEpoch(8, 10)
			return world{stream: messages(l.newEpoch(9, 10))}
		}, "", "Here:false"},
		{"a clock that went back between two epochs", func(l *lane) world {
			a := l.run(2, 10)
			l.now = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
			return world{stream: messages(a, l.newEpoch(9, 10))[1:]}
		}, "", "First:11"},
		{"a new directory, and retention in the one before", func(l *lane) world {
			a := messages(l.run(4, 10))
			l.sealer, l.next, l.now = batch.Sealer{Epoch: 9}, 1, l.now.Add(time.Hour)
			return world{stream: append(a[2:], messages(l.run(1, 10))...)}
		}, "", "First:21"},
		{"a lane that one source does not know", func(l *lane) world {
			h := history(l)
			d := bares(h[1:3]...)
			for _, o := range d {
				o.Lane = ""
			}
			return world{dir: d, bucket: objects(slices.Delete(h, 1, 3)...)}
		}, "", "Lane:main"},
		{"an object that was moved to another lane", func(l *lane) world {
			o := objects(history(l)...)
			o[1].Lane = "audit"
			return world{bucket: o}
		}, "metadata", "lane audit's, and others say main's"},
		{"the seal before a hole", func(l *lane) world {
			a, _, b := l.run(2, 10), l.run(1, 10), l.run(1, 10)
			g := hole(a, b, "full_oldest")
			g.SealBefore[0] ^= 1
			return world{stream: messages(a, b, l.telling(10, g))}
		}, "seal", "another seal of the batch before them"},
		{"the seal behind a hole", func(l *lane) world {
			a, _, b := l.run(2, 10), l.run(1, 10), l.run(1, 10)
			g := hole(a, b, "full_oldest")
			g.SealAfter[0] ^= 1
			return world{stream: messages(a, b, l.telling(10, g))}
		}, "seal", "another seal of the batch behind them"},
		{"a message out of order, of which another source has a copy", func(l *lane) world {
			h := history(l)
			m := messages(h...)
			m[4], m[5] = m[5], m[4]
			return world{stream: m, bucket: objects(h[1])}
		}, "order", "records 41 to 50 come behind record 60"},
		{"merged gap records share what is missing, the one that ends first first", func(l *lane) world {
			r := split(l, l.run(6, 1)) // 2 and 4 are missing
			wide := ecs.Gap{Reason: "damaged", Epoch: 7, First: 1, Last: 5, Count: 1}
			narrow := ecs.Gap{Reason: "torn", Epoch: 7, First: 2, Last: 3, Count: 1}
			return world{stream: messages(r[0], r[2], r[4], r[5], l.telling(10, wide, narrow))}
		}, "", "{First:2 Last:2 Explained:1 Missing:0 Reasons:[torn]} {First:4 Last:4 Explained:1 Missing:0 Reasons:[damaged]}"},
		{"nothing", func(l *lane) world { return world{bucket: []*outputs.Object{}} }, "unreadable", "no record of Spillway"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := test.make(newLane(t, batch.Zstd, 7, 1))
			r := w.report()
			if got := kinds(r); got != test.want || !strings.Contains(show(r), test.says) {
				t.Fatalf("found %q, want %q that says %q\n%s", got, test.want, test.says, show(r))
			}
		})
	}
}

// A bucket that is read before the stream must not hide that the stream is out of
// order.
func TestOrderOfSources(t *testing.T) {
	l := newLane(t, batch.Zstd, 7, 1)
	h := history(l)
	m := messages(h...)
	m[4], m[5] = m[5], m[4]
	led := ledger.New(ledger.Options{})
	bucket, stream := led.Source("bucket", false), led.Source("stream", true)
	for _, o := range objects(h...) {
		bucket.Object(o)
	}
	for _, o := range m {
		stream.Object(o)
	}
	if r := led.Report(); kinds(r) != "order" {
		t.Fatal(show(r))
	}
}
