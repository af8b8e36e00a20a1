package syslog

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func location(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func moment(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// A stamp without a year gets the one that the receive time says, in the zone of
// the input.
func TestYearOfStamp(t *testing.T) {
	for _, c := range []struct{ name, zone, received, stamp, want string }{
		{"December received in January", "UTC", "2027-01-01T00:00:05Z", "Dec 31 23:59:59", "2026-12-31T23:59:59Z"},
		{"December received at the end of January", "UTC", "2027-01-31T00:00:00Z", "Dec 31 23:59:59", "2026-12-31T23:59:59Z"},
		{"January received in December", "UTC", "2026-12-31T23:59:55Z", "Jan  1 00:00:01", "2027-01-01T00:00:01Z"},
		{"January of the year that ends", "UTC", "2026-12-30T12:00:00Z", "Jan  1 12:00:01", "2026-01-01T12:00:01Z"},
		{"the new year is there in the east", "Asia/Tokyo", "2026-12-31T15:00:05Z", "Jan  1 00:00:05", "2026-12-31T15:00:05Z"},
		{"the old year is still there in the west", "America/New_York", "2027-01-01T04:00:00Z", "Dec 31 23:00:00", "2027-01-01T04:00:00Z"},
		{"a zone in the stamp", "UTC", "2027-01-01T00:00:05Z", "Dec 31 19:00:05 EST", "2027-01-01T00:00:05Z"},
		{"a day ahead", "UTC", "2026-11-20T12:00:00Z", "Nov 21 12:00:00", "2026-11-21T12:00:00Z"},
		{"more than a day ahead", "UTC", "2026-11-20T12:00:00Z", "Nov 21 12:00:01", "2025-11-21T12:00:01Z"},
		{"almost a year old", "UTC", "2026-11-20T12:00:00Z", "Nov 22 00:00:00", "2025-11-22T00:00:00Z"},
		{"29 February on the day", "UTC", "2028-02-29T10:00:05Z", "Feb 29 10:00:00", "2028-02-29T10:00:00Z"},
		{"29 February a day early", "UTC", "2028-02-28T12:00:00Z", "Feb 29 10:00:00", "2028-02-29T10:00:00Z"},
		{"29 February in a year without one", "UTC", "2026-11-20T12:00:00Z", "Feb 29 10:00:00", "2024-02-29T10:00:00Z"},
		{"29 February of a leap year that is not there yet", "UTC", "2028-02-27T12:00:00Z", "Feb 29 10:00:00", "2024-02-29T10:00:00Z"},
		{"29 February in 2100", "UTC", "2100-03-01T00:00:00Z", "Feb 29 10:00:00", "2096-02-29T10:00:00Z"},
		{"the agent's clock begins in 1970", "UTC", "1970-01-01T00:00:10Z", "Nov 20 12:00:00", "1969-11-20T12:00:00Z"},
		{"the agent's clock begins in 1970, first of January", "UTC", "1970-01-01T00:00:10Z", "Jan  1 00:00:00", "1970-01-01T00:00:00Z"},
		{"the agent's clock begins in 1970, 29 February", "UTC", "1970-01-01T00:00:10Z", "Feb 29 12:00:00", "1968-02-29T12:00:00Z"},
		{"the agent's clock begins in 1970, a year is believed", "UTC", "1970-01-01T00:00:10Z", "Nov 20 2026 12:00:00", "2026-11-20T12:00:00Z"},
		{"the agent's clock begins in 1980", "UTC", "1980-01-06T00:00:10Z", "Nov 20 12:00:00", "1979-11-20T12:00:00Z"},
		{"the agent's clock is beyond 32 bits", "UTC", "2106-02-07T06:28:16Z", "Nov 20 12:00:00", "2105-11-20T12:00:00Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m Message
			NewParser(Auto, location(t, c.zone)).Parse(&m, []byte("<13>"+c.stamp+" h a: x"), moment(t, c.received))
			if !m.HasTime || !m.Time.Equal(moment(t, c.want)) {
				t.Errorf("%v, want %s", m.Time, c.want)
			}
			if string(m.Hostname) != "h" || m.Err != "" {
				t.Errorf("host %q, error %q", m.Hostname, m.Err)
			}
		})
	}
}

// Whatever the agent's clock says, a guessed year puts no day of the year further
// ahead than a day, nor back by more than a year; 29 February by eight.
func TestGuessedYearBounds(t *testing.T) {
	for _, received := range []string{
		"1970-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "2024-02-29T12:00:00Z", "2026-01-01T00:00:00Z", "2026-11-20T12:00:00Z",
		"2026-12-31T23:59:59Z", "2028-02-28T00:00:00Z", "2104-02-28T00:00:00Z", "9998-06-01T00:00:00Z",
	} {
		at := moment(t, received)
		for _, zone := range []string{"UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "America/New_York"} {
			p := NewParser(Auto, location(t, zone))
			for day := time.Date(2000, 1, 1, 12, 30, 0, 0, time.UTC); day.Year() == 2000; day = day.AddDate(0, 0, 1) {
				var m Message
				p.Parse(&m, []byte("<13>"+day.Format(time.Stamp)+" h a: x"), at)
				back := 366 * 24 * time.Hour
				if day.Month() == 2 && day.Day() == 29 {
					back = 8 * 366 * 24 * time.Hour
				}
				if ahead := m.Time.Sub(at); !m.HasTime || ahead > 24*time.Hour || ahead < -back {
					t.Errorf("%s in %s, received %s: %v", day.Format(time.Stamp), zone, received, m.Time)
				}
			}
		}
	}
}

// At a change of the offset a stamp is read with one of the two, and with one that
// its zone really had then if there is such a one; always with the same.
func TestChangesOfOffset(t *testing.T) {
	for _, zone := range []string{
		"Europe/Budapest", "Europe/Dublin", "America/New_York", "America/St_Johns", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Tehran",
		"Africa/Casablanca", "Pacific/Apia", "Pacific/Chatham",
	} {
		loc := location(t, zone)
		warm := NewParser(Auto, loc)
		changes := 0
		at := time.Date(2010, 1, 1, 0, 0, 0, 0, loc)
		for {
			_, end := at.ZoneBounds()
			if end.IsZero() || end.Year() > 2027 {
				break
			}
			at = end
			_, before := end.Add(-time.Second).Zone()
			_, after := end.Zone()
			if before == after {
				continue
			}
			changes++
			for min := -26 * 60; min <= 26*60; min += 10 {
				civil := end.Unix() + int64(before) + int64(min*60)
				stamp := time.Unix(civil, 0).UTC().Format("2006-01-02T15:04:05")
				var got, again Message
				NewParser(Auto, loc).Parse(&got, []byte("<13>"+stamp+" h a: x"), received)
				warm.Parse(&again, []byte("<13>1 "+stamp+" h a - - - x"), received)
				if !got.HasTime || !got.Time.Equal(again.Time) {
					t.Fatalf("%s in %s: %v and %v", stamp, zone, got.Time, again.Time)
				}
				with := func(offset int) (unix int64, real bool) {
					unix = civil - int64(offset)
					_, o := time.Unix(unix, 0).In(loc).Zone()
					return unix, o == offset
				}
				b, bReal := with(before)
				a, aReal := with(after)
				u := got.Time.Unix()
				if u != a && u != b || (aReal || bReal) && !(aReal && u == a || bReal && u == b) {
					t.Errorf("%s in %s: %v", stamp, zone, got.Time)
				}
			}
		}
		if changes == 0 {
			t.Errorf("%s has no change of its offset", zone)
		}
	}
}

// The names of zones, each as it is and in lower case, and those that are none.
func TestNamedZones(t *testing.T) {
	if len(zones) != len(zoneOffsets) {
		t.Errorf("%d zones, want %d", len(zones), len(zoneOffsets))
	}
	p := NewParser(Auto, location(t, "Asia/Kathmandu"))
	parse := func(word string) (m Message) {
		p.Parse(&m, []byte("<13>Jul 20 12:00:00 "+word+" h a: x"), received)
		return m
	}
	noon := time.Date(2026, 7, 20, 12, 0, 0, 0, time.UTC)
	for n, minutes := range zoneOffsets {
		lower := []byte(n)
		for i := range lower {
			lower[i] |= 0x20
		}
		for _, word := range []string{n, string(lower)} {
			m := parse(word)
			if want := noon.Add(-time.Duration(minutes) * time.Minute); !m.Time.Equal(want) || string(m.Hostname) != "h" || string(m.AppName) != "a" {
				t.Errorf("%s: %v, host %q; want %v", word, m.Time, m.Hostname, want)
			}
		}
	}
	for word, want := range map[string]string{
		"Z": "2026-07-20T12:00:00Z", "+0545": "2026-07-20T06:15:00Z", "-03:30": "2026-07-20T15:30:00Z", "+02": "2026-07-20T10:00:00Z", "GMT+2": "2026-07-20T10:00:00Z", "TZ-6": "2026-07-20T18:00:00Z",
	} {
		if m := parse(word); !m.Time.Equal(moment(t, want)) || string(m.Hostname) != "h" {
			t.Errorf("%s: %v, host %q; want %s", word, m.Time, m.Hostname, want)
		}
	}
	// Several places call theirs so; the word is a host.
	for _, word := range []string{"IST", "BST", "AST", "z", "XYZ", "ESTX", "+24", "GMT+15"} {
		m := parse(word)
		if word == "+24" {
			// It has the form of an offset, and is none.
			if m.Err != errTime || m.HasTime {
				t.Errorf("%s: %v", word, describe(&m))
			}
			continue
		}
		if want := moment(t, "2026-07-20T06:15:00Z"); string(m.Hostname) != word || !m.Time.Equal(want) {
			t.Errorf("%s: %v, host %q", word, m.Time, m.Hostname)
		}
	}
}

// What package time takes for a time or does not is not what a header needs.
func TestTimesThatGoReadsDifferently(t *testing.T) {
	for _, c := range []struct{ stamp, want string }{ // "": a fault
		{"2003-08-24T05:14:15,25Z", "2003-08-24T05:14:15.25Z"},
		{"2003-08-24t05:14:15z", "2003-08-24T05:14:15Z"},
		{"2003-08-24T05:14:60Z", "2003-08-24T05:14:59.999999999Z"},
		{"2003-08-24T05:14:15.1234567891Z", "2003-08-24T05:14:15.123456789Z"},
		{"2003-08-24T05:14:15+23:59", "2003-08-23T05:15:15Z"},
		{"2003-08-24T05:14:15-0700", "2003-08-24T12:14:15Z"},
		{"0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"},
		{"9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"},
		{"2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z"},
		{"2003-08-24T5:14:15Z", ""},
		{"2003-08-24T05:14:15+24:00", ""},
		{"2003-08-24T05:14:15+01:60", ""},
		{"2003-08-24T05:14:61Z", ""},
		{"2003-08-24T24:00:00Z", ""},
		{"2003-08-24T05:60:00Z", ""},
		{"1900-02-29T00:00:00Z", ""},
		{"2003-02-29T00:00:00Z", ""},
		{"2003-04-31T00:00:00Z", ""},
		{"2003-00-01T00:00:00Z", ""},
		{"2003-13-01T00:00:00Z", ""},
		{"2003-01-00T00:00:00Z", ""},
		{"10000-01-01T00:00:00Z", ""},
		{"2003-08-24", ""},
		{"1061687655", ""},
	} {
		var m Message
		NewParser(RFC5424, nil).Parse(&m, []byte("<13>1 "+c.stamp+" h a p i - x"), received)
		switch {
		case c.want != "" && (!m.HasTime || !m.Time.Equal(moment(t, c.want)) || m.Err != ""):
			t.Errorf("%s: %v, %q; want %s", c.stamp, m.Time, m.Err, c.want)
		case c.want == "" && (m.HasTime || m.Err != errTime || string(m.Fault) != c.stamp):
			t.Errorf("%s: %v, %q, %q; want a fault", c.stamp, m.Time, m.Err, m.Fault)
		}
		if got := fmt.Sprintf("%s %s %s %s %s", m.Hostname, m.AppName, m.ProcID, m.MsgID, m.Text); got != "h a p i x" {
			t.Errorf("%s moves the columns: %s", c.stamp, got)
		}
	}
	// These have not the form of a time: they are text.
	for _, stamp := range []string{"Nov 20 1:02:03", "Nov 200 01:02:03", "November 20 01:02:03", "Nov  020 01:02:03"} {
		var m Message
		NewParser(Auto, nil).Parse(&m, []byte("<13>"+stamp+" h a: x"), received)
		if got, want := describe(&m), []string{"pri 13", fmt.Sprintf("text %q", stamp+" h a: x")}; !slices.Equal(got, want) {
			t.Errorf("%s: %s", stamp, got)
		}
	}
}
