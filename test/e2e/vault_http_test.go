package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/servers"
	"spillway/test/vaultsender"
)

// newHTTP prepares an agent with an http input called vault, and what writes to it
// as OpenBao's http device does.
func newHTTP(t *testing.T, env ...string) (*vault, *vaultsender.HTTP) {
	t.Helper()
	v := newVault(t, "tcp")
	v.Env = append(v.Env, append([]string{"SPILLWAY_INPUT_VAULT_URL=http://" + v.sender.Address + "/audit", "SPILLWAY_INPUT_VAULT_TOKEN=sesame"}, env...)...)
	return v, &vaultsender.HTTP{URL: "http://" + v.sender.Address + "/audit", Header: http.Header{"Authorization": {"Bearer sesame"}}}
}

// posts writes operations from n clients at once until stop. stored are the entries
// that were answered with success, took how long an answer took.
func (v *vault) posts(h *vaultsender.HTTP, n int) (stop func() (took []time.Duration)) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for k := range n {
		ops := vaultsender.NewOperations(uint64(1000 + k + len(v.entries)*n))
		ops.Pad = v.ops.Pad
		wg.Go(func() {
			for ctx.Err() == nil {
				op := ops.Next(time.Now())
				for kind, line := range map[string][]byte{"request": op.Request, "response": op.Response} {
					begin := time.Now()
					err := h.Write(context.Background(), line)
					mu.Lock()
					took = append(took, time.Since(begin))
					v.entries = append(v.entries, entry{key: op.ID + ":" + kind, sum: sha256.Sum256(line[:len(line)-1]), failed: err != nil})
					mu.Unlock()
					if err != nil {
						time.Sleep(10 * time.Millisecond)
					}
				}
			}
		})
	}
	stop = sync.OnceValue(func() []time.Duration {
		cancel()
		wg.Wait()
		return took
	})
	v.t.Cleanup(func() { stop() })
	return stop
}

// OpenBao's http device: what was answered with success is stored, whatever happens
// to the agent the moment after.
func TestHTTPKilled(t *testing.T) {
	besideVault(t)
	kills := vaultEither(20, 3)
	v, h := newHTTP(t, "SPILLWAY_INPUT_VAULT_PAIRING=false")
	v.Start(t)
	stop := v.posts(h, 8)
	for range kills {
		time.Sleep(500 * time.Millisecond)
		v.Kill()
		v.Start(t)
	}
	time.Sleep(500 * time.Millisecond)
	took := stop()
	v.delivered()
	v.Stop(t)
	d := v.judge()
	t.Logf("%d kills, 8 clients: %v; an answer took %v", kills, d, spread(took))
	if len(d.lost) > 0 {
		t.Errorf("%d entries were answered with success and are lost: %q", len(d.lost), d.lost[0])
	}
	if d.accepted < 10*kills {
		t.Errorf("only %d entries were accepted", d.accepted)
	}
}

// With a full lane an http input answers at once that it can't, and again that it
// can as soon as there is room.
func TestHTTPFull(t *testing.T) {
	besideVault(t)
	n := servers.StartNATS(t, t.TempDir())
	v, h := newHTTP(t, append(hub(t, n), "SPILLWAY_BUFFER_MAX_BYTES=4MiB", "SPILLWAY_INPUT_VAULT_PAIRING=false")...)
	v.ops.Pad = 32 << 10
	v.Start(t)
	n.Pause(t)
	m := watchMachine(t)
	stop := v.posts(h, 4)
	agent.Eventually(t, "requests are answered with 503", time.Minute, func() bool {
		return v.Metric(t, `spillway_input_requests_total{input="vault",result="full"}`) > 20
	})
	n.Resume(t)
	agent.Eventually(t, "requests are answered with 204 again", time.Minute, func() bool {
		return h.Write(t.Context(), []byte(`{"type":"request","request":{"id":"x","operation":"help"}}`+"\n")) == nil
	})
	took := stop()
	v.entries = append(v.entries, entry{key: "x:request", sum: sha256.Sum256([]byte(`{"type":"request","request":{"id":"x","operation":"help"}}`))})
	v.delivered()
	d := v.judge(natsSource(n))
	t.Logf("%v; an answer took %v", d, spread(took))
	if late, _ := m.late(); len(d.lost) > 0 || slices.Max(took) > 3*time.Second+2*late {
		t.Errorf("lost %d; the longest answer took %v; the machine was late by %v", len(d.lost), slices.Max(took), late)
	}
}

// Who has not the token, or asks for something else, is told so, and leaves nothing.
func TestHTTPRefuses(t *testing.T) {
	besideVault(t)
	v, h := newHTTP(t, "SPILLWAY_INPUT_VAULT_MAX_MESSAGE_SIZE=1MiB")
	v.Start(t)
	for _, c := range []struct{ want, command string }{
		{"401", "curl -s -o /dev/null -w '%%{http_code}' -d '{}' %s"},
		{"401", "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer wrong' -d '{}' %s"},
		{"404", "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer sesame' -d '{}' %s/other"},
		{"405", "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer sesame' %s"},
		{"400", "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer sesame' -X POST %s"},
		{"413", "head -c 2000000 /dev/zero | curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer sesame' --data-binary @- %s"},
	} {
		if got := sh(t, fmt.Sprintf(c.command, h.URL)); !strings.HasSuffix(got, c.want) {
			t.Errorf("%s: %s, want %s", c.command, got, c.want)
		}
	}
	op := v.ops.Next(time.Now())
	if err := h.Write(t.Context(), op.Request); err != nil {
		t.Error(err)
	}
	v.entries = append(v.entries, entry{key: op.ID + ":request", sum: sha256.Sum256(op.Request[:len(op.Request)-1])})
	v.delivered()
	v.Stop(t)
	if d := v.judge(); len(d.lost) > 0 || len(v.cat()) != 1 {
		t.Errorf("%v, %d records", d, len(v.cat()))
	}
}
