package listen

import (
	"sync"
	"sync/atomic"
	"time"
)

// Memory bounds the unfinished messages of all connections of a lane together: the
// memory of bytes that came and do not make a message yet. At the bound the connection
// that holds most is told to treat its message as over-size; until it has, the others
// go on, so that what is held may be more by 128 KiB for each connection that sends
// right then. Bodies of requests may take half of it. Safe for concurrent use; a nil
// Memory has no bound.
type Memory struct {
	limit  int64
	held   atomic.Int64
	bodies atomic.Int64 // of held, what bodies of requests take

	mu   sync.Mutex
	uses map[*use]struct{} // those that hold something, guarded by mu
}

// NewMemory returns a Memory of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit, uses: map[*use]struct{}{}} }

// Held returns the bytes of memory that unfinished messages take.
func (m *Memory) Held() int64 { return m.held.Load() }

// use is what one connection holds.
type use struct {
	c    *conn
	n    int64        // as its own goroutine sees it
	size atomic.Int64 // the same for others
}

// set says that u holds n bytes from now on. Only u's own goroutine calls it.
func (m *Memory) set(u *use, n int64) {
	if m == nil || n == u.n {
		return
	}
	was := u.n
	u.n = n
	u.size.Store(n)
	held := m.held.Add(n - was)
	if was == 0 || n == 0 {
		m.mu.Lock()
		if n == 0 {
			delete(m.uses, u)
		} else {
			m.uses[u] = struct{}{}
		}
		m.mu.Unlock()
	}
	if held > m.limit && n > was {
		m.relieve()
	}
}

// ease lets those that were told to let go do so before c, which holds something,
// reads on. It does not wait long: they may be held up by a lane that is not full for c.
func (m *Memory) ease(c *conn) {
	if m == nil || c.uses.n == 0 {
		return
	}
	if m.held.Load() <= m.limit {
		return
	}
	began := time.Now()
	for i := 0; i < 100 && m.held.Load() > m.limit && !c.cutNow.Load(); i++ {
		time.Sleep(time.Millisecond)
	}
	c.rests(began)
}

// drop ends u.
func (m *Memory) drop(u *use) { m.set(u, 0) }

// relieve tells the largest to let go of what is too much.
func (m *Memory) relieve() {
	m.mu.Lock()
	defer m.mu.Unlock()
	over := m.held.Load() - m.limit
	for u := range m.uses {
		if u.c.cutNow.Load() {
			over -= u.size.Load() // told already
		}
	}
	for over > 0 {
		var most *use
		for u := range m.uses {
			if !u.c.cutNow.Load() && (most == nil || u.size.Load() > most.size.Load()) {
				most = u
			}
		}
		if most == nil {
			return
		}
		over -= most.size.Load()
		most.c.cutNow.Store(true)
		most.c.kick()
	}
}
