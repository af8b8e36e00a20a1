package main

import (
	"errors"
	"fmt"
	"time"

	"spillway/edge/admin"
)

// sources is what /metrics and /readyz show, asked of the owners at each look.
func (a *agent) sources() admin.Sources {
	return admin.Sources{Version: version, Inputs: a.inputStats, Lanes: a.laneStats, Outputs: a.outputStats, Switches: a.switches, Ready: a.ready}
}

func (a *agent) inputStats() (all []admin.InputStats) {
	for _, in := range a.inputs {
		r, s := in.records, &in.server.Stats
		all = append(all, admin.InputStats{
			Name:     in.cfg.Name,
			Messages: r.Messages.Load(), MessageBytes: r.Bytes.Load(), ParseFailures: r.Failures.Load(), Truncated: r.Truncated.Load(), Dropped: r.Dropped.Load(),
			ReadBytes: s.Bytes.Load(), EmptyFrames: s.Empty.Load(), Oversize: s.Oversize.Load(), DiscardedBytes: s.Discarded.Load(),
			FramingErrors: s.Framing.Load(), CutFrames: s.Cut.Load(),
			Connections: s.Connections.Load(), OpenConnections: s.Open.Load(), RefusedConnections: s.Refused.Load(), IdleConnections: s.Idle.Load(),
		})
	}
	return all
}

func (a *agent) laneStats() (all []admin.LaneStats) {
	for _, l := range a.lanes {
		s := l.buffer.Stats()
		ls := admin.LaneStats{
			Name: l.name, Admitted: l.Admitted(), Delivered: l.Delivered(), Resent: l.Resent(), Lost: s.Lost,
			PendingRecords: s.PendingRecords, LiveBytes: s.LiveBytes, DiskBytes: s.Bytes, DiskFailed: s.DiskError != nil,
			Full: l.Full(), TornBytes: s.TornBytes, CorruptBytes: s.CorruptBytes, Syncs: s.Syncs,
		}
		if !s.PendingSince.IsZero() {
			ls.PendingAge = time.Since(s.PendingSince)
		}
		all = append(all, ls)
	}
	return all
}

func (a *agent) outputStats() (all []admin.OutputStats) {
	states := a.chain.States()
	for _, o := range a.outs {
		n := o.Counts()
		s := admin.OutputStats{Name: o.Name(), Delivered: n.Delivered, AlreadyThere: n.AlreadyThere, Bytes: n.Bytes}
		for _, st := range states {
			if st.Output == s.Name {
				s.Lanes = append(s.Lanes, admin.OutputLane{Lane: st.Lane, State: st.Health.String(), Active: st.Active, Failures: st.Failures})
			}
		}
		all = append(all, s)
	}
	return all
}

func (a *agent) switches() (all []admin.Switch) {
	for s, n := range a.chain.Switches() {
		all = append(all, admin.Switch{Lane: s.Lane, From: s.From, To: s.To, Count: n})
	}
	return all
}

// ready says why the agent does not take records now; nil when it does. A far
// side that is down is no reason: the buffer takes what comes.
func (a *agent) ready() error {
	var why []error
	for _, l := range a.lanes {
		if l.Full() {
			why = append(why, fmt.Errorf("lane %s: nothing could be stored for a second or longer: the buffer is full, or its disk fails", l.name))
		}
	}
	return errors.Join(why...)
}
