#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: what the simulator promises of a policy, the store does.
# Method: short traces of three shapes through a real store with small records; its hit ratio must
# be within .01 of the simulator's at as many blocks. Another trace: larder-replay TRACE BLOCKS
# POLICY..., which takes a minute for each 150,000 blocks stored.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

replay() {
    python3 tests/tools/make_trace.py "$1" "$2" >"$scratch/trace"
    echo "$1:"
    "$LARDER_BUILD/tests/larder-replay" "$scratch/trace" 1500 lru value
}

replay rag 700
replay scans 500
replay shift 1000
