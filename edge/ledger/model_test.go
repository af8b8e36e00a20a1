package ledger_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"spillway/buffer/batch"
	"spillway/edge/ledger"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// The simplest ledger: every number by itself.
type model struct {
	epochs []*modelEpoch
	kinds  map[string]uint64
}

type modelEpoch struct {
	last       uint64 // the last number that was sealed
	there      map[uint64]bool
	exact, any []ecs.Gap // what gap records tell: of whole ranges, of some numbers in a range
	copies     uint64    // batches
}

// expect returns how many numbers are missing and explained, and missing and not.
// final says that no epoch follows.
func (m *modelEpoch) expect(final bool) (explained, missing uint64) {
	told := func(n uint64) bool {
		return slices.ContainsFunc(m.exact, func(g ecs.Gap) bool { return g.First <= n && n <= g.Last })
	}
	low, high := ^uint64(0), uint64(0)
	for n := range m.there {
		low, high = min(low, n), max(high, n)
	}
	for low > 1 && told(low-1) {
		low--
	}
	if !final {
		high = m.last
	}
	var open []uint64
	for n := low; n <= high; n++ {
		switch {
		case m.there[n]:
		case told(n):
			explained++
		default:
			open = append(open, n)
		}
	}
	// The most that the others can explain: a matching of numbers with places in
	// records, by augmenting paths.
	var places []ecs.Gap
	for _, g := range m.any {
		for range g.Count {
			places = append(places, g)
		}
	}
	taken := make([]int, len(places)) // index in open + 1
	var place func(i int, seen []bool) bool
	place = func(i int, seen []bool) bool {
		for p, g := range places {
			if seen[p] || open[i] < g.First || open[i] > g.Last {
				continue
			}
			seen[p] = true
			if taken[p] == 0 || place(taken[p]-1, seen) {
				taken[p] = i + 1
				return true
			}
		}
		return false
	}
	for i := range open {
		if place(i, make([]bool, len(places))) {
			explained++
		} else {
			missing++
		}
	}
	return explained, missing
}

