package syslog

// Names as Elastic's syslog parsers write them, so that dashboards made for
// those keep working; 4 and 10, and 9 and 15, have the same name there too.
var facilities = [...]string{
	"kernel", "user-level", "mail", "system", "security/authorization", "syslogd", "line printer", "network news",
	"UUCP", "clock", "security/authorization", "FTP", "NTP", "log audit", "log alert", "clock",
	"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

var severities = [...]string{"Emergency", "Alert", "Critical", "Error", "Warning", "Notice", "Informational", "Debug"}

// FacilityName returns Elastic's label of a facility, Priority>>3 (0..23); ""
// for any other number.
func FacilityName(code int) string {
	if code < 0 || code >= len(facilities) {
		return ""
	}
	return facilities[code]
}

// SeverityName returns Elastic's label of a severity, Priority&7 (0..7); "" for
// any other number.
func SeverityName(code int) string {
	if code < 0 || code >= len(severities) {
		return ""
	}
	return severities[code]
}
