// Package outputs says what an output is, what its errors mean, and in which
// order outputs are used. One package below it per far side, one SDK each.
//
// An output only says what the far side has: how many leading batches of a run
// it acknowledged, and for the rest whether they may have been stored and what
// should follow. When to try again, and where, is decided by Chain alone.
package outputs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"spillway/buffer/batch"
)

// Output is one far side.
//
// Publish and Probe may be called from several goroutines, for different lanes;
// for one lane there is one Publish at a time.
type Output interface {
	// Name is the output's name in SPILLWAY_OUTPUTS.
	Name() string

	// Limits says what fits one run. It may change between calls (a server
	// announced a smaller limit); the next run follows it.
	Limits() batch.Limits

	// Publish hands run over and returns how many of its leading batches the far
	// side acknowledged. accepted == len(run.Batches) if and only if err is nil;
	// otherwise err wraps an *Error, and batches behind accepted are in doubt or
	// not stored, as it says. An acknowledgement is the far side's word for these
	// very bytes, never the success of a write.
	//
	// Unfit is about the batch at accepted, or about the run as a whole: too large an
	// object, say. So a batch is unfit only when it was a run alone; until then the
	// caller hands the head batch over alone (Limits.Batches 1). Limits may ask for
	// smaller runs from then on.
	//
	// Payloads belong to the caller and are not touched after Publish returned.
	// Publish returns soon after ctx ends and has own deadlines besides: a dead
	// peer sends nothing. It calls Moved whenever something got through, so that
	// slow can be told from dead.
	Publish(ctx context.Context, run *batch.Run) (accepted int, err error)

	// Probe proves that Publish would work now for lane, by the real operation,
	// without leaving data that a reader would take for records.
	Probe(ctx context.Context, lane string) error

	// Counts is what the far side acknowledged since the start. It never waits.
	Counts() Counts

	// Close ends connections. Nothing may be in flight. Idempotent.
	Close() error
}

// Counts are objects or messages that a far side acknowledged, and their bytes.
type Counts struct {
	Delivered    uint64 // stored anew
	AlreadyThere uint64 // had been there: repeats whose first answer was lost
	Bytes        uint64 // of those delivered
}

// Planner is an output that stores a run as one object. Key is pure: the same
// run gives the same key for ever, on any machine. The caller persists the plan
// (first, last, key) before Publish, and Publish uses run.Key unchanged.
type Planner interface {
	Output
	Key(run *batch.Run) string
}

// Stream is an output whose far side holds the messages of each lane in order and
// may lose the newest of them although it acknowledged them: a server that was
// cut off before it wrote, or was restored from a copy. So after every connect,
// before anything new goes out, Last is asked and compared with what this output
// acknowledged.
type Stream interface {
	Output

	// Last returns what the far side has last of lane, over the connection of this
	// moment, and lets Publish use that connection for lane. Publish returns an
	// error that wraps ErrUnchecked (StoredNo, Retry) whenever the connection is
	// another one than the last Last saw.
	Last(ctx context.Context, lane string) (Mark, error)

	// Checked reports whether Publish could use the connection of this moment for
	// lane, or there is none. It never waits.
	Checked(lane string) bool
}

// ErrUnchecked means that Last must be asked before the next Publish of a Stream.
var ErrUnchecked = errors.New("new connection: what the far side has is not compared yet")

// Mark is the newest message that a far side has of one lane.
type Mark struct {
	Unknown string // not empty: why it can't be asked; all else is zero
	Found   bool   // false: it has none
	Epoch   batch.Epoch
	Last    uint64 // number of the last record in that message
}

type movedKey struct{}

// WithMoved returns a context with which Moved calls f. f must be quick and safe
// for concurrent use.
func WithMoved(ctx context.Context, f func()) context.Context {
	return context.WithValue(ctx, movedKey{}, f)
}

// Moved says that something got through: an acknowledgement came, or bytes went
// into a connection that took them. It is cheap, but not for every byte.
func Moved(ctx context.Context) {
	if f, ok := ctx.Value(movedKey{}).(func()); ok {
		f()
	}
}

// Stored says whether a far side may hold what was not acknowledged.
type Stored uint8

// Answers to "is it stored?".
const (
	StoredNo    Stored = 1 // certainly not
	StoredMaybe Stored = 2 // sent, no answer: in doubt, to be sent again with the same identity
	StoredYes   Stored = 3 // stored although the call ended in an error
)

// String returns "no", "maybe" or "yes".
func (s Stored) String() string {
	return [...]string{"unknown", "no", "maybe", "yes"}[s&3]
}

// Action says what should follow an error.
type Action uint8

// Actions.
const (
	Retry         Action = 1 // same output, back off; the failover clock runs
	Failover      Action = 2 // the next output now: this one will not recover in seconds
	Unfit         Action = 3 // this batch can't go to this output; the output is well
	Misconfigured Action = 4 // fail over, alarm, probe slowly: a person must act
)

// String returns the action's name.
func (a Action) String() string {
	if a < Retry || a > Misconfigured {
		return "unknown"
	}
	return actions[a-1]
}

var actions = [...]string{"retry", "failover", "unfit", "misconfigured"}

// Error is the only error type that Publish and Probe return.
type Error struct {
	Output string // name
	Op     string // what was attempted, with its object: `publish to logs.site.agent.main`
	Stored Stored
	Action Action
	Err    error
	Hint   string // what the operator should do, "" when waiting is all

	// Patience, if not zero, is how long a Retry should go on before the next output
	// is used, where that is less than SPILLWAY_FAILOVER_AFTER: an answer that means
	// either an election of seconds or something that will last.
	Patience time.Duration
}

// Error reads "hub: publish to logs.default.gw1.main: nats: no response from stream (create a stream …)".
func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %s: %v", e.Output, e.Op, e.Err)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Classify returns what err says about storage and about what follows. An error
// that no output classified is in doubt and retried: nothing is lost by that.
func Classify(err error) (Stored, Action) {
	var e *Error
	if errors.As(err, &e) {
		return e.Stored, e.Action
	}
	return StoredMaybe, Retry
}

// Key is the name of the object that holds run:
//
//	<prefix>/[failover/|large/]<lane>/dt=YYYY-MM-DD/site=<site>/hr=HH/<agent>/<epoch>-<first>-<last>-<crc>.ndjson.zst
//
// Times are those of the first record (UTC), crc is the CRC32C of the whole body:
// a repeated run has the same key, and another body can't have it. Numbers are
// zero-padded hex, so that their order is that of the names. Raw lines end in
// .log instead of .ndjson, the codec's ending follows.
func Key(prefix, site string, run *batch.Run) string {
	h := &run.Batches[0].Header
	t := time.Unix(0, h.FirstTime).UTC()
	var b strings.Builder
	if prefix != "" {
		b.WriteString(prefix)
		b.WriteByte('/')
	}
	if run.Reason != "" {
		b.WriteString(run.Reason)
		b.WriteByte('/')
	}
	ext := ".ndjson"
	if h.Flags&batch.RawLines != 0 {
		ext = ".log"
	}
	fmt.Fprintf(&b, "%s/dt=%s/site=%s/hr=%s/%s/%s-%016x-%016x-%08x%s%s", run.Lane, t.Format("2006-01-02"), site, t.Format("15"),
		run.Agent, run.Epoch, run.First(), run.Last(), run.CRC(), ext, h.Codec.Ext())
	return b.String()
}
