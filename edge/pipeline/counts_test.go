package pipeline

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// Rates follow what comes and goes, and from them when the buffer is full or empty.
func TestTimeToFullAndToDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const maxBytes, each = 64 << 20, 32 << 10
		m := &memory{}
		b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
			o.FS, o.MaxBytes, l.Codec = &lazyFS{newDirFS(t)}, maxBytes, batch.None
			patiently(l, m)
		})
		s, text := b.in.Open(), noise(each)
		send := func(a int, d time.Duration) {
			for range d / time.Second {
				for range a {
					s.Message(msg(text), from, time.Now())
				}
				s.Flush(t.Context())
				time.Sleep(time.Second)
			}
		}
		about := func(what string, got, want, off float64) {
			t.Helper()
			if math.Abs(got-want) > off*want {
				t.Errorf("%s is %.0f, want about %.0f", what, got, want)
			}
		}
		if _, ok := b.lane.TimeToFull(); ok {
			t.Error("an empty lane that gets nothing will be full")
		}
		if d, ok := b.lane.TimeToDrain(); !ok || d != 0 {
			t.Error("an empty lane takes time to drain")
		}
		send(4, 5*time.Minute)
		in, out := b.lane.Rates()
		about("the rate in", in, 4*each, 0.05)
		about("the rate out", out, 4*each, 0.05)
		// The rates may differ by what came in the last second, one part in sixty.
		if d, ok := b.lane.TimeToFull(); ok && d < 4*time.Hour {
			t.Errorf("full in %v, although all is delivered", d)
		}
		m.setFail(errDown)
		began := time.Now()
		send(4, time.Minute)
		room := float64(b.buf.Stats().Room)
		d, ok := b.lane.TimeToFull()
		if !ok {
			t.Fatal("it does not fill")
		}
		about("the time to full", d.Seconds(), room/(4*each), 0.05)
		if got := b.lane.OldestPending().Sub(began); got < -time.Second || got > time.Second {
			t.Errorf("the oldest that is pending came %v after the output failed", got)
		}
		if d, ok := b.lane.TimeToDrain(); ok && d < 10*time.Minute {
			t.Errorf("drained in %v with an output that fails", d)
		}
		m.setFail(nil)
		time.Sleep(time.Hour)
		if in, out := b.lane.Rates(); in > 1 || out > 1 {
			t.Errorf("after an hour of nothing %v bytes come and %v go", in, out)
		}
		if at := b.lane.OldestPending(); !at.IsZero() {
			t.Errorf("pending since %v, and nothing is", at)
		}
		s.Close()
		b.stop()
		b.check(b.in)
	})
}

// A steady flow is the same rate however often it is looked at.
func TestMeterWeighsTime(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	for _, every := range []time.Duration{time.Second, 7 * time.Second, time.Minute, 5 * time.Minute} {
		t.Run(fmt.Sprint(every), func(t *testing.T) {
			m := meter{at: at}
			var n float64
			for d := every; d <= 10*time.Minute; d += every {
				n += 100 * every.Seconds()
				m.add(at.Add(d), flow{in: n})
			}
			if got := m.sum.in / m.weight; math.Abs(got-100) > 1e-6 {
				t.Errorf("100 a second are %v", got)
			}
			m.add(m.at.Add(smooth), flow{in: n})
			if got := m.sum.in / m.weight; math.Abs(got-100/math.E) > 0.1 {
				t.Errorf("after a minute without any %v are left", got)
			}
		})
	}
}

func TestUntil(t *testing.T) {
	for _, c := range []struct {
		n, goes, comes float64
		want           time.Duration
		ok             bool
	}{
		{100, 10, 0, 10 * time.Second, true},
		{100, 10, 5, 20 * time.Second, true},
		{0, 10, 5, 0, true},
		{100, 0, 0, 0, false},
		{100, 5, 10, 0, false},
		{100, 10.05, 10, 0, false},
		{1e30, 1, 0, 0, false},
	} {
		if d, ok := until(c.n, c.goes, c.comes); d != c.want || ok != c.ok {
			t.Errorf("%v at %v against %v: %v, %v", c.n, c.goes, c.comes, d, ok)
		}
	}
}

// A disk that others fill is a full buffer, also before the first record comes, and
// what is told names it.
func TestFullOfOthersFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const minFree = 4 << 20
		disk := newTrouble(t)
		disk.free.Store(minFree - 1)
		b := start(t, "", &memory{}, Block, func(o *buffer.Options, _ *LaneOptions) { o.FS, o.MinFree = disk, minFree })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !b.lane.Full() {
			t.Error("the lane is not called full")
		}
		if d, ok := b.lane.TimeToFull(); !ok || d != 0 {
			t.Errorf("full in %v, %v; it is", d, ok)
		}
		log := b.log.String()
		if !strings.Contains(log, "the buffer is full") || !strings.Contains(log, fmt.Sprintf("free the disk: %d bytes are left, and SPILLWAY_BUFFER_MIN_FREE are for others", minFree-1)) || strings.Contains(log, "MAX_BYTES") {
			t.Errorf("log: %s", log)
		}
		disk.free.Store(1 << 30)
		time.Sleep(time.Minute)
		synctest.Wait()
		if b.lane.Full() || !strings.Contains(b.log.String(), "the buffer has room again") {
			t.Errorf("full with room; log: %s", b.log.String())
		}
		if d, ok := b.lane.TimeToFull(); ok {
			t.Errorf("an empty lane that gets nothing will be full in %v", d)
		}
		b.stop()
	})
}
