package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// TestNothingDisappears sends through inputs of all policies while the output and
// the disk come and go and the agent restarts, in simulated time. At every step the
// law of Counts holds, and so does that of each input; in the end every message that
// was sent has arrived once, or is among those that are counted as dropped or lost,
// and every number is explained.
func TestNothingDisappears(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := plan{
			Full:     buffer.Policy(rapid.IntRange(0, 1).Draw(rt, "full")),
			Sync:     buffer.SyncPolicy(rapid.IntRange(0, 2).Draw(rt, "sync")),
			Objects:  rapid.Bool().Draw(rt, "objects"),
			MaxBytes: int64(rapid.IntRange(200, 1500).Draw(rt, "KiB")) << 10,
			Memory:   int64(rapid.SampledFrom([]int{0, 0, 128, 1024}).Draw(rt, "KiB of memory")) << 10,
			Records:  rapid.IntRange(1, 40).Draw(rt, "records"),
			Steps: rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
				return step{
					Do:   rapid.SampledFrom([]string{"send", "send", "send", "send", "output fails", "output works", "output works", "output takes nothing for good", "disk fails", "disk works", "disk works", "restart", "stop at once"}).Draw(rt, "do"),
					In:   rapid.IntRange(0, 4).Draw(rt, "input"),
					N:    rapid.IntRange(1, 40).Draw(rt, "messages"),
					Size: rapid.IntRange(1, 20_000).Draw(rt, "bytes"),
					Wait: time.Duration(rapid.IntRange(0, 3000).Draw(rt, "ms")) * time.Millisecond,
				}
			}), 1, 40).Draw(rt, "steps"),
		}
		var err error
		synctest.Test(t, func(t *testing.T) { err = p.run(t) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

type plan struct {
	Full     buffer.Policy
	Sync     buffer.SyncPolicy
	Objects  bool
	MaxBytes int64
	Memory   int64
	Records  int
	Steps    []step
}

type step struct {
	Do      string
	In      int
	N, Size int
	Wait    time.Duration
}

// lazyFS is a dirFS that says that it syncs.
type lazyFS struct{ *dirFS }

type lazyFile struct {
	buffer.File
	fs *dirFS
}

func (d *lazyFS) Close() error { return nil } // another life opens it again

func (d *lazyFS) Create(name string) (buffer.File, error) {
	if dir := path.Dir(name); dir != "." {
		d.Mkdir(dir, 0o700)
	}
	f, err := d.dirFS.Create(name)
	return lazyFile{f, d.dirFS}, err
}

func (d *lazyFS) Open(name string, write bool) (buffer.File, error) {
	f, err := d.dirFS.Open(name, write)
	return lazyFile{f, d.dirFS}, err
}

func (f lazyFile) Sync() error {
	if f.fs.bad.Load() {
		return errDisk
	}
	return nil
}

// life is one run of the agent.
type life struct {
	stopped  sync.Once
	buf      *buffer.Buffer
	forgot   bool // an earlier life had records in memory only at its end
	lane     *Lane
	ins      [5]*Input
	work     [5]chan step // of the inputs' connections
	conns    sync.WaitGroup
	watching sync.WaitGroup
	enough   context.CancelFunc // ends the watching
	draining context.CancelFunc // ends the waiting of connections
	hard     context.CancelFunc // ends all waiting
	done     chan struct{}
}

type world struct {
	plan
	disk *lazyFS
	m    *memory
	out  outputs.Output
	text string
	log  safe

	first    map[string]uint64 // numbers of the epochs
	number   atomic.Int64      // of the newest message
	sent     atomic.Int64      // messages
	dropped  uint64            // of these, by inputs
	filtered uint64            // of these
	alerts   uint64            // records that are no message
	lost     map[string]uint64 // records, by reason, of lives that are over
	unclean  bool              // a life ended while the disk failed
	rejected uint64
}

var errUnfit = &outputs.Error{Output: "memory", Op: "publish", Stored: outputs.StoredNo, Action: outputs.Unfit, Err: errors.New("too odd")}

func (p plan) run(t *testing.T) (err error) {
	w := &world{plan: p, disk: &lazyFS{newDirFS(t)}, m: &memory{}, text: noise(20_000), lost: map[string]uint64{}, first: map[string]uint64{}}
	w.out = w.m
	if p.Objects {
		o := &planned{}
		w.m, w.out = &o.memory, o
		w.m.limits.Age = 2 * time.Second
	}
	l, err := w.begin()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			l.stop(0)
			l.buf.Close()
		}
	}()
	for i, s := range p.Steps {
		switch s.Do {
		case "send":
			l.work[s.In] <- s
		case "output fails":
			w.m.setFail(errDown)
		case "output works":
			w.m.setFail(nil)
		case "output takes nothing for good":
			w.m.setFail(errUnfit)
		case "disk fails":
			w.disk.bad.Store(true)
		case "disk works":
			w.disk.bad.Store(false)
		case "restart", "stop at once":
			if err := w.end(l, s.Do == "stop at once"); err != nil {
				return fmt.Errorf("step %d, %s: %w\n%s", i, s.Do, err, &w.log)
			}
			next, err := w.begin()
			if err != nil {
				return err
			}
			l = next
		}
		time.Sleep(s.Wait)
		synctest.Wait()
		if err := l.law(); err != nil {
			return fmt.Errorf("step %d, %s: %w\n%s", i, s.Do, err, &w.log)
		}
	}
	w.m.setFail(nil)
	w.disk.bad.Store(false)
	time.Sleep(time.Hour)
	if c := l.lane.Counts(); c.Pending+c.InFlight > 0 || l.lane.Full() || l.lane.held.Load() != 0 {
		return fmt.Errorf("not at rest: full %v, %d bytes held, %+v\n%s", l.lane.Full(), l.lane.held.Load(), c, &w.log)
	}
	if err := w.end(l, false); err != nil {
		return fmt.Errorf("the end: %w\n%s", err, &w.log)
	}
	if err := w.judge(); err != nil {
		return fmt.Errorf("%w\n%s", err, &w.log)
	}
	return nil
}

