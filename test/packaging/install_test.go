package packaging

import (
	"strings"
)

// send sends a line by TCP to a port of the host.
const send = "logger -T -n 127.0.0.1 -P "

// install installs a package, without what others do when a manual page has changed.
const install = "dpkg --no-triggers --force-unsafe-io --force-confold -i "

// newest prints the epoch of the newest record.
const newest = `runuser -u spillway -- spillway cat /var/lib/spillway/outbox | tail -n 1 | grep -o '"epoch":"[0-9a-f]*"'`

// traces prints what an installation changes.
const traces = "sha256sum /etc/passwd /etc/group; find /etc /opt /run /usr/bin /usr/lib/systemd /usr/sbin /usr/share /var -iname '*spillway*' | sort"

// arrives waits till the outbox holds a record with this message: at least once is
// what is promised, and the agent is killed on the way.
func (h *host) arrives(message string) {
	h.t.Helper()
	h.until(message+" in the outbox", `runuser -u spillway -- spillway cat /var/lib/spillway/outbox | grep -F '"message":"`+message+`"'`)
}

// testDeb installs, uses, upgrades, removes and purges the .deb.
func testDeb(h *host) {
	h.step("first installation")
	// A system call that the unit forbids ends the agent, instead of an error that it may hide.
	// And nobody waits a second for a batch.
	h.sh("mkdir -p /run/systemd/system/spillway.service.d; printf '[Service]\nSystemCallErrorNumber=kill\nEnvironment=SPILLWAY_BATCH_MAX_AGE=50ms SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=50ms\n' >/run/systemd/system/spillway.service.d/kill.conf")
	before := h.sh(traces)
	h.sh(install + "/mnt/1.deb")
	h.want("systemctl is-enabled spillway.service", "enabled")
	h.want("systemctl is-active spillway.service", "active")
	h.want("systemctl is-enabled spillway-vault.socket || true", "disabled")
	h.want("stat -c '%a %U:%G' /etc/spillway/spillway.env /var/lib/spillway", "640 root:spillway\n700 spillway:spillway")
	h.want("getent passwd spillway | cut -d: -f6,7", "/var/lib/spillway:/usr/sbin/nologin")
	h.want("systemctl show -P StatusText spillway", "lane main sends to outbox, 0 pending")
	h.want("systemctl show -P Result spillway", "success")
	h.want("systemctl show -P SystemCallErrorNumber spillway", "2147483646") // kill

	h.step("the unit")
	h.want("systemd-analyze verify --man=no spillway.service spillway-vault.socket spillway-syslog-tcp.socket spillway-syslog-udp.socket 2>&1", "")
	h.sh("systemd-analyze security --threshold=20 --no-pager spillway.service") // tenths; 0 is nothing exposed, 100 all
	h.want("p=$(systemctl show -P MainPID spillway); stat -c %U /proc/$p; awk '/^(CapEff|CapBnd|NoNewPrivs|Seccomp):/ { print $2 }' /proc/$p/status", "spillway\n0000000000000400\n0000000000000400\n1\n2")
	h.want("grep -c . /proc/sys/kernel/random/boot_id", "1")

	h.step("records")
	h.sh(send + "5514 first")
	h.arrives("first")

	h.step("a port below 1024, set in the environment file")
	h.sh("sed -i 's|^#\\(SPILLWAY_INPUT_TCP_URL=tcp://0.0.0.0:514\\)$|\\1|' /etc/spillway/spillway.env && systemctl restart spillway")
	h.sh(send + "514 privileged")
	h.arrives("privileged")

	h.step("a look at the configuration, as the environment file says")
	// The line is the file's own.
	if out := h.sh("$(sed -n 's/^#  *\\(systemd-run .*\\) --probe$/\\1/p' /etc/spillway/spillway.env)"); !strings.HasSuffix(out, "\nok") || !strings.Contains(out, "0.0.0.0:514") {
		h.t.Fatal(out)
	}

	h.step("a configuration that is wrong")
	h.sh("cp -a /etc/spillway/spillway.env /tmp/env; echo SPILLWAY_INPUT_TPC_URL=tcp://:514 >>/etc/spillway/spillway.env")
	if _, err := h.run("systemctl restart spillway"); err == nil {
		h.t.Fatal("it started")
	}
	h.until("the journal names the variable", "journalctl -u spillway -o cat | grep -q SPILLWAY_INPUT_TPC_URL")
	h.sh("cp -a /tmp/env /etc/spillway/spillway.env; systemctl restart spillway")

	h.step("reload")
	pid := h.sh("systemctl show -P MainPID spillway")
	h.sh("systemctl reload spillway")
	h.until("reloaded", "journalctl -u spillway -o cat | grep -q 'nothing was read again' && systemctl is-active spillway")
	h.want("systemctl show -P MainPID spillway", pid)

	h.step("an agent that stands still is restarted, and keeps what it took")
	h.sh("mkdir -p /run/systemd/system/spillway.service.d; printf '[Service]\\nWatchdogSec=1s\\nRestartSec=100ms\\nTimeoutAbortSec=1s\\n' >/run/systemd/system/spillway.service.d/test.conf; systemctl daemon-reload; systemctl restart spillway")
	h.sh(send + "514 kept")
	h.arrives("kept")
	h.sh("kill -STOP $(systemctl show -P MainPID spillway)")
	h.until("a restart", "test \"$(systemctl show -P NRestarts spillway)\" -ge 1 && systemctl is-active spillway && "+send+"514 again")
	h.sh("journalctl -u spillway -o cat | grep -F 'Watchdog timeout'")
	h.arrives("again")
	h.arrives("kept")
	h.sh("rm /run/systemd/system/spillway.service.d/test.conf; systemctl daemon-reload; systemctl restart spillway")

	h.step("sockets of systemd's: what is sent while the agent is away")
	h.sh("cp -a /etc/spillway/spillway.env /tmp/env; sed -i '/^SPILLWAY_/d' /etc/spillway/spillway.env; printf '%s\\n' SPILLWAY_INPUTS=tcp,udp,vault SPILLWAY_INPUT_TCP_URL=fd://syslog-tcp SPILLWAY_INPUT_UDP_URL=fd://syslog-udp SPILLWAY_INPUT_VAULT_URL=fd://vault >>/etc/spillway/spillway.env")
	h.sh("systemctl stop spillway; systemctl start spillway-syslog-tcp.socket spillway-syslog-udp.socket spillway-vault.socket")
	h.want("systemctl is-active spillway || true", "inactive")
	h.want("stat -c '%a %U:%G' /run/spillway-vault.sock", "660 spillway:spillway")
	h.sh("logger -d -n 127.0.0.1 -P 514 datagram") // starts it
	h.arrives("datagram")
	h.want("journalctl -u spillway -o cat | grep 'smaller receive buffer' | grep -F '[::]:514 ' || true", "") // systemd gave what it asks for
	h.sh(send + "514 stream")
	h.arrives("stream")
	h.sh(`echo '{"type":"request"}' | nc -N -U /run/spillway-vault.sock`)
	h.until("the entry in the outbox", `runuser -u spillway -- spillway cat /var/lib/spillway/outbox | grep -F '"hashicorp_vault":{"audit":{"type":"request"}}'`)
	// A connection for each line, all the time over two restarts: nobody is refused.
	h.sh("(for i in $(seq 300); do " + send + "514 line-$i || exit 1; done) & systemctl restart spillway; systemctl restart spillway; wait $!")
	h.until("every line in the outbox", `test $(runuser -u spillway -- spillway cat /var/lib/spillway/outbox | grep -o '"message":"line-[0-9]*"' | sort -u | wc -l) = 300`)
	h.sh("systemctl stop spillway-syslog-tcp.socket spillway-syslog-udp.socket spillway-vault.socket; cp -a /tmp/env /etc/spillway/spillway.env; systemctl restart spillway")
	h.want("ls /run/spillway-vault.sock 2>/dev/null || true", "")

	h.step("a unix socket of another group")
	h.sh("groupadd app; printf '[Service]\nSupplementaryGroups=app\n' >/run/systemd/system/spillway.service.d/group.conf; systemctl daemon-reload")
	h.sh("printf '%s\\n' SPILLWAY_INPUTS=tcp,unix SPILLWAY_INPUT_UNIX_SOCKET_GROUP=app >>/etc/spillway/spillway.env; systemctl restart spillway")
	h.want("stat -c '%a %U:%G' /run/spillway/syslog.sock", "660 spillway:app")
	h.sh("setpriv --reuid nobody --regid app --clear-groups logger -u /run/spillway/syslog.sock by-unix")
	h.arrives("by-unix")
	h.sh("rm /run/systemd/system/spillway.service.d/group.conf; groupdel app; cp -a /tmp/env /etc/spillway/spillway.env; systemctl daemon-reload; systemctl restart spillway")

	h.step("upgrade")
	epoch := h.sh(newest)
	h.sh("chmod 600 /etc/spillway/spillway.env")
	h.sh(install + "/mnt/2.deb")
	h.want("spillway version | cut -d' ' -f2", "1.1.0")
	h.want("systemctl is-active spillway", "active")
	h.want("stat -c '%a %U:%G' /etc/spillway/spillway.env", "600 root:spillway")
	h.want("grep -c ^SPILLWAY_INPUT_TCP_URL=tcp://0.0.0.0:514 /etc/spillway/spillway.env", "1")
	h.sh(send + "514 upgraded")
	h.arrives("upgraded")
	h.want(newest, epoch)
	h.arrives("first")

	h.step("an upgrade starts no agent that was disabled")
	h.sh("systemctl disable --now spillway; " + install + "/mnt/2.deb")
	h.want("systemctl is-active spillway || true; systemctl is-enabled spillway || true", "inactive\ndisabled")
	h.sh("systemctl enable --now spillway")

	h.step("remove")
	h.sh("dpkg -r --no-triggers spillway")
	h.want("systemctl is-active spillway || true", "inactive")
	h.want("ls /usr/bin/spillway /usr/share/doc/spillway 2>/dev/null || true", "")
	h.sh("test -d /var/lib/spillway/buffer/main && test -f /etc/spillway/spillway.env && getent passwd spillway")
	h.sh(install + "/mnt/2.deb")
	h.want("systemctl is-enabled spillway; systemctl is-active spillway", "enabled\nactive")
	h.arrives("upgraded")

	h.step("purge")
	h.sh("dpkg -P --no-triggers spillway")
	h.sh("test -z \"$(pgrep -x spillway)\"")
	after := h.sh(traces)
	if after != before {
		h.t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// testRPM installs, upgrades and removes the .rpm, with a database of its own:
// dependencies are those of another distribution.
func testRPM(h *host) {
	h.step(".rpm: first installation")
	h.sh("rpm --initdb; printf 'enable spillway.service\\n' >/etc/systemd/system-preset.conf; mkdir -p /etc/systemd/system-preset; printf 'disable *\\n' >/etc/systemd/system-preset/99.preset")
	h.sh("rpm -i --nodeps /mnt/1.rpm")
	h.want("rpm -V --nodeps spillway", "")
	h.want("systemctl is-enabled spillway || true; systemctl is-active spillway || true", "disabled\ninactive")
	h.want("stat -c '%a %U:%G' /etc/spillway/spillway.env", "640 root:spillway")
	h.sh("systemctl enable --now spillway")
	h.sh(send + "5514 first")
	h.arrives("first")

	h.step(".rpm: upgrade")
	h.sh("echo SPILLWAY_SITE=plant-1 >>/etc/spillway/spillway.env")
	pid := h.sh("systemctl show -P MainPID spillway")
	h.sh("rpm -U --nodeps /mnt/2.rpm")
	h.want("spillway version | cut -d' ' -f2", "1.1.0")
	h.want("systemctl is-enabled spillway; systemctl is-active spillway", "enabled\nactive")
	if now := h.sh("systemctl show -P MainPID spillway"); now == pid {
		h.t.Error("the old agent still runs")
	}
	h.want("grep -c ^SPILLWAY_SITE=plant-1 /etc/spillway/spillway.env", "1")
	h.sh(send + "5514 upgraded")
	h.arrives("upgraded")

	h.step(".rpm: removal keeps records and settings")
	h.sh("rpm -e --nodeps spillway")
	h.want("systemctl is-active spillway || true; ls /usr/bin/spillway 2>/dev/null || true", "inactive")
	h.want("find /etc/systemd -name 'spillway*'", "")
	if env := h.sh("cat /etc/spillway/spillway.env.rpmsave"); !strings.Contains(env, "SPILLWAY_SITE=plant-1") {
		h.t.Errorf("saved:\n%s", env)
	}
	h.sh("test -d /var/lib/spillway/buffer/main")
}
