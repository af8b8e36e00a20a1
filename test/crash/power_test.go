package crash

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/test/faults"
)

// sent is a batch that a writer called Append for, and what became of it.
type sent struct {
	epoch             string
	first, last, life uint64
	size              int
	promised          bool   // it can't be lost any more
	written           bool   // it was when its process was killed, and only a power cut can lose it
	delivered         bool   // Next returned it
	told              []hole // that it tells of
}

// hole is a gap that a batch tells of.
type hole struct {
	reason             string
	first, last, count uint64
}

type number struct {
	epoch string
	first uint64
}

type plan struct {
	first, last uint64
	key         string
}

// world is what is known outside of one directory over many lives of writers. Its
// methods are the oracle.
type world struct {
	life
	batches            map[number]*sent
	order              []*sent
	epoch              string // the last one
	seen               uint64 // the highest that was delivered, and known to be before a cut
	plan               plan   // SetPlan returned for it, and nothing touched it since
	maybe              bool   // plan may be there or not
	closed             bool   // the last life ended with Close
	problems           []string
	lives              int
	said               []string       // by all lives, for people
	gaps               map[string]int // told, by reason
	durable, delivered int            // batches, in the sum of many
}

func (w *world) problem(format string, args ...any) {
	if len(w.problems) < 10 {
		w.problems = append(w.problems, fmt.Sprintf("life %d: ", w.lives)+fmt.Sprintf(format, args...))
	}
}

// process is a running writer and what it has said so far.
type process struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	all []string // guarded by mu until end is closed
	end chan struct{}
}

func (w *world) start(t *testing.T) *process {
	t.Helper()
	w.lives++
	w.Seed++
	arg, err := json.Marshal(w.life)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command("/proc/self/exe"), end: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), writerEnv+"="+string(arg))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.end)
		in := bufio.NewReader(out)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return // the last line may be cut: nobody has heard of it
			}
			p.mu.Lock()
			p.all = append(p.all, strings.TrimSuffix(line, "\n"))
			p.mu.Unlock()
		}
	}()
	return p
}

// heard is how many lines there are by now.
func (p *process) heard() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)
}

// until waits for the first line, the process's end, or a minute.
func (p *process) until(lines int) {
	for end := time.Now().Add(time.Minute); p.heard() < lines && time.Now().Before(end); {
		select {
		case <-p.end:
			return
		case <-time.After(200 * time.Microsecond):
		}
	}
}

// kill ends the process, if it has not ended, and waits for all it said.
func (p *process) kill() (all []string) {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.end
	_ = p.cmd.Wait()
	return p.all
}

// How a life ends.
const (
	byCut   = "power cut"
	byKill  = "kill -9"
	byClose = "close"
)

// take reads what a life has said. Of a life that a power cut ended, only the first
// known lines were heard before it began: what came later may never have happened.
func (w *world) take(all []string, known int, end string) {
	if end != byCut {
		known = len(all)
	}
	w.said = append(w.said, fmt.Sprintf("== life %d, seed %d, ends by %s; known before: %d lines", w.lives, w.Seed, end, known))
	w.said = append(w.said, all...)
	pending := map[uint64][]hole{}
	var life []*sent
	var committed uint64
	fresh, closed, opened, epoch := true, false, false, ""
	for i, line := range all {
		sure := i < known
		f := strings.Fields(line)
		n := make([]uint64, len(f))
		for j, s := range f {
			_, _ = fmt.Sscan(s, &n[j]) // 0 where it is no number
		}
		switch f[0] {
		case "error", "memory":
			if sure {
				w.problem("%s", line)
			}
		case "open":
			// What a life reads from a disk that is gone says nothing about the next one.
			if opened, epoch = sure, f[1]; sure {
				w.opened(f, n)
			}
		case "gap":
			pending[n[1]] = append(pending[n[1]], hole{f[2], n[3], n[4], n[5]})
		case "batch":
			s := &sent{epoch: epoch, first: n[1], last: n[1] + n[2] - 1, size: int(n[3]), life: w.Seed, told: pending[n[1]]}
			at := number{s.epoch, s.first}
			if w.batches[at] != nil {
				w.problem("number %d of epoch %s is given to a second batch", s.first, s.epoch)
			}
			w.batches[at] = s
			w.order, life = append(w.order, s), append(life, s)
		case "durable", "written":
			switch {
			case sure && f[0] == "durable":
				promise(life, n[1])
			case end == byKill:
				for _, s := range life {
					s.written = s.written || s.last <= n[1]
				}
			}
		case "next":
			x := number{f[3], n[1]}
			s := w.batches[x]
			if s == nil || s.last != n[2] || sum(content(s.life, s.first, s.size)) != f[4] {
				w.problem("%s: nobody appended that", line)
				break
			}
			if s.first <= committed {
				w.problem("%s: after %d was committed", line, committed)
			}
			key := ""
			if len(f) > 5 {
				key = f[5]
			}
			if fresh && w.plan.key != "" && !w.maybe && (key != w.plan.key || s.first != w.plan.first) {
				w.problem("%s: instead of the plan %v", line, w.plan)
			}
			fresh = false
			s.delivered = true
			if sure {
				w.seen = max(w.seen, s.last)
			}
		case "planning":
			w.maybe = true
		case "planned":
			w.plan, w.maybe = plan{n[1], n[2], f[3]}, !sure
		case "committing":
			if w.plan.key != "" && !w.maybe && n[1] != w.plan.last {
				w.problem("%s: but the plan is %v", line, w.plan)
			}
			w.maybe = true
		case "committed":
			committed = n[1]
			w.plan = plan{}
		case "closed":
			if sure {
				closed = true
				promise(life, 1<<63)
			}
		default:
			w.problem("%q", line)
		}
	}
	w.closed = closed || w.closed && !opened
	if end == byCut {
		for _, s := range w.order {
			s.written = false // it was only in the kernel's memory
		}
		w.maybe = w.maybe || w.Sync == buffer.SyncNever // what it covers may be gone
	}
}