func (w *world) begin() (*life, error) {
	buf, err := buffer.Open("", buffer.Options{Agent: "gw1", FS: w.disk, MaxBytes: w.MaxBytes, MinFree: -1, SegmentBytes: 40 << 10, Full: w.Full, Sync: w.Sync, Memory: w.Memory})
	if err != nil {
		return nil, err
	}
	if s := buf.Begin(); w.first[s.Epoch.String()] == 0 {
		w.first[s.Epoch.String()] = s.Next
	}
	log := slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	l := &life{buf: buf, forgot: w.lost["memory"] > 0, done: make(chan struct{})}
	l.lane = NewLane(LaneOptions{Name: "main", Agent: "gw1", Buffer: buf, Codec: batch.None, Reserve: 64 << 10, BufferKeeps: w.Sync == buffer.SyncInterval,
		Batch: batch.BuilderOptions{Records: w.Records}, AgeHeld: 5 * time.Second, Log: log,
		Chain: outputs.NewChain(outputs.ChainOptions{Log: log}, w.out)})
	for i, full := range []OnFull{Block, Block, Drop, Refuse, Refuse} {
		o := InputOptions{Name: fmt.Sprint("in", i), Lane: l.lane, OnFull: full, Records: ecs.Options{Dataset: "d", Agent: "gw1"}}
		switch i {
		case 1:
			o.Filter = &Filter{SeverityAbove: -1, Drop: everySeventh}
		case 4:
			o.Vault = &VaultOptions{Pairing: true, PairTimeout: 5 * time.Second, Dedupe: true}
		}
		l.ins[i] = NewInput(o)
		l.work[i] = make(chan step, 100)
	}
	var ctx, hard, watched context.Context
	watched, l.enough = context.WithCancel(context.Background())
	l.watching.Go(func() { l.ins[4].Watch(watched) })
	ctx, l.draining = context.WithCancel(context.Background())
	hard, l.hard = context.WithCancel(context.Background())
	for i, in := range l.ins {
		l.conns.Go(func() {
			s := in.Open()
			defer s.Close()
			for c := range l.work[i] {
				for range c.N {
					// What is not sent any more at the stop is not lost.
					if ctx.Err() != nil {
						return
					}
					for _, m := range w.messages(i, c.Size) {
						w.sent.Add(1)
						s.Message(msg(m), from, time.Now())
						if s.Flush(ctx) != nil {
							return
						}
					}
				}
			}
		})
	}
	go func() { l.lane.Run(hard); close(l.done) }()
	return l, nil
}

