package e2e

import (
	"sync"
	"testing"
	"time"
)

// machine says how long this machine lets a program wait that has something to do: on
// one with other work, a promise of milliseconds can be kept by the agent and missed.
type machine struct {
	mu             sync.Mutex
	longest, total time.Duration // guarded by mu
}

// watchMachine looks until the end of the test: it sleeps for a moment, and what that
// takes longer is what the machine is late by.
func watchMachine(t *testing.T) *machine {
	m := &machine{}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		const nap = 5 * time.Millisecond
		for {
			begin := time.Now()
			select {
			case <-done:
				return
			case <-time.After(nap):
			}
			if late := time.Since(begin) - nap; late > nap {
				m.mu.Lock()
				m.longest, m.total = max(m.longest, late), m.total+late
				m.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { close(done); <-ended })
	return m
}

// late returns the longest time for which it was late since the last call, and all of them
// together.
func (m *machine) late() (longest, total time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	longest, total = m.longest, m.total
	m.longest, m.total = 0, 0
	return longest, total
}
