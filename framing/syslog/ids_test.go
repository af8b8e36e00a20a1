package syslog

import (
	"slices"
	"strings"
	"testing"
)

// What senders in the wild send: the variants of BSD syslog (W) and the cases of
// RFC 5424 (R) that the corpus must hold, and the examples of the field mapping
// (G). The numbers have gaps. G4 is a message that is not parsed at all: there is
// no case of it here. A variant with several messages has a case for each, called
// by its number, a dash and a word.
const (
	wildBSD = `W01 W02 W03 W04 W06 W07 W08 W09 W10 W12 W13 W14 W15 W16 W17 W18 W19
		W21 W22 W23 W25 W26 W27 W29 W30 W31 W32 W34 W35 W37 W38 W40 W41 W43 W44 W45 W46 W48
		W50 W51 W52 W54 W55 W56 W57 W59 W61 W63 W64 W65 W67 W69 W70 W71 W72 W74 W75 W76 W77 W78
		W80 W81 W83 W84 W86 W87 W89 W90`
	wildRFC = `R01 R02 R03 R05 R06 R07 R09 R10 R11 R12 R14 R15 R17 R18 R20 R21 R22 R23 R24 R25 R27 R28
		R30 R31 R32 R34 R35 R36 R38 R39 R40 R42 R43 R44 R45 R46 R47 R48 R50 R51`
	golden = `G1 G2 G3 G5 G6 G7 G8`
)

// severalMessages are the variants that are more than one message, and how many.
var severalMessages = map[string]int{
	"W09": 2, "W13": 4, "W14": 2, "W35": 2, "W44": 2, "W50": 2, "W52": 2, "W65": 5, "W81": 3, "W84": 6, "W87": 2, "W89": 2, "W90": 2,
	"R06": 2, "R09": 4, "R11": 3, "R15": 2, "R17": 3, "R20": 2, "R24": 3, "R27": 6, "R32": 2, "R35": 2, "R38": 2, "R42": 2, "R44": 2, "R45": 3, "R48": 2,
}

// TestCorpusIsComplete fails when the cases of a variant are gone, and when a
// case is named for a variant that there is not.
func TestCorpusIsComplete(t *testing.T) {
	ids := strings.Fields(wildBSD + " " + wildRFC + " " + golden)
	cases := map[string]int{}
	for _, f := range corpusFiles(t) {
		for _, c := range readCorpus(t, f) {
			id, _, _ := strings.Cut(c.name, "-")
			cases[id]++
			if len(id) == 3 && strings.Contains("WR", id[:1]) && !slices.Contains(ids, id) {
				t.Errorf("%s: %s has a case, but is not in the list", f, c.name)
			}
		}
	}
	for _, id := range ids {
		if want := max(1, severalMessages[id]); cases[id] < want {
			t.Errorf("%s has %d cases, want %d", id, cases[id], want)
		}
	}
	for id := range severalMessages {
		if !slices.Contains(ids, id) {
			t.Errorf("%s is not in the list", id)
		}
	}
}
