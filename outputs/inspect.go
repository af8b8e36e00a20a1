package outputs

import (
	"context"
	"errors"
	"strings"
	"time"
)

// Inspector is an output that tells what it sees of its far side: more than the
// yes or no of Probe, for a person who sets it up.
type Inspector interface {
	Output

	// Inspect tries what delivery needs, by the real operations, and compares what
	// the far side is set to with need. It leaves no data that a reader would take for
	// records, and changes no settings. Findings are in the order in which they came
	// about; behind a Problem there may be few. It ends soon after ctx does, and has
	// deadlines of its own besides.
	Inspect(ctx context.Context, need Need) []Finding
}

// Need is what a far side must be good for.
type Need struct {
	Lanes   []string
	Sealing int64         // bytes at which batches are sealed as a rule
	Kept    time.Duration // for how long delivered batches are kept, to be sent again if the far side lost them
	Repeat  time.Duration // for how long after it was sent a batch may be sent again
}

// Level says how good a Finding is.
type Level uint8

// Levels.
const (
	Good    Level = 1
	Warning Level = 2 // records are delivered; at a price, or not for ever
	Problem Level = 3 // records are not delivered
)

// Finding is one thing that was tried or looked at.
type Finding struct {
	Level Level
	What  string // one word: connect, publish, stream, …
	Text  string // what was tried or looked at, as whom, what answered, how long it took
	Hint  string // what to change, "" when nothing
}

// FindingOf is a Problem: err, which ended what was tried. The hint is err's, if it
// is an *Error.
func FindingOf(what string, err error) Finding {
	f := Finding{Level: Problem, What: what, Text: err.Error()}
	var e *Error
	if errors.As(err, &e) {
		f.Text, f.Hint = e.Op+": "+e.Err.Error(), e.Hint
	}
	f.Text = strings.Join(strings.Fields(f.Text), " ") // one line
	return f
}

// Took is the time since start, as findings tell it.
func Took(start time.Time) string {
	d := time.Since(start)
	if d < 100*time.Millisecond {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}
