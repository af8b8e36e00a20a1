package jetstream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/outputs"
)

// flaky is a server that speaks as much of NATS as an output needs and sees what
// came over a connection over which its lane was not asked for.
type flaky struct {
	last   func(asked int64) int // what it has, when it was asked so often
	closes bool                  // each connection after some messages

	asked, published, unasked, conns atomic.Int64
}

func (f *flaky) listen(t *testing.T, wg *sync.WaitGroup) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.conns.Add(1)
			wg.Go(func() {
				defer c.Close()
				f.serve(c)
			})
		}
	})
	return l.Addr().String()
}

func (f *flaky) serve(c net.Conn) {
	const direct = "$JS.API.DIRECT.GET.LOGS."
	inboxes := map[string]string{} // subject → sid
	asked := map[string]bool{}     // subjects
	in := bufio.NewReader(c)
	fmt.Fprint(c, "INFO {\"server_id\":\"x\",\"version\":\"2.15.2\",\"headers\":true,\"max_payload\":1048576}\r\n")
	sid := func(reply string) string {
		if id, ok := inboxes[reply]; ok {
			return id
		}
		return inboxes[reply[:strings.LastIndexByte(reply, '.')]+".*"]
	}
	for left := 1 + rand.IntN(60); left > 0 || !f.closes; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		w := strings.Fields(line)
		switch w[0] {
		case "PING":
			fmt.Fprint(c, "PONG\r\n")
		case "SUB":
			inboxes[w[1]] = w[len(w)-1]
		case "PUB", "HPUB":
			left--
			n, _ := strconv.Atoi(w[len(w)-1])
			if _, err := io.CopyN(io.Discard, in, int64(n)+2); err != nil {
				return
			}
			subject, reply := w[1], w[2]
			if of, ok := strings.CutPrefix(subject, direct); ok {
				asked[of] = true
				h := "NATS/1.0 404 Message Not Found\r\n\r\n"
				if last := f.last(f.asked.Add(1)); last > 0 {
					h = fmt.Sprintf("NATS/1.0\r\nSpillway-Epoch: 0000000000000009\r\nSpillway-Last-Seq: %d\r\n\r\n", last)
				}
				fmt.Fprintf(c, "HMSG %s %s %d %d\r\n%s\r\n", reply, sid(reply), len(h), len(h), h)
				continue
			}
			f.published.Add(1)
			if !asked[subject] {
				f.unasked.Add(1)
			}
			fmt.Fprintf(c, "MSG %s %s %d\r\n%s\r\n", reply, sid(reply), len(ack), ack)
		}
	}
}

const ack = `{"stream":"LOGS","seq":1}`

// eight is a run of the records 1 to 8 of epoch 9.
func eight(lane string) *batch.Run {
	run := &batch.Run{Lane: lane, Agent: "gw1", Epoch: 9, Attempt: 1}
	for n := range uint64(8) {
		run.Batches = append(run.Batches, batch.Batch{Payload: bytes.Repeat([]byte("x"), 100), Header: batch.Header{First: 1 + n, Count: 1, Length: 100}})
	}
	return run
}

// A replica that lags is asked again until it shows what was acknowledged, or has
// shown the same for long.
func TestLastOfReplica(t *testing.T) {
	for _, c := range []struct {
		name string
		last func(asked int64) int // the first time, before anything is published, is 0
		want uint64
		slow bool
	}{
		{"is current", func(int64) int { return 8 }, 8, false},
		{"lags", func(n int64) int { return min(8, int(n)) }, 8, false},
		{"has nothing at first", func(n int64) int { return 8 * int(min(1, n/4)) }, 8, false},
		{"lost two", func(int64) int { return 6 }, 6, true},
		{"lags, and lost two", func(n int64) int { return min(6, int(n)) }, 6, true},
		{"lost all", func(int64) int { return 0 }, 0, true},
		{"has more", func(int64) int { return 9 }, 9, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var far sync.WaitGroup
			f := &flaky{last: func(n int64) int {
				if n == 1 {
					return 0
				}
				return c.last(n - 1)
			}}
			o, err := New("hub", "default", "gw1", Config{Servers: "nats://" + f.listen(t, &far), Stream: "LOGS"}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if m, err := o.Last(t.Context(), "main"); err != nil || m != (outputs.Mark{}) {
				t.Fatalf("%+v, %v", m, err)
			}
			if _, err := o.Publish(t.Context(), eight("main")); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			m, err := o.Last(t.Context(), "main")
			took := time.Since(begin)
			if want := (outputs.Mark{Found: c.want > 0, Last: c.want}); err != nil || m.Found != want.Found || m.Last != want.Last {
				t.Errorf("%+v, %v, want %+v", m, err, want)
			}
			if slow := took > settling; slow != c.slow {
				t.Errorf("took %v", took)
			}
		})
	}
}

// However connections come and go, nothing is published over one over which Last
// was not asked for that lane.
func TestNothingUnasked(t *testing.T) {
	var far sync.WaitGroup
	f := &flaky{last: func(int64) int { return 8 }, closes: true}
	// Two servers: nats.go goes to the other one without a pause.
	servers := "nats://" + f.listen(t, &far) + ",nats://" + f.listen(t, &far)
	o, err := New("hub", "default", "gw1", Config{Servers: servers, Stream: "LOGS", AckTimeout: time.Second, ReconnectMin: 10 * time.Millisecond}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stop := time.Now().Add(3 * time.Second)
	var lanes sync.WaitGroup
	for i := range 4 {
		lanes.Go(func() {
			run := eight(fmt.Sprintf("lane%d", i))
			for time.Now().Before(stop) {
				_, err := o.Publish(t.Context(), run)
				if errors.Is(err, outputs.ErrUnchecked) {
					_, err = o.Last(t.Context(), run.Lane)
				}
				if _, action := outputs.Classify(err); err != nil && action != outputs.Retry {
					t.Error(err)
				}
			}
		})
	}
	lanes.Wait()
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d connections, %d times asked, %d batches", f.conns.Load(), f.asked.Load(), f.published.Load())
	if n := f.unasked.Load(); n > 0 || f.published.Load() < 100 || f.conns.Load() < 10 {
		t.Errorf("%d batches over a connection over which their lane was not asked for", n)
	}
}
