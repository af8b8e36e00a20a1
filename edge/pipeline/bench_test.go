package pipeline

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// nothing is a far side that takes everything and keeps nothing.
type nothing struct{ memory }

func (n *nothing) Publish(_ context.Context, run *batch.Run) (int, error) {
	return len(run.Batches), nil
}

// BenchmarkLane is a lane with everything behind the sockets: two connections, a
// buffer on a real disk with its default sync gap, an output that takes all.
// batches/s and syncs/s are what the disk sees.
func BenchmarkLane(b *testing.B) {
	for _, c := range []struct {
		name    string
		records int // of a batch
		each    int // messages between two calls of Flush
	}{
		{"default", 0, 500},
		{"small batches", 10, 500},
		{"one record a batch", 1, 10},
	} {
		b.Run(c.name, func(b *testing.B) {
			buf, err := buffer.Open(b.TempDir(), buffer.Options{Agent: "gw1", MaxBytes: 1 << 30, MinFree: -1, KeepAcked: -1})
			if err != nil {
				b.Fatal(err)
			}
			l := NewLane(LaneOptions{Name: "main", Agent: "gw1", Buffer: buf, Codec: batch.Zstd, Batch: batch.BuilderOptions{Records: c.records},
				AgeHeld: 5 * time.Second, Chain: outputs.NewChain(outputs.ChainOptions{}, &nothing{}), Log: slog.New(slog.DiscardHandler)})
			in := NewInput(InputOptions{Name: "tcp", Lane: l, Parse: true, Zone: time.UTC, Records: ecs.Options{Dataset: "tcp.generic", Agent: "a", InputType: "tcp"}})
			done := make(chan struct{})
			go func() { l.Run(context.Background()); close(done) }()
			m := msg(`<165>1 2026-11-20T12:00:00.123456Z gw-0117.plant4.example.net sshd 4711 - - Failed password for invalid user user17 from 192.0.2.77 port 50122 ssh2: connection reset by authenticating peer after 3 attempts, preauth`)
			b.ReportAllocs()
			b.SetBytes(int64(len(m.Data)))
			b.ResetTimer()
			var conns sync.WaitGroup
			for k := range 2 {
				conns.Go(func() {
					s := in.Open()
					for i := k; i < b.N; i += 2 {
						s.Message(m, from, time.Now())
						if i/2%c.each == c.each-1 {
							s.Flush(context.Background())
						}
					}
					s.Flush(context.Background())
					s.Close()
				})
			}
			conns.Wait()
			l.Close()
			<-done
			took, s := b.Elapsed().Seconds(), buf.Stats()
			b.ReportMetric(float64(s.AppendedBatches)/took, "batches/s")
			b.ReportMetric(float64(s.Syncs)/took, "syncs/s")
			b.ReportMetric(float64(s.AppendedBatches)/float64(s.Syncs), "batches/sync")
			if err := buf.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
