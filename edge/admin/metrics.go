package admin

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Every metric of Spillway is in this file. Names are part of the interface:
// they may be added, not changed.

// family is one metric of a thing S: a value for each S, under its name.
type family[S any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*S) float64
}

func counter[S any](label, name, help string, value func(*S) float64) family[S] {
	return family[S]{prometheus.NewDesc("spillway_"+name, help, []string{label}, nil), prometheus.CounterValue, value}
}

func gauge[S any](label, name, help string, value func(*S) float64) family[S] {
	return family[S]{prometheus.NewDesc("spillway_"+name, help, []string{label}, nil), prometheus.GaugeValue, value}
}

var inputMetrics = []family[InputStats]{
	counter("input", "input_messages_total", "Messages received.", func(s *InputStats) float64 { return float64(s.Messages) }),
	counter("input", "input_message_bytes_total", "Bytes of messages, without framing.", func(s *InputStats) float64 { return float64(s.MessageBytes) }),
	counter("input", "input_read_bytes_total", "Bytes read from sockets, with framing.", func(s *InputStats) float64 { return float64(s.ReadBytes) }),
	counter("input", "input_parse_failures_total", "Messages whose header could not be read; they are kept, with error.message.", func(s *InputStats) float64 { return float64(s.ParseFailures) }),
	counter("input", "input_truncated_total", "Messages cut at MAX_MESSAGE_SIZE.", func(s *InputStats) float64 { return float64(s.Truncated) }),
	counter("input", "input_oversize_total", "Messages over MAX_MESSAGE_SIZE, whatever became of them.", func(s *InputStats) float64 { return float64(s.Oversize) }),
	counter("input", "input_discarded_bytes_total", "Bytes thrown away behind MAX_MESSAGE_SIZE.", func(s *InputStats) float64 { return float64(s.DiscardedBytes) }),
	counter("input", "input_dropped_total", "Records for which there was no room (ON_FULL); a gap record tells of them.", func(s *InputStats) float64 { return float64(s.Dropped) }),
	counter("input", "input_empty_frames_total", "Frames and datagrams without content.", func(s *InputStats) float64 { return float64(s.EmptyFrames) }),
	counter("input", "input_framing_errors_total", "Streams whose framing could not be followed.", func(s *InputStats) float64 { return float64(s.FramingErrors) }),
	counter("input", "input_cut_frames_total", "Counted frames that the sender did not finish.", func(s *InputStats) float64 { return float64(s.CutFrames) }),
	counter("input", "input_connections_total", "Connections accepted.", func(s *InputStats) float64 { return float64(s.Connections) }),
	gauge("input", "input_connections", "Connections now.", func(s *InputStats) float64 { return float64(s.OpenConnections) }),
	counter("input", "input_refused_connections_total", "Connections closed at once: over MAX_CONNECTIONS.", func(s *InputStats) float64 { return float64(s.RefusedConnections) }),
	counter("input", "input_idle_connections_total", "Connections closed after IDLE_TIMEOUT.", func(s *InputStats) float64 { return float64(s.IdleConnections) }),
}

var laneMetrics = []family[LaneStats]{
	counter("lane", "lane_records_admitted_total", "Records that were given a number.", func(s *LaneStats) float64 { return float64(s.Admitted) }),
	counter("lane", "lane_records_delivered_total", "Records that an output acknowledged.", func(s *LaneStats) float64 { return float64(s.Delivered) }),
	counter("lane", "lane_records_resent_total", "Records sent again because a stream had lost what it had acknowledged.", func(s *LaneStats) float64 { return float64(s.Resent) }),
	gauge("lane", "lane_pending_records", "Records in the buffer that no output has yet.", func(s *LaneStats) float64 { return float64(s.PendingRecords) }),
	gauge("lane", "lane_pending_bytes", "Bytes of the segments that they are in.", func(s *LaneStats) float64 { return float64(s.LiveBytes) }),
	gauge("lane", "lane_pending_age_seconds", "How long the oldest of them has waited at the head of the line.", func(s *LaneStats) float64 { return s.PendingAge.Seconds() }),
	gauge("lane", "lane_disk_bytes", "Bytes of all segments, delivered ones that are kept included.", func(s *LaneStats) float64 { return float64(s.DiskBytes) }),
	gauge("lane", "lane_full", "1 while there is no room and inputs wait or drop.", func(s *LaneStats) float64 { return one(s.Full) }),
	gauge("lane", "lane_disk_failed", "1 while records can not be written.", func(s *LaneStats) float64 { return one(s.DiskFailed) }),
	counter("lane", "lane_torn_bytes_total", "Bytes of writes that were cut off, passed over.", func(s *LaneStats) float64 { return float64(s.TornBytes) }),
	counter("lane", "lane_corrupt_bytes_total", "Damaged bytes that had been durable, passed over.", func(s *LaneStats) float64 { return float64(s.CorruptBytes) }),
	counter("lane", "lane_syncs_total", "Fsyncs of segments.", func(s *LaneStats) float64 { return float64(s.Syncs) }),
}

