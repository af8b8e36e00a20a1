//go:build !no_jetstream

package main

import (
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"
)

// A stream is asked for what it has also while there is nothing to send, so it has
// failed long before the first record that waits for it; a server that accepts and
// says nothing is as bad as none.
func TestReadyStream(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	vars := []string{"SPILLWAY_OUTPUTS=a,b", "SPILLWAY_FAILOVER_AFTER=200ms"}
	for _, name := range []string{"A", "B"} {
		vars = append(vars, "SPILLWAY_OUTPUT_"+name+"_URL=nats://"+l.Addr().String(), "SPILLWAY_OUTPUT_"+name+"_STREAM="+name)
	}
	a := start(t, vars...)
	time.Sleep(time.Second) // longer than a stall: twice FAILOVER_AFTER
	if code, body := a.get("/readyz"); code != http.StatusOK {
		t.Errorf("without records: %d %s", code, body)
	}
	begin := time.Now()
	fmt.Fprintln(a.dial("tcp"), "<13>one")
	a.until("not ready", func() bool { code, _ := a.get("/readyz"); return code == http.StatusServiceUnavailable })
	if took := time.Since(begin); took < 400*time.Millisecond {
		t.Errorf("stalled %v after the first record", took)
	}
	if code, body := a.get("/readyz/accept"); code != http.StatusOK {
		t.Errorf("/readyz/accept: %d %s", code, body)
	}
}
