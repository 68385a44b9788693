#!/bin/sh
# Installs runscd on a node, or removes it. It may be repeated: a second run brings
# programs and units up to date and leaves settings alone.
#
#	node-setup.sh [install]   from the directory that has runscd and runsc
#	node-setup.sh uninstall   all but changed settings, images and records
#
# FROM: directory of the two programs (default: bin/ beside deploy/).
# DESTDIR: root of the node's files (default: this machine); with it nothing is
# started or stopped.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
from=${FROM:-$here/../bin}
dest=${DESTDIR:-}
programs=/usr/local/lib/runscd
link=/usr/local/bin/runscd
units=/etc/systemd/system

# Settings: what is here, and where it goes.
settings="
runscd.toml        /etc/runscd/runscd.toml
10-runscd.conflist /etc/cni/net.d/10-runscd.conflist
crictl.yaml        /etc/crictl.yaml
kubelet.conf       /etc/kubernetes/kubelet.conf.d/50-runscd.conf
"

main() {
	[ -n "$dest" ] || [ "$(id -u)" = 0 ] || fail "root is needed"
	case ${1:-install} in
	install) install_node ;;
	uninstall) uninstall_node ;;
	*) fail "unknown command $1; install or uninstall" ;;
	esac
}

fail() {
	echo "node-setup: $1" >&2
	exit 1
}

systemd() { [ -z "$dest" ] && [ -d /run/systemd/system ]; }

install_node() {
	for p in runscd runsc; do
		[ -x "$from/$p" ] || fail "$from/$p is not there; make build makes it"
	done
	for p in runscd runsc; do # replaced at once: the old one may be running
		install -D -m 755 "$from/$p" "$dest$programs/.$p.new"
		mv "$dest$programs/.$p.new" "$dest$programs/$p"
	done
	mkdir -p "$dest$(dirname $link)"
	ln -sfn $programs/runscd "$dest$link"
	for unit in "$here"/runscd.service "$here"/runscd.socket; do
		[ -e "$unit" ] || continue
		mkdir -p "$dest$units"
		sed "s|^\(Exec[A-Za-z]*=\)[^ ]*/runscd|\1$link|" "$unit" >"$dest$units/$(basename "$unit")"
	done
	echo "$settings" | while read -r name to; do
		[ -n "$name" ] || continue
		if [ -e "$dest$to" ]; then
			cmp -s "$here/$name" "$dest$to" || echo "kept: $to"
		elif [ "$name" = 10-runscd.conflist ] && ls "$dest$(dirname "$to")"/*.conf* >/dev/null 2>&1; then
			echo "not installed: $to; there is a network already"
		else
			install -D -m 644 "$here/$name" "$dest$to"
		fi
	done
	if systemd; then
		systemctl daemon-reload
		for unit in runscd.socket runscd.service; do
			[ ! -e $units/$unit ] || systemctl enable $unit
		done
		systemctl restart runscd.service # pods run on
	fi
	cat <<EOF
runscd is installed. The kubelet uses it with --config-dir=/etc/kubernetes/kubelet.conf.d,
or with --container-runtime-endpoint=unix:///run/runscd/runscd.sock, which a node of
kubeadm has in /var/lib/kubelet/kubeadm-flags.env. Drain a node before it changes over.
EOF
}

uninstall_node() {
	if [ -z "$dest" ] && [ -n "$(ls /run/runscd/pods 2>/dev/null)" ]; then
		fail "there are pods: drain the node, stop the kubelet, and remove them (crictl rmp -fa)"
	fi
	if systemd; then
		systemctl disable --now runscd.socket runscd.service 2>/dev/null || :
	fi
	rm -f "$dest$units/runscd.service" "$dest$units/runscd.socket" "$dest$link"
	rm -f "$dest$programs/runscd" "$dest$programs/runsc"
	rmdir "$dest$programs" 2>/dev/null || :
	echo "$settings" | while read -r name to; do
		[ -n "$name" ] || continue
		if cmp -s "$here/$name" "$dest$to"; then
			rm "$dest$to"
		elif [ -e "$dest$to" ]; then
			echo "kept, for it was changed: $to"
		fi
	done
	rmdir "$dest/etc/runscd" "$dest/etc/kubernetes/kubelet.conf.d" 2>/dev/null || :
	if systemd; then
		systemctl daemon-reload
	fi
	echo "runscd is removed. Images and records are left: /var/lib/runscd"
}

main "$@"
