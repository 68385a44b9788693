#!/bin/sh
# Makes the Debian package OUT of the programs in the directory BIN.
#
#	build.sh BIN VERSION OUT
set -eu

bin=$1 version=$(echo "$2" | sed 's/-/~/') out=$3
here=$(cd "$(dirname "$0")" && pwd)
deploy=$here/..
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

# Beside each other, and not in /usr/bin: there may be another runsc.
install -D -m 755 -t "$root/usr/lib/runscd" "$bin/runscd" "$bin/runsc"
mkdir -p "$root/usr/bin"
ln -s ../lib/runscd/runscd "$root/usr/bin/runscd"
install -D -m 644 -t "$root/etc/runscd" "$deploy/runscd.toml"
for unit in "$deploy"/runscd.service "$deploy"/runscd.socket; do
	[ -e "$unit" ] || continue
	mkdir -p "$root/usr/lib/systemd/system"
	sed 's|^\(Exec[A-Za-z]*=\)[^ ]*/runscd|\1/usr/bin/runscd|' "$unit" >"$root/usr/lib/systemd/system/$(basename "$unit")"
done
doc=$root/usr/share/doc/runscd
install -D -m 644 -t "$doc/examples" "$deploy"/10-runscd.conflist "$deploy"/crictl.yaml "$deploy"/kubelet.conf "$deploy"/runtimeclass.yaml
install -m 644 "$deploy/../LICENSE" "$doc/copyright"
install -D -m 644 -t "$root/usr/share/man/man8" "$deploy"/../docs/man/*.8
gzip -9n "$root"/usr/share/man/man8/*.8
for shell in bash:bash-completion/completions/runscd zsh:zsh/vendor-completions/_runscd fish:fish/vendor_completions.d/runscd.fish; do
	to=$root/usr/share/${shell#*:}
	mkdir -p "$(dirname "$to")"
	"$bin/runscd" completion "${shell%%:*}" >"$to"
done

mkdir "$root/DEBIAN"
install -m 755 -t "$root/DEBIAN" "$here/postinst" "$here/prerm" "$here/postrm"
echo /etc/runscd/runscd.toml >"$root/DEBIAN/conffiles"
sed "s/@VERSION@/$version/; s/@ARCH@/$(dpkg --print-architecture)/" "$here/control" >"$root/DEBIAN/control"
mkdir -p "$(dirname "$out")"
dpkg-deb --root-owner-group -Zgzip --build "$root" "$out"
