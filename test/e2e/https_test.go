package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/certs"
	"spillway/test/servers"
)

// An https input serves clients that would rather speak HTTP/2, which the binary is
// built without.
func TestHTTPSClients(t *testing.T) {
	ca := certs.New(t)
	cert, key := ca.Issue("server", time.Now().Add(time.Hour))
	address := "127.0.0.1:" + strconv.Itoa(servers.FreePort(t))
	a := agent.New(t, t.TempDir(), "SPILLWAY_INPUTS=hook", "SPILLWAY_INPUT_TCP_URL=", "SPILLWAY_INPUT_UDP_URL=",
		"SPILLWAY_INPUT_HOOK_URL=https://"+address, "SPILLWAY_INPUT_HOOK_TLS_CERT_FILE="+cert, "SPILLWAY_INPUT_HOOK_TLS_KEY_FILE="+key)
	a.Start(t)
	for _, rather2 := range []bool{true, false} {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.Client(""), ForceAttemptHTTP2: rather2}, Timeout: time.Minute}
		for range 2 {
			res, err := c.Post("https://"+address, "text/plain", strings.NewReader("hello"))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusNoContent {
				t.Errorf("HTTP/2 asked for: %v: %s", rather2, res.Status)
			}
		}
		c.CloseIdleConnections()
	}
	if n := a.Metric(t, `spillway_input_requests_total{input="hook",result="stored"}`); n != 4 {
		t.Errorf("%v requests were stored, want 4", n)
	}
	a.Stop(t)
}