// TestModel compares the ledger with the model over random histories: batches that
// go to a stream, a bucket or a directory, to several of them, or nowhere; gap
// records that tell all, some or too little of what is missing; copies with other
// bytes; messages out of order.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLane(t, batch.Zstd, 7, 1)
		m := model{kinds: map[string]uint64{}}
		var w world
		number := 0 // in the stream
		high := map[batch.Epoch]uint64{}
		send := func(r *batch.Run, attempt int) {
			o := message(r, 0)
			number++
			o.Attempt = attempt
			w.stream = append(w.stream, o)
			if r.Last() < high[r.Epoch] && attempt < 2 {
				m.kinds[ledger.KindOrder]++
			}
			high[r.Epoch] = max(high[r.Epoch], r.Last())
		}
		epochs := rapid.IntRange(1, 3).Draw(rt, "epochs")
		lost := make([][]ecs.Gap, epochs)
		for i := range epochs {
			e := &modelEpoch{there: map[uint64]bool{}}
			m.epochs = append(m.epochs, e)
			var waiting *batch.Run // for its place in the stream
			var object *batch.Run  // of the bucket, not sent yet
			put := func() {
				if object != nil {
					w.bucket = append(w.bucket, objects(object)...)
				}
				object = nil
			}
			batches := rapid.IntRange(2, 8).Draw(rt, "batches")
			for j := range batches {
				var gaps []ecs.Gap
				if i > 0 && j == 0 {
					gaps = append(gaps, ecs.Gap{Reason: "epoch", Epoch: uint64(l.sealer.Epoch), Last: l.next - 1, SealBefore: l.sealer.Prev})
					l.sealer = batch.Sealer{Epoch: batch.Epoch(7 + i)}
				}
				end := i == epochs-1 && j == batches-1
				if end {
					for k := range m.epochs {
						gaps = append(gaps, tell(rt, m.epochs[k], lost[k])...)
					}
				}
				n := rapid.IntRange(max(1, len(gaps)), len(gaps)+3).Draw(rt, "records")
				r := l.begin()
				r.Batches = append(r.Batches, l.batch(n, gaps...))
				e.last = r.Last()
				places := rapid.SampledFrom([]string{"stream", "bucket", "dir", "stream bucket", "stream dir", "bucket dir", "stream stream", "late", "", ""}).Draw(rt, "places")
				if places == "" && (i > 0 && j == 0 || end) {
					places = "dir" // what the record of an epoch and the gap records are in
				}
				if places == "" {
					lost[i] = append(lost[i], ecs.Gap{Reason: "full_oldest", Epoch: uint64(r.Epoch), First: r.First(), Last: r.Last(), Count: uint64(n)})
					put()
					continue
				}
				for n := r.First(); n <= r.Last(); n++ {
					e.there[n] = true
				}
				in := map[string]bool{}
				switch places {
				case "stream":
					send(r, 1)
				case "bucket", "stream bucket", "bucket dir":
					in["bucket"] = true
				case "stream stream":
					send(r, 1)
					w.stream = append(w.stream, message(r, 0))
					e.copies++
				case "late":
					if waiting == nil {
						waiting = r
					} else {
						send(r, 1)
					}
				}
				if places == "stream bucket" || places == "stream dir" {
					send(r, 1)
				}
				if in["bucket"] {
					if object == nil {
						object = l.as(r.Epoch).of(r.Before)
					}
					object.Batches = append(object.Batches, r.Batches[0])
				} else {
					put()
				}
				if places == "dir" || places == "stream dir" || places == "bucket dir" {
					w.dir = append(w.dir, bares(r)...)
				}
				if slices.Contains([]string{"stream bucket", "stream dir", "bucket dir"}, places) {
					e.copies++
				}
				if rapid.IntRange(0, 19).Draw(rt, "forged") == 0 && !(i > 0 && j == 0) && !end {
					f := newLane(t, batch.Zstd, r.Epoch, r.First())
					f.salt = "forged"
					w.dir = append(w.dir, bares(f.run(1, n))...)
					m.kinds[ledger.KindContents]++
					if slices.Contains([]string{"dir", "stream dir", "bucket dir"}, places) {
						m.kinds[ledger.KindOverlap]++
					}
				}
			}
			put()
			if len(e.there) == 0 {
				rt.Skip("an epoch without a record")
			}
			if waiting != nil {
				send(waiting, rapid.IntRange(1, 2).Draw(rt, "attempt"))
			}
		}
		if rapid.Bool().Draw(rt, "backwards") {
			slices.Reverse(w.bucket)
		}
		var records, explained, missing, copies uint64
		for i, e := range m.epochs {
			x, n := e.expect(i == epochs-1)
			explained, missing, copies = explained+x, missing+n, copies+e.copies
			records += uint64(len(e.there))
		}
		if w.stream == nil {
			w.stream = []*outputs.Object{}
		}
		r := w.report()
		if r.Records != records || r.Explained != explained || r.Missing != missing || r.Duplicates != copies {
			rt.Fatalf("%d records, %d explained, %d missing, %d copies; want %d, %d, %d, %d\n%s", r.Records, r.Explained, r.Missing, r.Duplicates,
				records, explained, missing, copies, show(r))
		}
		for _, k := range []string{ledger.KindContents, ledger.KindOverlap, ledger.KindOrder} {
			if r.Counts[k] != m.kinds[k] {
				rt.Fatalf("%d of kind %s, want %d\n%s", r.Counts[k], k, m.kinds[k], show(r))
			}
		}
		if (r.Counts[ledger.KindGap] > 0) != (missing > 0) {
			rt.Fatalf("%d missing, faults %s", missing, show(r))
		}
		for k := range r.Counts {
			if !slices.Contains([]string{ledger.KindContents, ledger.KindOverlap, ledger.KindOrder, ledger.KindGap}, k) {
				rt.Fatalf("%s was found, and nothing of it is there\n%s", k, show(r))
			}
		}
		if r.Complete != (len(r.Counts) == 0) {
			rt.Fatalf("complete %v with %v", r.Complete, r.Counts)
		}
	})
}

// tell returns gap records for some of what e lost, and notes in e what they say.
func tell(rt *rapid.T, e *modelEpoch, lost []ecs.Gap) (gaps []ecs.Gap) {
	for i := 0; i < len(lost); i++ {
		g := lost[i]
		switch rapid.SampledFrom([]string{"exact", "exact", "twice", "part", "merged", "short", "none"}).Draw(rt, "told") {
		case "none":
			continue
		case "twice":
			gaps = append(gaps, g)
			e.exact = append(e.exact, g)
		case "part":
			g.Last = g.First
			g.Count = 1
			e.exact = append(e.exact, g)
			gaps = append(gaps, g)
			continue
		case "exact":
			e.exact = append(e.exact, g)
		case "merged", "short":
			for i+1 < len(lost) && rapid.Bool().Draw(rt, "more") {
				i++
				g.Last, g.Count = lost[i].Last, g.Count+lost[i].Count
			}
			if g.Count > 1 && rapid.Bool().Draw(rt, "fewer") {
				g.Count--
			}
			if g.Count > g.Last-g.First {
				e.exact = append(e.exact, g)
			} else if !slices.Contains(e.any, g) {
				e.any = append(e.any, g)
			}
		}
		gaps = append(gaps, g)
	}
	for len(lost) > 1 && rapid.IntRange(0, 2).Draw(rt, "across") == 0 {
		a := rapid.IntRange(0, len(lost)-2).Draw(rt, "from")
		b := rapid.IntRange(a+1, len(lost)-1).Draw(rt, "to")
		g := ecs.Gap{Reason: "damaged", Epoch: lost[a].Epoch, First: lost[a].First, Last: lost[b].Last, Count: rapid.Uint64Range(1, 6).Draw(rt, "count")}
		if g.Count <= g.Last-g.First && !slices.Contains(e.any, g) {
			e.any = append(e.any, g)
			gaps = append(gaps, g)
		}
	}
	return gaps
}
