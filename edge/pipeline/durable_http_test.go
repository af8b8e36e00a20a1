package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/listen"
)

// hook serves requests into b's lane, and returns a client that posts to it.
func (b *bench) hook(o listen.HTTPOptions) (post func(body string) (status int, text string), stop func()) {
	b.t.Helper()
	o.Name, o.Variable, o.Address, o.Open, o.Log = "hook", "SPILLWAY_INPUT_HOOK_", "127.0.0.1:0", b.in.OpenStorer, slog.New(slog.DiscardHandler)
	h, err := listen.ListenHTTP(o)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { h.Serve(ctx, context.Background()); close(done) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 200}
	c := &http.Client{Transport: transport}
	post = func(body string) (int, string) {
		a, err := c.Post("http://"+h.Addrs()[0].String(), "application/json", strings.NewReader(body))
		if err != nil {
			return 0, err.Error()
		}
		defer a.Body.Close()
		text, err := io.ReadAll(a.Body)
		if err != nil {
			b.t.Error(err)
		}
		return a.StatusCode, string(text)
	}
	return post, func() { transport.CloseIdleConnections(); cancel(); <-done }
}

// A hundred senders on a slow disk wait for two syncs.
func TestHTTPShares(t *testing.T) {
	disk := newSlowFS(t, 0)
	disk.gate = make(chan struct{})
	b := start(t, "", &memory{}, Block, patient(disk))
	post, stop := b.hook(listen.HTTPOptions{StoreTimeout: time.Minute})
	var wg sync.WaitGroup
	one := func(i int) {
		wg.Go(func() {
			if status, text := post(fmt.Sprint("entry ", i)); status != 204 {
				t.Error(status, text)
			}
		})
	}
	one(0)
	waitFor(t, "its Append", func() bool { return disk.syncs.Load() == 1 })
	for i := range 99 {
		one(1 + i)
	}
	waitFor(t, "the others", func() bool { return b.lane.Admitted() == 100 })
	close(disk.gate)
	wg.Wait()
	stop()
	if s := b.buf.Stats(); disk.syncs.Load() != 2 || s.AppendedRecords != 100 {
		t.Errorf("%d syncs of %d records", disk.syncs.Load(), s.AppendedRecords)
	}
	b.stop()
}

// Without room the answer comes at once, whatever the time is that the disk may take.
func TestHTTPFull(t *testing.T) {
	m := &memory{}
	m.setFail(errDown)
	b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
		patient(newSlowFS(t, 0))(o, l)
		o.MaxBytes, o.SyncGap = 1<<20, time.Second // what is delivered makes room once that is synced
	})
	post, stop := b.hook(listen.HTTPOptions{StoreTimeout: time.Hour})
	big := strings.Repeat("x", 32<<10)
	status := 204
	for status == 204 {
		status, _ = post(big)
	}
	longest := time.Duration(0)
	for range 100 {
		began := time.Now()
		if status, text := post(big); status != 503 || !strings.Contains(text, "nothing is stored") {
			t.Error(status, text)
		}
		longest = max(longest, time.Since(began))
	}
	t.Logf("the longest of 100 refusals took %v", longest)
	if b.in.Messages.Load() != b.in.Admitted.Load() {
		t.Errorf("%d messages, %d admitted: what was refused counts", b.in.Messages.Load(), b.in.Admitted.Load())
	}
	m.setFail(nil)
	waitFor(t, "room", func() bool { status, _ := post(big); return status == 204 })
	stop()
	b.stop()
}

// A body whose record can't hold all of it is told so.
func TestHTTPTooLarge(t *testing.T) {
	b := start(t, t.TempDir(), &memory{}, Block, nil)
	post, stop := b.hook(listen.HTTPOptions{})
	if status, text := post(strings.Repeat("\x01", 2<<20)); status != 413 || !strings.Contains(text, "nothing is stored") {
		t.Error(status, text)
	}
	if status, text := post("text"); status != 204 {
		t.Error(status, text)
	}
	stop()
	if b.in.Messages.Load() != 1 || b.buf.Stats().Next != 2 {
		t.Errorf("%d messages", b.in.Messages.Load())
	}
	b.stop()
}

// A disk that takes longer than StoreTimeout ends the waiting, and may store all the same.
func TestHTTPLate(t *testing.T) {
	disk := newSlowFS(t, 0)
	disk.gate = make(chan struct{})
	b := start(t, "", &memory{}, Block, patient(disk))
	post, stop := b.hook(listen.HTTPOptions{StoreTimeout: 500 * time.Millisecond})
	for i := range 3 {
		if status, text := post(fmt.Sprint("late ", i)); status != 503 || !strings.Contains(text, "may be stored") {
			t.Error(status, text)
		}
	}
	close(disk.gate)
	waitFor(t, "the disk", func() bool { return b.buf.Stats().Next == 4 })
	waitFor(t, "one in time", func() bool { status, _ := post("in time"); return status == 204 })
	stop()
	b.stop()
}

// What was answered 204 is there when the agent is killed, and what was sent and not
// answered is there or not, but never twice.
func TestHTTPStoredIsThere(t *testing.T) {
	disk := newSlowFS(t, time.Millisecond)
	b := start(t, "", &memory{}, Block, func(o *buffer.Options, l *LaneOptions) {
		patient(disk)(o, l)
		o.SegmentBytes, o.KeepAcked = 256<<10, time.Hour
	})
	post, stop := b.hook(listen.HTTPOptions{StoreTimeout: time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	told := map[string]bool{} // guarded by mu
	var wg sync.WaitGroup
	for k := range 20 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				m := fmt.Sprintf("%d-%d %s", k, i, strings.Repeat("x", 100*k))
				if status, _ := post(m); status == 204 {
					mu.Lock()
					told[m] = true
					mu.Unlock()
				}
			}
		})
	}
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		disk.bad.Store(true)
		time.Sleep(20 * time.Millisecond)
		disk.bad.Store(false)
	}
	waitFor(t, "records", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) > 200 })
	mu.Lock()
	all := make([]string, 0, len(told))
	for m := range told {
		all = append(all, m)
	}
	mu.Unlock()
	there := contents(t, killed(t, disk.Name()))
	cancel()
	wg.Wait()
	stop()
	b.stop()
	for _, m := range all {
		if there[m] == 0 {
			t.Fatalf("%.20s of %d is not there", m, len(all))
		}
	}
	for m, n := range there {
		if n > 1 {
			t.Errorf("%.20s is there %d times", m, n)
		}
	}
}

// killed returns a copy of a buffer as a kill at this moment leaves it.
func killed(t *testing.T, dir string) string {
	t.Helper()
	left := t.TempDir()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if c, err := os.ReadFile(filepath.Join(dir, f.Name())); err != nil {
			t.Fatal(err)
		} else if err := os.WriteFile(filepath.Join(left, f.Name()), c, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return left
}

// contents are the messages in a buffer, and how often each is there.
func contents(t *testing.T, dir string) map[string]int {
	t.Helper()
	there := map[string]int{}
	err := buffer.Cat(dir, func(b *batch.Batch, _ string, _ batch.Epoch, _ batch.Seal) error {
		text, err := batch.Decode(nil, b.Payload, b.Codec, int(b.Raw))
		for l := range strings.Lines(string(text)) {
			var r rec
			err = errors.Join(err, json.Unmarshal([]byte(l), &r))
			there[r.Message]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return there
}
