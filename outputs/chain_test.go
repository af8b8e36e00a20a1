package outputs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer/batch"
)

type named string

func (n named) Name() string                                     { return string(n) }
func (n named) Limits() batch.Limits                             { return batch.Limits{} }
func (n named) Publish(context.Context, *batch.Run) (int, error) { return 0, nil }
func (n named) Probe(context.Context, string) error              { return nil }
func (n named) Counts() Counts                                   { return Counts{} }
func (n named) Close() error                                     { return nil }

// A failing output is told once, reminded of each minute, and its recovery is
// told with its length; pauses grow with jitter and stay below the limit.
func TestChainHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		hub := named("hub")
		c := NewChain(ChainOptions{Log: slog.New(slog.NewTextHandler(&log, nil))}, hub, named("archive"))
		if o, reason := c.Current("main"); o != hub || reason != "" {
			t.Fatalf("current is %v %q", o, reason)
		}
		fail := &Error{Output: "hub", Op: "publish", Stored: StoredMaybe, Action: Retry, Err: errors.New("no answer"), Hint: "see the server"}
		limit := 250 * time.Millisecond
		for time.Since(c.States()[0].Since) < 3*time.Minute || c.States()[0].Failures == 0 {
			pause := c.Report("main", hub, fail)
			if pause < limit/2 || pause > limit {
				t.Fatalf("pause %v, want %v to %v", pause, limit/2, limit)
			}
			if !c.Failing("main", hub) {
				t.Fatal("not failing after a failure")
			}
			limit = min(2*limit, 30*time.Second)
			time.Sleep(pause)
		}
		if n := strings.Count(log.String(), "output fails"); n < 3 || n > 4 {
			t.Errorf("told %d times in three minutes:\n%s", n, log.String())
		}
		if !strings.Contains(log.String(), "see the server") {
			t.Errorf("the hint is not in the log:\n%s", log.String())
		}
		if pause := c.Report("main", hub, nil); pause != 0 || c.Failing("main", hub) || !c.States()[0].Up {
			t.Errorf("after a success: pause %v, state %+v", pause, c.States()[0])
		}
		if !strings.Contains(log.String(), "works again") || !strings.Contains(log.String(), "failed_for=3m") {
			t.Errorf("the recovery is not told with its length:\n%s", log.String())
		}
		if pause := c.Report("main", hub, fail); pause > 250*time.Millisecond {
			t.Errorf("a new failure begins with a pause of %v", pause)
		}
	})
}

// One lane's trouble (a batch that is unfit, a subject that is not allowed) is its
// own: another lane's success neither ends its pauses nor tells that all is well.
func TestChainLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		hub := named("hub")
		c := NewChain(ChainOptions{Log: slog.New(slog.NewTextHandler(&log, nil))}, hub)
		unfit := &Error{Output: "hub", Op: "publish", Stored: StoredNo, Action: Unfit, Err: errors.New("too large")}
		var pause time.Duration
		for range 8 {
			pause = c.Report("main", hub, unfit)
			if c.Report("audit", hub, nil) != 0 || c.Failing("audit", hub) || !c.Failing("main", hub) {
				t.Fatal("one lane's failure is the other's")
			}
			if s := c.States()[0]; s.Up || s.Err != unfit || s.Failures == 0 {
				t.Fatalf("state %+v", s)
			}
			time.Sleep(time.Millisecond)
		}
		if pause < 15*time.Second {
			t.Errorf("after eight failures the pause is %v", pause)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "lane=main") {
			t.Errorf("log:\n%s", log.String())
		}
		c.Report("main", hub, nil)
		if s := c.States()[0]; !s.Up || s.Err != nil || s.Failures != 0 || !s.Since.IsZero() {
			t.Errorf("state %+v", s)
		}
	})
}

func TestClassify(t *testing.T) {
	inner := errors.New("x")
	e := &Error{Output: "hub", Op: "publish to a.b", Stored: StoredNo, Action: Unfit, Err: inner, Hint: "do this"}
	if s, a := Classify(errors.Join(e)); s != StoredNo || a != Unfit {
		t.Errorf("classified %v %v", s, a)
	}
	if s, a := Classify(inner); s != StoredMaybe || a != Retry {
		t.Errorf("an unknown error is %v %v: what is not known is in doubt", s, a)
	}
	if !errors.Is(e, inner) || e.Error() != "hub: publish to a.b: x (do this)" {
		t.Errorf("error reads %q", e)
	}
}
