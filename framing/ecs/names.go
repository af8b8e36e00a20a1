package ecs

import (
	"strconv"

	"spillway/framing/syslog"
)

// Names as syslog.conf and logger(1) know them.
var (
	shortFacilities = [24]string{
		"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
		"ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
	}
	shortSeverities = [8]string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
)

// The members of log.syslog that a priority gives, for every priority:
//
//	"priority":165,"facility":{"code":20,"name":"local4"},"severity":{"code":5,"name":"Notice"}
var (
	longPriorities  = renderPriorities(syslog.FacilityName, syslog.SeverityName)
	shortPriorities = renderPriorities(
		func(code int) string { return shortFacilities[code] },
		func(code int) string { return shortSeverities[code] })
)

func renderPriorities(facility, severity func(code int) string) (table [192]string) {
	for p := range table {
		b := strconv.AppendInt([]byte(`"priority":`), int64(p), 10)
		b = strconv.AppendInt(append(b, `,"facility":{"code":`...), int64(p>>3), 10)
		b = append(append(b, `,"name":"`...), facility(p>>3)...)
		b = strconv.AppendInt(append(b, `"},"severity":{"code":`...), int64(p&7), 10)
		b = append(append(b, `,"name":"`...), severity(p&7)...)
		table[p] = string(append(b, `"}`...))
	}
	return table
}
