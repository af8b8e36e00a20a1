package conformance

import (
	"fmt"
	"testing"

	"spillway/outputs/jetstream"
	"spillway/outputs/outputtest"
	"spillway/test/servers"
)

// A run of 16 batches of 256 KiB to a real server on loopback, which stores them
// in files; a window of 1 shows what one round trip costs.
func BenchmarkJetStreamPublish(b *testing.B) {
	const size, batches = 256 << 10, 16
	for _, window := range []int{1, 16} {
		b.Run(fmt.Sprintf("inflight=%d", window), func(b *testing.B) {
			n := servers.StartNATS(b, b.TempDir())
			servers.CreateStream(b, n.URL, stream(func(c *servers.StreamConfig) { c.MaxBytes = 256 << 20 }))
			o := hub(b, n, func(c *jetstream.Config) { c.MaxInflight = window })
			run := newFeed().run(times(batches, size)...)
			b.SetBytes(size * batches)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := outputtest.Publish(b.Context(), o, run); err != nil {
					b.Fatal(err)
				}
				// The next run: other numbers, so that the server takes it for new.
				for i := range run.Batches {
					run.Batches[i].First += batches
				}
			}
			if s := o.Counts(); s.AlreadyThere > 0 {
				b.Fatalf("the server had %d of the batches already", s.AlreadyThere)
			}
		})
	}
}
