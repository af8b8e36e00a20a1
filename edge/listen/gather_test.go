package listen

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// flushes counts the hand-overs that brought something.
type flushes struct {
	countSink
	n atomic.Int64
}

func (f *flushes) Flush(ctx context.Context) error {
	if f.held.Load() > 0 {
		f.n.Add(1)
	}
	return f.countSink.Flush(ctx)
}

// A trickle is not read message by message.
func TestTrickleGathers(t *testing.T) {
	sink := &flushes{}
	s, _ := serve(t, Options{Network: "tcp", Open: func() Sink { return sink }})
	c := dial(t, s)
	const n = 500
	pauses := int64(0) // of this sender, on a busy machine: what comes after one need not wait for more
	for i := range n {
		fmt.Fprintf(c, "message %d\n", i)
		began := time.Now()
		if time.Sleep(time.Millisecond); time.Since(began) > gather/4 {
			pauses++
		}
	}
	eventually(t, "all messages", func() bool { return sink.flushed.Load() == n })
	if f := sink.n.Load(); f > n/4+pauses {
		t.Errorf("%d messages, a millisecond apart but for %d pauses, were handed over %d times", n, pauses, f)
	}
}

// A connection whose messages are left to gather in the socket goes on when its
// sender stops sending, be it far below what would wake the reader, or ends.
func TestGatherEnds(t *testing.T) {
	r := newRecorder()
	s, _ := serve(t, Options{Network: "tcp", Open: r.open})
	c := dial(t, s)
	sent := 0
	burst := func(n int) {
		for range n {
			sent++
			fmt.Fprintf(c, "message %d\n", sent)
			time.Sleep(time.Millisecond)
		}
	}
	for range 3 {
		burst(100)
		eventually(t, "the messages before a pause", func() bool { return r.len() == sent })
	}
	burst(50)
	c.Close()
	eventually(t, "the messages before the end", func() bool { return r.len() == sent && s.Stats.Open.Load() == 0 })
}
