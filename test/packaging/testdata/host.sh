#!/usr/bin/env bash
# A host of its own to install packages on: host.sh DIR FILES runs systemd over a
# copy-on-write view of this machine, with its own processes, network and cgroups,
# and with FILES as /mnt. It prints the process to enter, and ends with it, or on
# SIGTERM. Nothing of it is left: what it writes goes to memory. It needs root.
set -euo pipefail

if [ "$1" = boot ]; then
	root=$2
	mount -t proc proc "$root/proc"
	mount -t sysfs sysfs "$root/sys"
	mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
	for d in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$root/$d"; done
	chmod 1777 "$root/tmp"
	for n in null zero full random urandom tty; do
		touch "$root/dev/$n"
		mount --bind "/dev/$n" "$root/dev/$n"
	done
	mkdir "$root/dev/pts" "$root/dev/shm"
	mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
	ln -s pts/ptmx "$root/dev/ptmx"
	# Neither the machine's devices and clock, nor a policy against services, are its own.
	for unit in systemd-udevd.service systemd-udev-trigger.service systemd-timesyncd.service systemd-modules-load.service timers.target; do
		ln -sf /dev/null "$root/etc/systemd/system/$unit"
	done
	rm -f "$root/usr/sbin/policy-rc.d"
	cd "$root"
	mkdir -p .old
	pivot_root . .old
	umount -l /.old
	rmdir /.old
	export container=spillway-test SYSTEMD_LOG_TARGET=journal
	exec /lib/systemd/systemd --system --unit=basic.target
fi

dir=$1 files=$2
mount -t tmpfs -o mode=755 tmpfs "$dir"
mkdir "$dir/up" "$dir/work" "$dir/root" "$dir/cgroup"
mount -t overlay -o "lowerdir=/,upperdir=$dir/up,workdir=$dir/work" overlay "$dir/root"
mount --bind "$files" "$dir/root/mnt"
mount -t cgroup2 cgroup "$dir/cgroup"
group=$dir/cgroup/spillway-test-$$
mkdir "$group"
end() {
	kill -KILL "$unshare" 2>/dev/null || true # and with it all others
	wait "$unshare" || true
	echo $$ >"$dir/cgroup/cgroup.procs"
	for _ in {1..50}; do # until the kernel has let go of all of them
		find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
		[ -d "$group" ] || break
		sleep 0.1
	done
	exit 0
}
echo $$ >"$group/cgroup.procs"
unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup bash "$0" boot "$dir/root" >"$dir/boot.log" 2>&1 </dev/null &
unshare=$!
trap end TERM
until first=$(<"/proc/$unshare/task/$unshare/children") && [ -n "$first" ]; do sleep 0.02; done
echo "$first"
wait "$unshare" || cat "$dir/boot.log" >&2
end
