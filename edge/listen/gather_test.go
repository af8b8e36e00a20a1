package listen

import (
	"fmt"
	"testing"
	"time"
)

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