func promise(life []*sent, last uint64) {
	for _, s := range life {
		s.promised = s.promised || s.last <= last
	}
}

// opened judges where numbering goes on.
func (w *world) opened(f []string, n []uint64) {
	epoch, next := f[1], n[2]
	var high uint64 // that is on the disk
	for _, s := range w.order {
		if s.promised || s.written {
			high = max(high, s.last)
		}
	}
	if next <= high || next <= w.seen && w.Sync != buffer.SyncNever {
		w.problem("numbering goes on at %d, but %d was durable and %d delivered", next, high, w.seen)
	}
	switch {
	case epoch == w.epoch && !w.closed:
		w.problem("epoch %s goes on after a life that did not close the buffer", epoch)
	case len(f) > 3:
		for _, s := range w.order {
			if (s.promised || s.written) && s.epoch == f[3] && s.last > n[4] {
				w.problem("%s: but %d was durable", strings.Join(f, " "), s.last)
				break
			}
		}
	case epoch != w.epoch && high > 0:
		w.problem("epoch %s does not tell of %s", epoch, w.epoch)
	}
	w.epoch = epoch
}

// finish judges when everything was delivered.
func (w *world) finish() {
	var holes []hole
	for _, s := range w.order {
		if !s.delivered {
			continue
		}
		for _, h := range s.told {
			holes = append(holes, h)
			w.gaps[h.reason]++
			if h.reason != buffer.ReasonEpoch && (h.first == 0 || h.last < h.first || h.count == 0 || h.count > h.last-h.first+1) {
				w.problem("batch %d tells %v", s.first, h)
			}
		}
	}
	told := func(s *sent, reason string) bool {
		return slices.ContainsFunc(holes, func(h hole) bool {
			return h.first <= s.first && s.last <= h.last && (reason == "" || h.reason == reason)
		})
	}
	high := map[string]uint64{} // by epoch, the last batch that is delivered
	for _, s := range w.order {
		if s.delivered {
			high[s.epoch] = max(high[s.epoch], s.last)
		}
	}
	for _, s := range w.order {
		switch {
		case s.delivered:
		case (s.promised || s.written) && !told(s, buffer.ReasonFull):
			w.problem("records %d to %d of epoch %s were durable and are lost", s.first, s.last, s.epoch)
		case s.last < high[s.epoch] && !told(s, ""):
			w.problem("records %d to %d of epoch %s are missing, and nothing tells of them", s.first, s.last, s.epoch)
		}
	}
}

// disk is a file system whose power is cut.
type disk struct {
	name, kind string
	size       int64
	mkfs       []string
}

var disks = []disk{
	{"ext4", "ext4", 96 << 20, nil},
	{"ext4 with fast commits", "ext4", 96 << 20, []string{"-O", "fast_commit"}},
	{"xfs", "xfs", 300 << 20, nil},
}

// worldOf draws what is the same in all lives of a directory.
func worldOf(r *rand.Rand, dir string) *world {
	w := &world{batches: map[number]*sent{}, gaps: map[string]int{}}
	w.Dir, w.life.Seed = dir, r.Uint64()
	w.Sync = []buffer.SyncPolicy{buffer.SyncGroup, buffer.SyncGroup, buffer.SyncInterval, buffer.SyncNever}[r.IntN(4)]
	w.MaxBytes = 24 << 20
	if r.IntN(3) == 0 {
		w.Full, w.MaxBytes = buffer.DropOldest, 3<<20
	}
	w.Segment = 64<<10 + r.Int64N(1<<20)
	w.Memory = r.Int64N(2) << 22
	return w
}

