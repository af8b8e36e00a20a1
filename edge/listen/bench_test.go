package listen

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/framing"
)

// counter is a sink that only counts.
type counter struct{ bytes, messages int64 }

func (c *counter) Message(m framing.Message, _ Sender, _ time.Time) {
	c.bytes += int64(len(m.Data))
	c.messages++
}
func (c *counter) Flush(context.Context) error { return nil }
func (c *counter) Close()                      {}

// BenchmarkStream is one connection that sends lines of 200 bytes as fast as it can,
// in large writes. One operation is one line.
func BenchmarkStream(b *testing.B) {
	for _, network := range []string{"tcp", "unix"} {
		b.Run(network, func(b *testing.B) {
			sink := &counter{}
			o := Options{Network: network, Address: "127.0.0.1:0", Open: func() Sink { return sink }, Log: quietLog}
			if network == "unix" {
				o.Address = filepath.Join(b.TempDir(), "s")
			}
			s, err := Listen(o)
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { s.Serve(ctx, context.Background()); close(done) }()
			c, err := net.Dial(s.Addrs()[0].Network(), s.Addrs()[0].String())
			if err != nil {
				b.Fatal(err)
			}
			const perWrite = 500
			line := "<13>Nov 21 12:00:00 gw app[1]: " + strings.Repeat("x", 168) + "\n"
			chunk := []byte(strings.Repeat(line, perWrite))
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			b.ResetTimer()
			n := 0
			for ; n < b.N; n += perWrite {
				if _, err := c.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			c.Close()
			for s.Stats.Bytes.Load() < int64(n*len(line)) {
				time.Sleep(time.Millisecond)
			}
			b.StopTimer()
			cancel()
			<-done
			if sink.messages != int64(n) {
				b.Errorf("%d messages of %d", sink.messages, n)
			}
		})
	}
}
