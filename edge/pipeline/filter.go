package pipeline

import "regexp"

// Filter says which messages become no record. Nil: all become one.
type Filter struct {
	// SeverityAbove drops messages whose severity was parsed from their header and is
	// a higher number, which is less severe (0 emergency to 7 debug, RFC 5424 section
	// 6.2.1); -1: none. A message without severity stays.
	SeverityAbove int

	// Drop drops messages whose text it matches anywhere: what becomes `message` of the
	// record, so without the header that was parsed; all of it where none was. Nil: none.
	Drop *regexp.Regexp
}

// filtered is why a message became no record.
type filtered uint8

// The reasons. The numbers are internal; the names travel in metrics.
const (
	filteredNot       filtered = 0 // it becomes one
	filteredSeverity  filtered = 1 // Filter.SeverityAbove
	filteredText      filtered = 2 // Filter.Drop
	filteredDuplicate filtered = 3 // VaultOptions: an entry that came before, byte for byte
	filteredSecret    filtered = 4 // VaultOptions: an entry with a token that is not hashed, or what is none and may have one
	filteredReasons            = 5
)

var filteredNames = [filteredReasons]string{"", "severity", "text", "duplicate", "raw_secret"}

// String returns the name of the reason.
func (f filtered) String() string { return filteredNames[f] }

// drops says why a message becomes no record. severity is -1 if none was parsed. It
// allocates nothing, and may be called by several goroutines at once.
func (f *Filter) drops(severity int, text []byte) filtered {
	switch {
	case f == nil:
		return filteredNot
	case f.SeverityAbove >= 0 && severity > f.SeverityAbove:
		return filteredSeverity
	case f.Drop != nil && f.Drop.Match(text):
		return filteredText
	}
	return filteredNot
}