var outputMetrics = []family[OutputStats]{
	counter("output", "output_delivered_total", "Messages or objects that the far side acknowledged as new.", func(s *OutputStats) float64 { return float64(s.Delivered) }),
	counter("output", "output_already_there_total", "Messages or objects that the far side had already: repeats whose first answer was lost.", func(s *OutputStats) float64 { return float64(s.AlreadyThere) }),
	counter("output", "output_bytes_total", "Bytes of those delivered.", func(s *OutputStats) float64 { return float64(s.Bytes) }),
}

var (
	outputActive   = prometheus.NewDesc("spillway_output_active", "1 for the output that gets the lane's records now.", []string{"output", "lane"}, nil)
	outputFailures = prometheus.NewDesc("spillway_output_failures", "Failed calls in a row.", []string{"output", "lane"}, nil)
	outputState    = prometheus.NewDesc("spillway_output_state", "1 for the state that the output is in: up, failing, down (left, and probed) or trial (the next run decides).", []string{"output", "lane", "state"}, nil)
	switches       = prometheus.NewDesc("spillway_failovers_total", "How often the lane went from one output to another, failbacks included.", []string{"lane", "from", "to"}, nil)

	laneLost  = prometheus.NewDesc("spillway_lane_records_lost_total", "Numbered records that are lost, by reason, over all starts; a gap record tells of them.", []string{"lane", "reason"}, nil)
	ready     = prometheus.NewDesc("spillway_ready", "1 when inputs are bound and lanes accept records.", nil, nil)
	buildInfo = prometheus.NewDesc("spillway_build_info", "Always 1.", []string{"version"}, nil)
)

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// collector asks the sources at every scrape, so that nobody counts twice.
type collector struct{ s Sources }

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range inputMetrics {
		ch <- f.desc
	}
	for _, f := range laneMetrics {
		ch <- f.desc
	}
	for _, f := range outputMetrics {
		ch <- f.desc
	}
	for _, d := range []*prometheus.Desc{outputActive, outputFailures, outputState, switches} {
		ch <- d
	}
	ch <- laneLost
	ch <- ready
	ch <- buildInfo
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.s.Inputs() {
		collect(ch, inputMetrics, &s, s.Name)
	}
	for _, s := range c.s.Lanes() {
		collect(ch, laneMetrics, &s, s.Name)
		for _, reason := range slices.Sorted(maps.Keys(s.Lost)) {
			ch <- prometheus.MustNewConstMetric(laneLost, prometheus.CounterValue, float64(s.Lost[reason]), s.Name, reason)
		}
	}
	for _, s := range c.s.Outputs() {
		collect(ch, outputMetrics, &s, s.Name)
		for _, l := range s.Lanes {
			ch <- prometheus.MustNewConstMetric(outputActive, prometheus.GaugeValue, one(l.Active), s.Name, l.Lane)
			ch <- prometheus.MustNewConstMetric(outputFailures, prometheus.GaugeValue, float64(l.Failures), s.Name, l.Lane)
			for _, state := range States {
				ch <- prometheus.MustNewConstMetric(outputState, prometheus.GaugeValue, one(l.State == state), s.Name, l.Lane, state)
			}
		}
	}
	for _, s := range c.s.Switches() {
		ch <- prometheus.MustNewConstMetric(switches, prometheus.CounterValue, float64(s.Count), s.Lane, s.From, s.To)
	}
	ch <- prometheus.MustNewConstMetric(ready, prometheus.GaugeValue, one(c.s.Ready() == nil))
	ch <- prometheus.MustNewConstMetric(buildInfo, prometheus.GaugeValue, 1, c.s.Version)
}

func collect[S any](ch chan<- prometheus.Metric, families []family[S], s *S, name string) {
	for _, f := range families {
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(s), name)
	}
}
