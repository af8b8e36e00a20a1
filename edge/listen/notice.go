package listen

import (
	"strings"
	"sync"
	"time"
)

// notices keeps log lines that a peer can cause from filling the log: each kind is
// told at once, and then at most once a minute with how often it happened. Safe for
// concurrent use.
type notices struct {
	mu sync.Mutex
	m  map[string]*notice // by kind, guarded by mu
}

type notice struct {
	told  time.Time
	times int // since then
}

const (
	remind   = time.Minute
	kindsMax = 64 // from here on kinds with a peer's words ("kind: words") count as their kind
)

// due counts one more of a kind and reports whether to tell, and of how many.
func (n *notices) due(kind string) (times int, due bool) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil {
		n.m = map[string]*notice{}
	}
	k := n.m[kind]
	if k == nil {
		if len(n.m) >= kindsMax {
			for old, k := range n.m {
				if now.Sub(k.told) >= remind {
					delete(n.m, old)
				}
			}
		}
		if of, _, ok := strings.Cut(kind, ": "); ok && len(n.m) >= kindsMax {
			kind = of
			if k = n.m[kind]; k != nil {
				return k.due(now)
			}
		}
		k = &notice{}
		n.m[kind] = k
	}
	return k.due(now)
}

func (k *notice) due(now time.Time) (times int, due bool) {
	k.times++
	if !k.told.IsZero() && now.Sub(k.told) < remind {
		return 0, false
	}
	times, k.times, k.told = k.times, 0, now
	return times, true
}
