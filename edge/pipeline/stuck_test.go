package pipeline

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// hungFS is a directory whose segments can't be written while hang holds a
// channel: the call returns once that is closed.
type hungFS struct {
	*dirFS
	hang atomic.Pointer[chan struct{}]
}

type hungFile struct {
	buffer.File
	name string
	fs   *hungFS
}

func (h *hungFS) Create(name string) (buffer.File, error) {
	f, err := h.dirFS.Create(name)
	return hungFile{f, name, h}, err
}

func (f hungFile) WriteAt(p []byte, off int64) (int, error) {
	if c := f.fs.hang.Load(); c != nil && strings.HasSuffix(f.name, ".seg") {
		<-*c
	}
	return f.File.WriteAt(p, off)
}

// A lane is stuck when a call to the disk does not return, and not when it idles,
// when it waits for room, or when the disk answers with errors.
func TestStuck(t *testing.T) {
	const d = 20 * time.Second
	for _, c := range []struct {
		name  string
		edit  func(*buffer.Options)
		begin func(disk *hungFS, m *memory, hang chan struct{})
		end   func(disk *hungFS, m *memory, hang chan struct{})
		stuck bool
	}{
		{name: "works"},
		{name: "call hangs", stuck: true,
			begin: func(disk *hungFS, _ *memory, hang chan struct{}) { disk.hang.Store(&hang) },
			end:   func(disk *hungFS, _ *memory, hang chan struct{}) { disk.hang.Store(nil); close(hang) }},
		{name: "disk fails",
			begin: func(disk *hungFS, _ *memory, _ chan struct{}) { disk.bad.Store(true) },
			end:   func(disk *hungFS, _ *memory, _ chan struct{}) { disk.bad.Store(false) }},
		{name: "buffer full",
			edit:  func(o *buffer.Options) { o.MaxBytes = 1 << 20 },
			begin: func(_ *hungFS, m *memory, _ chan struct{}) { m.setFail(errDown) },
			end:   func(_ *hungFS, m *memory, _ chan struct{}) { m.setFail(nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, disk, hang := &memory{}, &hungFS{dirFS: newDirFS(t)}, make(chan struct{})
				b := start(t, "", m, Block, func(o *buffer.Options, l *LaneOptions) {
					o.FS, l.Codec = disk, batch.None
					if c.edit != nil {
						c.edit(o)
					}
				})
				time.Sleep(time.Hour)
				if b.lane.Stuck(d) {
					t.Error("stuck while it idles")
				}
				if c.begin != nil {
					c.begin(disk, m, hang)
				}
				s := b.in.Open()
				ctx, cancel := context.WithCancel(t.Context())
				sent := make(chan struct{})
				go func() { // more than a buffer that is full takes, a few seconds apart
					defer close(sent)
					big := strings.Repeat("x", 64<<10)
					for range 40 {
						s.Message(msg(big), from, time.Now())
						if s.Flush(ctx) != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
				for range 120 {
					time.Sleep(time.Second)
					if b.lane.Stuck(d) && !c.stuck {
						t.Fatal("stuck")
					}
				}
				if got := b.lane.Stuck(d); got != c.stuck {
					t.Errorf("stuck %v, want %v", got, c.stuck)
				}
				if c.end != nil {
					c.end(disk, m, hang)
				}
				time.Sleep(5 * time.Minute)
				if b.lane.Stuck(d) {
					t.Error("still stuck")
				}
				cancel()
				<-sent
				s.Close()
				b.stop()
			})
		})
	}
}