// everySeventh drops messages whose number ends in 7.
var everySeventh = regexp.MustCompile(`^\d*7 `)

// messages are what one input sends next: a text, or the entries of one request, of
// which every third has no response, and every fifth comes twice.
func (w *world) messages(in, size int) (all []string) {
	n := w.number.Add(1)
	if in != 4 {
		return []string{fmt.Sprintf("%d %s", n, w.text[:size])}
	}
	entry := func(kind string) string {
		return fmt.Sprintf(`{"request":{"id":"%d","data":%q},"type":%q}`, n, w.text[:size], kind)
	}
	all = []string{entry("request")}
	if n%5 == 0 {
		all = append(all, all[0])
	}
	if n%3 != 0 {
		all = append(all, entry("response"))
	}
	return all
}

// way is how many messages of an input have neither been admitted nor are counted as
// none.
func way(in *Input) int64 {
	d, f := in.Dropped(), uint64(0)
	for _, n := range in.Filtered() {
		f += n
	}
	return in.Messages.Load() + in.Alerts.Load() - in.Admitted.Load() - int64(d["buffer_full"]+d["stopped"]+f)
}

// law is what holds at every moment.
func (l *life) law() error {
	for _, in := range l.ins {
		// One message a Flush: one at most is on its way.
		if n := way(in); n < 0 || n > 1 {
			return fmt.Errorf("input %s: %d messages and %d alerts, %d admitted, dropped %v, filtered %v", in.o.Name, in.Messages.Load(), in.Alerts.Load(), in.Admitted.Load(), in.Dropped(), in.Filtered())
		}
	}
	return l.lane.Counts().lawAfter(l.forgot)
}

// stop returns when everything but the buffer has ended.
func (l *life) stop(grace time.Duration) {
	l.stopped.Do(func() {
		l.draining()
		for _, c := range l.work {
			close(c)
		}
		l.conns.Wait()
		l.enough()
		l.watching.Wait()
		l.lane.Close()
		end := time.AfterFunc(grace, l.hard)
		defer end.Stop()
		<-l.done
		l.hard()
	})
}

// end stops a life, as a first signal does whose grace is half a minute, or as a
// second one.
func (w *world) end(l *life, atOnce bool) error {
	if !atOnce {
		time.Sleep(time.Second)
	}
	grace := 30 * time.Second
	if atOnce {
		grace = 0
	}
	l.stop(grace)
	for _, in := range l.ins {
		d := in.Dropped()
		if way(in) != 0 {
			return fmt.Errorf("input %s: %d messages and %d alerts, %d admitted, dropped %v, filtered %v", in.o.Name, in.Messages.Load(), in.Alerts.Load(), in.Admitted.Load(), d, in.Filtered())
		}
		w.dropped += d["buffer_full"] + d["stopped"]
		w.alerts += uint64(in.Alerts.Load())
		for _, n := range in.Filtered() {
			w.filtered += n
		}
	}
	c := l.lane.Counts()
	if err := c.lawAfter(l.forgot); err != nil {
		return err
	}
	if c.InFlight != 0 {
		return fmt.Errorf("the lane has ended with %d records in flight: %+v", c.InFlight, c)
	}
	for reason, n := range c.Lost {
		w.lost[reason] += n
	}
	w.rejected += c.Rejected
	err := l.buf.Close()
	if err != nil && !w.disk.bad.Load() {
		return err
	}
	if errors.Is(err, buffer.ErrMemory) {
		var n uint64
		if _, serr := fmt.Sscanf(err.Error(), "close buffer: %d records were", &n); serr != nil {
			return fmt.Errorf("%w: %w", serr, err)
		}
		w.lost["memory"] += n
	}
	w.unclean = w.unclean || w.disk.bad.Load()
	return nil
}

