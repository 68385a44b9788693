#!/bin/bash
# Runs a first pod as a user would, with a daemon, a network and a registry of
# its own, and leaves nothing behind, also after ^C.
#
# IMAGE: another image than one of this machine's busybox. CMD: what it runs
# instead of the script below, for an image without a shell.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$(mktemp -d /tmp/runscd-first-run.XXXXXX)
bridge=runscd-first
forwarding=$(</proc/sys/net/ipv4/ip_forward)
daemon='' client=''

finish() {
	status=$?
	trap '' INT TERM
	set +e # each step is tried
	# The client removes its pod, also when it is told to end.
	if [ -n "$client" ]; then
		kill -TERM "$client" 2>/dev/null
		wait "$client"
	fi
	case $status in
	0 | 130 | 143) ;;
	*) grep -sv level=info "$dir/log" >&2 ;;
	esac
	for pid in $daemon ${registry_PID:-}; do
		kill -TERM "$pid" 2>/dev/null
		wait "$pid"
	done
	# runsc leaves one mount for all sandboxes to share.
	grep -o " $dir/[^ ]*" /proc/self/mounts | sort -r | xargs -r umount
	ip link delete "$bridge" 2>/dev/null
	[ "$forwarding" = 1 ] || echo 0 >/proc/sys/net/ipv4/ip_forward
	rm -rf --one-file-system "$dir"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "${IMAGE:-}" ]; then
	coproc registry { exec .cache/bin/registry; }
	read -r IMAGE <&"${registry[0]}"
fi

mkdir "$dir/net.d"
# Addresses that are set aside for tests of networks (RFC 2544).
cat >"$dir/net.d/first-run.conflist" <<EOF
{
  "cniVersion": "1.0.0",
  "name": "runscd-first-run",
  "plugins": [{
    "type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": true,
    "ipam": {
      "type": "host-local", "dataDir": "$dir/leases",
      "ranges": [[{"subnet": "198.18.86.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
EOF
cat >"$dir/runscd.toml" <<EOF
root = '$dir/root'
state = '$dir/state'
[network]
conf_dir = '$dir/net.d'
EOF

# In a session of its own, so that ^C ends the client first.
setsid bin/runscd serve --config "$dir/runscd.toml" 2>"$dir/log" &
daemon=$!
until [ -S "$dir/state/runscd.sock" ]; do
	kill -0 "$daemon"
	sleep 0.1
done

script='cat /proc/version; dmesg | head -n 1; until [ -e /dev/shm/seen ]; do sleep 1; done'
seen='echo "exec: $(id), on $(hostname)"; touch /dev/shm/seen; exit 3'
if [ -n "${CMD:-}" ]; then
	command=($CMD)
	options=()
else
	command=(sh -c "$script")
	options=(--exec "$seen")
fi
echo "-- a pod of $IMAGE"
bin/runscd run --config "$dir/runscd.toml" "${options[@]}" "$IMAGE" "${command[@]}" &
client=$!
status=0
wait "$client" || status=$?
client=''
echo "-- exit code $status"
exit "$status"
