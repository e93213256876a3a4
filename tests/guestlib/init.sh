#!/bin/sh
# The guest's first and only program: loads drivers, then runs the host's commands that come over a line named on
# the kernel's command line (agent=ttyS1). One command is one line "ID BASE64-OF-A-SCRIPT"; the answer is its output
# and a line "@@end ID STATUS". "@@ready" says that commands are taken. With realroot=TAG the virtio-fs of that tag becomes
# the root; this script lies there as /agent and goes on in it.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
if [ "$1" != again ]; then
	export LD_LIBRARY_PATH=/lib
	mount -t devtmpfs dev /dev
	mount -t proc proc /proc
	mount -t sysfs sys /sys
	mount -t tmpfs tmp /tmp
	mkdir -p /mnt /dev/pts
	for module in $(cat /lib/modules.list); do
		insmod /lib/modules/$module || echo "init: cannot load $module"
	done
	ip link set lo up
	for word in $(cat /proc/cmdline); do
		case $word in realroot=*)
			mkdir /newroot && mount -t virtiofs ${word#realroot=} /newroot &&
				for each in dev proc sys tmp; do mount --move /$each /newroot/$each; done &&
				unset LD_LIBRARY_PATH && exec busybox switch_root /newroot /agent again
			;;
		esac
	done
fi
echo online >/sys/devices/system/memory/auto_online_blocks 2>/dev/null
agent=
for word in $(cat /proc/cmdline); do
	case $word in agent=*) agent=/dev/${word#agent=} ;; esac
done
echo "init: agent on $agent"
stty -F $agent raw -echo 115200 2>/dev/null || stty -F $agent raw -echo
exec <$agent >$agent 2>&1
echo
echo "@@ready $(uname -r)"
while :; do
	read -r id script || { sleep 1; continue; }
	[ -n "$script" ] || continue
	echo "$script" | base64 -d >/tmp/.script.$id
	echo "@@begin $id"
	setsid sh /tmp/.script.$id </dev/null
	status=$?
	rm -f /tmp/.script.$id
	echo
	echo "@@end $id $status"
done