// judge compares what was sent with what has arrived.
func (w *world) judge() error {
	arrived := map[string]bool{}
	var gaps []string
	type number struct {
		epoch string
		seq   uint64
	}
	have, told, last := map[number]bool{}, map[number]bool{}, map[string]uint64{}
	toldDropped, alerts := uint64(0), uint64(0)
	for _, b := range w.m.batches {
		text, err := batch.Decode(nil, b.Payload, b.Codec, int(b.Raw))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			var r struct {
				Message  string
				Event    struct{ ID, Kind string }
				Spillway struct {
					Epoch string
					Seq   uint64
					Gap   *struct {
						Reason, Input, Epoch string
						Count, First, Last   uint64
					}
				}
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				return err
			}
			n := number{r.Spillway.Epoch, r.Spillway.Seq}
			if have[n] {
				return fmt.Errorf("number %v arrived twice", n)
			}
			have[n] = true
			last[n.epoch] = max(last[n.epoch], n.seq)
			switch g := r.Spillway.Gap; {
			case g == nil && r.Event.Kind == "alert":
				alerts++
			case g == nil:
				id, _, _ := strings.Cut(cmp.Or(r.Event.ID, r.Message), " ")
				if arrived[id] {
					return fmt.Errorf("message %s arrived twice", id)
				}
				arrived[id] = true
			case g.Input != "":
				toldDropped += g.Count
			default:
				gaps = append(gaps, fmt.Sprintf("%d: %s %d-%d", n.seq, g.Reason, g.First, g.Last))
				for n := g.First; n <= g.Last && g.First > 0; n++ {
					told[number{g.Epoch, n}] = true
				}
			}
		}
	}
	both := 0 // dropped while they were handed over
	for epoch, last := range last {
		for seq := w.first[epoch]; seq <= last; seq++ {
			n := number{epoch, seq}
			switch {
			case !have[n] && !told[n] && w.lost["memory"] > 0 && w.Full == buffer.DropOldest: // the record that told was in memory too
			case !have[n] && !told[n]:
				return fmt.Errorf("number %v of %d neither arrived nor is told as lost: %v", n, last, gaps)
			case have[n] && told[n]:
				both++
			}
		}
	}
	var lost uint64
	for _, n := range w.lost {
		lost += n
	}
	missing, explained := uint64(w.sent.Load())+w.alerts-uint64(len(arrived))-alerts, w.dropped+w.filtered+lost+w.rejected
	if missing > explained {
		return fmt.Errorf("%d of %d messages and %d alerts are missing, and %d are counted as dropped, %d as filtered, %d as rejected, %v as lost", missing, w.sent.Load(), w.alerts, w.dropped, w.filtered, w.rejected, w.lost)
	}
	// What is counted and not missing are gap records that were lost themselves, or
	// records that were dropped while they were handed over.
	if w.Full == buffer.Hold && !w.unclean && w.rejected == 0 && (missing != explained || both > 0) {
		return fmt.Errorf("%d of %d messages and %d alerts are missing, but %d are counted: %d dropped, %d filtered, lost %v; %d told and there", missing, w.sent.Load(), w.alerts, explained, w.dropped, w.filtered, w.lost, both)
	}
	// A gap record may lie in a batch that is lost or rejected in another life.
	if !w.unclean && w.Full == buffer.Hold && w.rejected == 0 && toldDropped != w.dropped {
		return fmt.Errorf("gap records tell of %d dropped messages, %d were", toldDropped, w.dropped)
	}
	return nil
}
