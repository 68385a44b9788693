#!/bin/sh
# Makes pause.erofs, the root file system of every pod's root container, with
# gcc and mkfs.erofs (Debian: gcc, erofs-utils 1.5). The bytes depend on nothing
# but this directory: TestRebuild compares them with those in the tree.
set -eu
out=$(realpath "${1:?usage: build.sh OUTPUT}")
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -m 755 "$root/root" && cd "$root/root"
# The sandbox mounts these; a read-only file system cannot get them later.
mkdir -m 755 dev proc sys tmp
gcc -nostdlib -static -no-pie -s -Wl,--build-id=none -Wl,-z,noseparate-code -o pause "$here/pause.S"
objcopy --remove-section .note.gnu.property pause
chmod 755 pause .
# gVisor reads neither inline data nor extended attributes.
mkfs.erofs --quiet -x-1 -Enoinline_data -T0 -U00000000-0000-0000-0000-000000000000 --all-root "$out" . >/dev/null