// Real power cuts: the file system is shut down at any moment of writers' lives, so
// that what it did not hand to its device is gone, and mounted anew.
// SPILLWAY_POWER_N cuts on each kind of disk.
func TestPowerCuts(t *testing.T) {
	n := setting("SPILLWAY_POWER_N", 20)
	for i, d := range disks {
		t.Run(d.name, func(t *testing.T) {
			begun := time.Now()
			seed := seed()
			t.Logf("SPILLWAY_CRASH_SEED=%d", seed)
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			memory := faults.NewDisk(t, 2<<30)
			image := faults.NewImage(t, filepath.Join(memory.Dir, "image"), d.kind, d.size, d.mkfs...)
			sum := world{gaps: map[string]int{}}
			kills := 0
			for cuts, dirs := 0, 0; cuts < n; dirs++ {
				w := worldOf(r, filepath.Join(image.Dir, fmt.Sprint("lane-", dirs)))
				for range 8 {
					switch end := w.live(t, r, image); end {
					case byCut:
						cuts++
					default:
						kills++
					}
				}
				w.Drain = true
				p := w.start(t)
				select {
				case <-p.end:
				case <-time.After(time.Minute):
					w.problem("what is there was not delivered within a minute")
				}
				all := p.kill()
				w.take(all, 0, byClose)
				if !w.closed {
					w.problem("the last life did not end")
				}
				w.finish()
				if len(w.problems) > 0 {
					t.Fatalf("directory %d (%v, %v, %d bytes in segments of %d):\n%s\nwhat its writers said is in %s; again: make power N=%d SEED=%d", dirs, w.Sync, w.Full, w.MaxBytes, w.Segment,
						strings.Join(w.problems, "\n"), w.keep(t), n, seed)
				}
				if err := os.RemoveAll(w.Dir); err != nil {
					t.Fatal(err)
				}
				sum.lives += w.lives
				for _, s := range w.order {
					if s.promised {
						sum.durable++
					}
					if s.delivered {
						sum.delivered++
					}
				}
				for reason, n := range w.gaps {
					sum.gaps[reason] += n
				}
			}
			t.Logf("%d power cuts and %d other ends in %d lives: %d batches durable, %d delivered, holes told by reason %v, in %v", n, kills, sum.lives, sum.durable, sum.delivered, sum.gaps, time.Since(begun).Round(time.Second))
		})
	}
}

// live runs one life and what ends it.
func (w *world) live(t *testing.T, r *rand.Rand, image *faults.Image) (end string) {
	t.Helper()
	s := image.Switch(t)
	p := w.start(t)
	end = []string{byCut, byCut, byCut, byCut, byCut, byCut, byKill, byClose}[r.IntN(8)]
	wait := time.Duration(r.IntN(100)) * time.Millisecond
	if r.IntN(5) == 0 { // while it opens the buffer
		wait = time.Duration(r.IntN(8000)) * time.Microsecond
	} else {
		p.until(1)
	}
	if r.IntN(3) == 0 { // the kernel writes by itself now and then
		at := time.Duration(r.Int64N(int64(wait) + 1))
		wait -= at
		time.Sleep(at)
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(wait)
	known := 0
	switch end {
	case byKill:
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		w.take(p.kill(), 0, byKill)
		return end
	case byClose:
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // what it says tells how it ended
		select {
		case <-p.end:
		case <-time.After(time.Minute):
			w.problem("the writer does not end")
		}
		fallthrough
	default:
		known = p.heard()
		if err := s.Cut(r.IntN(4) == 0); err != nil {
			t.Fatal(err)
		}
	}
	all := p.kill()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	image.Unmount(t)
	image.Mount(t, 0, "")
	w.take(all, known, byCut)
	w.verify()
	return byCut
}

// keep saves what the writers of a world that failed have said.
func (w *world) keep(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../tmp/crash")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, fmt.Sprint("world-", w.Seed))
	if err = os.MkdirAll(dir, 0o755); err == nil {
		err = os.WriteFile(name, []byte(strings.Join(w.said, "\n")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// verify reads every byte: no power cut may look like damage to what was durable.
func (w *world) verify() {
	if _, err := os.Stat(w.Dir); err != nil {
		return // the first life did not come so far
	}
	_, err := buffer.Verify(w.Dir, func(f buffer.Finding) {
		if f.Bad() && f.What != "lost" {
			w.problem("verify: %v", &f)
		}
	})
	if err != nil {
		w.problem("verify: %v", err)
	}
}
