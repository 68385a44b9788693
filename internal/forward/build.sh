#!/bin/sh
# Makes forward.elf of forward.c with gcc 12 (Debian 12: gcc, binutils,
# linux-libc-dev). The bytes depend on nothing but the compiler and this
# directory: TestRebuild compares them with those in the tree.
set -eu
out=$(realpath "${1:?usage: build.sh OUTPUT}")
cd "$(dirname "$0")"
gcc -std=c11 -O2 -Wall -Wextra -ffreestanding -nostdlib -static -no-pie -s \
	-march=x86-64 -mno-sse -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none \
	-Wl,--build-id=none -Wl,-z,noseparate-code -o "$out" forward.c
objcopy --remove-section .note.gnu.property --remove-section .comment "$out"
