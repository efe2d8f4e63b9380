#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/storage/test_sectors.sh BUILD - suites of the storage on a disk of 4 KiB sectors, where
# O_DIRECT wants that alignment: a loop device with a file system. Skipped (77) where none can be
# made.
set -euo pipefail
build=$(realpath "${1:?the build directory}")
skip() {
    echo "skipped: $1"
    exit 77
}

[ "$(id -u)" = 0 ] || skip "only root sets up loop devices"
for program in losetup mkfs.ext4 mount; do
    command -v $program >/dev/null || skip "there is no $program"
done
scratch=$(mktemp -d)
device=
cleanup() {
    umount "$scratch/disk" 2>/dev/null || true
    [ -z "$device" ] || losetup -d "$device" || true
    rm -rf "$scratch"
}
trap cleanup EXIT
truncate -s 256M "$scratch/image"
device=$(losetup -f --show -b 4096 "$scratch/image" 2>/dev/null) || skip "no loop device"
sectors=$(blockdev --getss "$device")
[ "$sectors" = 4096 ] || skip "the loop device has sectors of $sectors bytes"
mkfs.ext4 -q "$device"
mkdir "$scratch/disk"
mount "$device" "$scratch/disk" 2>/dev/null || skip "nothing can be mounted"

# scratch.h would prefer the build directory.
unset LARDER_BUILD
export TMPDIR=$scratch/disk CK_FORK=no
for suite in io seglog store recovery golden; do
    "$build/tests/test_$suite" >"$scratch/log" 2>&1 || {
        cat "$scratch/log"
        echo "test_$suite fails on sectors of 4 KiB"
        exit 1
    }
    tail -n 1 "$scratch/log"
done
