package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"spillway/outputs"
)

// notifier tells the service manager how the agent is: sd_notify(3), datagrams of
// KEY=VALUE lines to the socket that NOTIFY_SOCKET names. Without one it says
// nothing. Safe for concurrent use.
type notifier struct {
	log *slog.Logger

	mu     sync.Mutex
	text   string // of the last status, guarded by mu
	failed bool   // the last datagram was not taken, guarded by mu
}

// ready says that the inputs are bound and the lanes run; after reloading also
// that the reload is over.
func (n *notifier) ready() { n.send(daemon.SdNotifyReady) }

// reloading says that files are read again. The clock lets the manager tell this
// reload from one that ended before it asked for this one.
func (n *notifier) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		n.log.Warn("read the monotonic clock", "error", err)
		return
	}
	n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
}

// stopping says that the stop has begun.
func (n *notifier) stopping() { n.send(daemon.SdNotifyStopping) }

// status is one line for people, as `systemctl status` prints it. What was said
// last is not said again.
func (n *notifier) status(text string) {
	n.mu.Lock()
	same := text == n.text
	n.text = text
	n.mu.Unlock()
	if !same {
		n.send("STATUS=" + text)
	}
}

// watchdog says twice in the manager's WatchdogSec that the agent is alive, as
// long as healthy, asked with that time, returns true, until ctx ends. A healthy
// that does not return is an answer too: the manager ends the agent, whose stacks
// are then in the log, and starts it again. It returns at once when the manager
// wants no such thing.
func (n *notifier) watchdog(ctx context.Context, healthy func(within time.Duration) bool) {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("no watchdog", "error", err, "hint", "WATCHDOG_USEC and WATCHDOG_PID are set by the service manager alone")
	}
	if within <= 0 {
		return
	}
	tick := time.NewTicker(within / 2)
	defer tick.Stop()
	said := false
	for {
		if healthy(within) {
			said = false
			n.send(daemon.SdNotifyWatchdog)
		} else if !said {
			said = true
			n.log.Error("no progress: the service manager is told nothing, and will restart the agent", "watchdog", within)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// send sends one datagram. The agent works without the manager too: an error is
// logged once, until one is taken again.
func (n *notifier) send(state string) {
	_, err := daemon.SdNotify(false, state)
	n.mu.Lock()
	before := n.failed
	n.failed = err != nil
	n.mu.Unlock()
	if err != nil && !before {
		n.log.Warn("the service manager could not be told", "state", state, "error", err, "hint", "NOTIFY_SOCKET is set by the service manager alone")
	}
}

// summary is the line for people: of each lane what waits, and for whom.
func (a *agent) summary() string {
	using := map[string]string{}
	for _, s := range a.chain.States() {
		if !s.Active {
			continue
		}
		using[s.Lane] = s.Output
		if s.Health != outputs.Up {
			using[s.Lane] += " (" + s.Health.String() + ")"
		}
	}
	var all []string
	for _, l := range a.lanes {
		all = append(all, fmt.Sprintf("lane %s sends to %s, %d pending", l.name, cmp.Or(using[l.name], a.outs[0].Name()), l.buffer.Stats().PendingRecords))
	}
	return strings.Join(all, "; ")
}

// moves reports whether every lane gets on, or waits for what is not the agent's
// fault. It takes the locks that the work takes: where one of them is held for
// ever, it does not return.
func (a *agent) moves(within time.Duration) bool {
	a.chain.States()
	for _, l := range a.lanes {
		l.buffer.Stats()
		if l.Stuck(within) {
			return false
		}
	}
	return true
}
