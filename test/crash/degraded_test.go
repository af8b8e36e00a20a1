package crash

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/test/agent"
	"spillway/test/chaos"
	"spillway/test/faults"
)

// The agent on a disk whose device fails under it and comes back: it goes on from
// memory, and by itself.
func TestAgentDiskComesBack(t *testing.T) {
	t.Parallel()
	image := failing(t, "-O", "^has_journal", "-e", "continue")
	w := watch(t, filepath.Join(image.Dir, "state"), "SPILLWAY_BUFFER_MAX_BYTES=64MiB", "SPILLWAY_BUFFER_MEMORY=4MiB")
	w.Start(t)
	w.load(seed(), 10_000)
	w.until("much is stored", func(m map[string]float64) bool { return m["spillway_lane_pending_records"+mainLane] > 500 })
	image.Fail(t, true)
	w.until("it is degraded", func(m map[string]float64) bool { return m["spillway_buffer_degraded"+mainLane] == 1 })
	w.until("its memory is full", func(m map[string]float64) bool { return m["spillway_lane_full"+mainLane] == 1 })
	before := w.metrics()["spillway_lane_records_delivered_total"+mainLane]
	w.back()
	w.until("it delivers from memory", func(m map[string]float64) bool {
		return m["spillway_lane_records_delivered_total"+mainLane] > before+2000
	})
	w.during(500 * time.Millisecond)
	image.Fail(t, false)
	w.until("all is on the disk again", func(m map[string]float64) bool {
		return m["spillway_buffer_degraded"+mainLane] == 0 && m["spillway_buffer_memory_bytes"+mainLane] == 0
	})
	w.during(500 * time.Millisecond)
	w.finish(chaos.Rules{})
}

// The agent on a disk that the kernel makes read-only under it, for an error of its
// device. It goes on from memory, until somebody mends the disk while it is stopped.
func TestAgentDiskReadOnly(t *testing.T) {
	t.Parallel()
	image := failing(t, "-e", "remount-ro")
	w := watch(t, filepath.Join(image.Dir, "state"), "SPILLWAY_BUFFER_MAX_BYTES=64MiB", "SPILLWAY_BUFFER_MEMORY=4MiB")
	w.Start(t)
	w.load(seed(), 10_000)
	w.until("much is stored", func(m map[string]float64) bool { return m["spillway_lane_pending_records"+mainLane] > 500 })
	image.Fail(t, true)
	w.until("it is degraded", func(m map[string]float64) bool { return m["spillway_buffer_degraded"+mainLane] == 1 })
	agent.Eventually(t, "the file system is read-only", time.Minute, func() bool {
		w.metrics()
		return errors.Is(os.WriteFile(filepath.Join(image.Dir, "f"), nil, 0o600), syscall.EROFS)
	})
	image.Fail(t, false) // which helps nobody now
	w.overlaps = true    // plans are in memory, and go with it
	w.back()
	w.until("it delivers from memory", func(m map[string]float64) bool {
		return m["spillway_lane_records_delivered_total"+mainLane] > 3000
	})
	if code := w.Stop(t); code != 0 && code != 1 { // 1: it could not save where it was
		t.Errorf("it exits %d", code)
	}
	image.Unmount(t)
	image.Mend(t)
	image.Mount(t, 0, "")
	w.Start(t)
	w.during(500 * time.Millisecond)
	w.finish(chaos.Rules{Stops: true})
}

// What a start does where it can't write: it delivers what is there, goes on from
// memory, and recovers by itself. Where it can't read, it says so and ends.
func TestAgentStart(t *testing.T) {
	for _, c := range []struct {
		name    string
		spoil   func(t *testing.T, image *faults.Image, lane string)
		restore func(t *testing.T, image *faults.Image, lane string)
		full    bool
	}{
		{"on a read-only file system",
			func(t *testing.T, image *faults.Image, _ string) {
				image.Unmount(t)
				image.Mount(t, unix.MS_RDONLY, "")
			},
			func(t *testing.T, image *faults.Image, _ string) { image.ReadOnly(t, false) }, false},
		{"in an immutable directory",
			func(t *testing.T, _ *faults.Image, lane string) { faults.Immutable(t, lane, true) },
			func(t *testing.T, _ *faults.Image, lane string) { faults.Immutable(t, lane, false) }, false},
		{"on a full disk",
			func(t *testing.T, image *faults.Image, _ string) { image.Fill(t, 0) },
			func(t *testing.T, image *faults.Image, _ string) { image.Free(t) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			image := faults.NewImage(t, filepath.Join(faults.NewDisk(t, 1<<30).Dir, "image"), "ext4", 64<<20, "-m", "0")
			w := watch(t, filepath.Join(image.Dir, "state"), "SPILLWAY_BUFFER_MAX_BYTES=1GiB")
			lane := filepath.Join(w.State, "buffer", "main")
			w.Start(t)
			w.load(seed(), 10_000)
			w.until("much is stored", func(m map[string]float64) bool { return m["spillway_lane_pending_records"+mainLane] > 500 })
			w.Kill()
			c.spoil(t, image, lane)
			w.Start(t)
			if c.full {
				w.until("it is full", func(m map[string]float64) bool { return m["spillway_lane_full"+mainLane] == 1 })
			} else {
				w.until("it is degraded", func(m map[string]float64) bool { return m["spillway_buffer_degraded"+mainLane] == 1 })
			}
			w.back()
			more := 1.0
			if c.full {
				more = 0 // its newest segment tells where numbers go on: it stays, and makes no room
			}
			w.until("it delivers what was there, and what comes", func(m map[string]float64) bool {
				return m["spillway_lane_records_delivered_total"+mainLane] >= m["spillway_lane_records_at_start"+mainLane]+more && m["spillway_lane_records_at_start"+mainLane] > 500
			})
			c.restore(t, image, lane)
			w.until("it is well", func(m map[string]float64) bool {
				return m["spillway_buffer_degraded"+mainLane] == 0 && m["spillway_lane_full"+mainLane] == 0 && m["spillway_lane_disk_failed"+mainLane] == 0
			})
			w.during(500 * time.Millisecond)
			w.finish(chaos.Rules{Stops: true})
		})
	}
}
