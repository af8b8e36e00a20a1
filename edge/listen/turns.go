package listen

import (
	"context"
	"runtime"
	"sync"
)

// turns are the sinks of a server's connections. A connection takes one to hand over
// what it reads and gives it back at once; without one it holds nothing that it read.
// So neither the number of connections nor a lane without room decides how much is held.
type turns struct {
	open func() Sink
	sem  chan struct{}

	mu   sync.Mutex
	idle []Sink // the one used last is used next; guarded by mu
}

func newTurns(open func() Sink) *turns {
	return &turns{open: open, sem: make(chan struct{}, max(16, 4*runtime.GOMAXPROCS(0)))}
}

// take waits for a turn. It returns nil when hard has ended.
func (t *turns) take(hard context.Context) Sink {
	select {
	case t.sem <- struct{}{}:
	default:
		select {
		case t.sem <- struct{}{}:
		case <-hard.Done():
			return nil
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.idle); n > 0 {
		s := t.idle[n-1]
		t.idle = t.idle[:n-1]
		return s
	}
	return t.open()
}

// give ends a turn.
func (t *turns) give(s Sink) {
	t.mu.Lock()
	t.idle = append(t.idle, s)
	t.mu.Unlock()
	<-t.sem
}

// close closes the sinks, when all turns have ended.
func (t *turns) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.idle {
		s.Close()
	}
	t.idle = nil
}
