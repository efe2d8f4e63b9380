#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: a chain goes to a file and into another tenant or store, bit for bit; a file that was damaged,
# or made by somebody hostile, stores nothing. Method: KV of the small model, restored by larder-run
# after the way through a file; each part of a file damaged.
. tests/tools/daemon.sh

fails_with() { # STATUS COMMAND...
    local wanted=$1 status=0
    shift
    "$@" >"$work/out" 2>"$work/err" || status=$?
    expect "status of $*: $(cat "$work/out" "$work/err")" "$wanted" "$status"
    [ -s "$work/err" ]
}
run() { # SOCKET: tokens restored, and what the model says then
    LARDER_SOCKET=$1 larder-run --model tests/models/tiny \
        --prompt-file tests/models/tiny/prompt.txt --tokens 24 --json "${@:2}"
}

echo "tenant b = socket $work/run/b.sock" >>"$work/larderd.conf"
start_daemon
{ jq .bos_token_id tests/models/tiny/config.json; od -An -v -tu1 tests/models/tiny/prompt.txt; } \
    >"$work/tokens"
fails_with 2 larder export --tokens "$work/tokens" -o "$work/chain" # no tenant yet
run "$LARDER_SOCKET" --durable >"$work/first"
own=$(larder tenants --json | jq -r '.[0].name')
fails_with 1 larder export --tokens "$work/tokens" --extra salt -o "$work/chain"
[ ! -e "$work/chain" ]
fails_with 2 larder export --tokens "$work/tokens"
fails_with 2 larder export -o "$work/chain"
fails_with 2 larder export --tokens "$work/tokens" -o "$work/none/chain"
larder export --tokens "$work/tokens" -o "$work/chain" --json >"$work/report"
stored=$(jq .tokens "$work/report")
[ "$stored" -ge 1947 ]
expect "mode" 600 "$(stat -c %a "$work/chain")"
expect "files beside it" 1 "$(find "$work" -maxdepth 1 -name 'chain*' | wc -l)"

# The same chain by its last key, and a part of it.
last=$(larder ls --json | jq -r 'sort_by(.depth) | .[-1].key')
larder export "$last" -o "$work/by-key" >/dev/null
cmp <(tail -c +273 "$work/chain") <(tail -c +273 "$work/by-key")
second=$(larder ls --json | jq -r 'sort_by(.depth) | .[1].key')
larder export "${second:0:12}" -o "$work/part" | grep "512 of 512 tokens of tenant $own" >/dev/null

# Into another tenant of the same store, which has to exist.
fails_with 1 larder import --tenant b "$work/chain"
run "$work/run/b.sock" --no-store >/dev/null
LARDER_SOCKET=$work/run/b.sock larder-run --model tests/models/tiny \
    --prompt-file tests/models/tiny/prompt.txt --tokens 1 >/dev/null # b appears, and stores
for key in $(larder ls --tenant b --json | jq -r 'sort_by(.depth) | .[0].key'); do
    larder rm "$key" >/dev/null
done
expect "why b misses" "0 removed $own" "$(larder why --tokens "$work/tokens" --tenant b --json |
    jq -r '"\(.tokens_stored) \(.events[0].event) \(.others[0].tenant)"')"
fails_with 2 larder import "$work/chain" # two tenants: which?
larder import --tenant b "$work/part" --json >"$work/report"
expect "a part" "512 512" "$(jq -r '"\(.tokens) \(.tokens_new)"' "$work/report")"
larder import --tenant b "$work/chain" --json >"$work/report"
expect "the rest" "$stored $((stored - 512))" "$(jq -r '"\(.tokens) \(.tokens_new)"' "$work/report")"
larder import --tenant b "$work/chain" | grep ' 0 new' >/dev/null
run "$work/run/b.sock" >"$work/again"
expect "what the model says" "$(jq -c .text "$work/first")" "$(jq -c .text "$work/again")"
expect "restored" 1947 "$(jq .restored_tokens "$work/again")"

# A lossless way: what is exported again is the same, byte for byte, but for when.
larder export --tokens "$work/tokens" --tenant b -o "$work/back" >/dev/null
cmp <(tail -c +273 "$work/chain") <(tail -c +273 "$work/back")

# Into a store of its own, with blocks of another size.
stop_daemon
rm -r "$work/store"
echo "block_tokens = 100" >>"$work/larderd.conf"
start_daemon
run "$work/run/b.sock" --no-store >/dev/null
larder-run --model tests/models/tiny --prompt-file /dev/null --tokens 1 >/dev/null
larder import --tenant "$own" "$work/chain" >/dev/null
run "$LARDER_SOCKET" >"$work/again"
expect "what the model says there" "$(jq -c .text "$work/first")" "$(jq -c .text "$work/again")"
expect "restored there" 1947 "$(jq .restored_tokens "$work/again")"

# Damage: one byte anywhere, a file that is too short or too long, none at all.
entries=$(larder status --json | jq .entries)
bytes=$(stat -c %s "$work/chain")
for at in 0 8 12 16 20 24 28 32 40 48 56 130 160 200 250 260 272 300 5000 9000 $((bytes / 2)) \
    $((bytes - 1)); do
    cp "$work/chain" "$work/bad"
    byte=$(od -An -tu1 -j "$at" -N 1 "$work/bad")
    printf "$(printf '\\x%02x' $((byte ^ 1)))" |
        dd of="$work/bad" bs=1 seek="$at" conv=notrunc status=none
    status=0
    larder import --tenant "$own" "$work/bad" >"$work/out" 2>"$work/err" || status=$?
    [ "$status" -ne 0 ] || {
        echo "a file damaged at $at was taken" >&2
        exit 1
    }
done
truncate -s $((bytes - 1)) "$work/bad"
fails_with 2 larder import --tenant "$own" "$work/bad"
cp "$work/chain" "$work/bad"
echo >>"$work/bad"
fails_with 2 larder import --tenant "$own" "$work/bad"
: >"$work/bad"
fails_with 2 larder import --tenant "$own" "$work/bad"
fails_with 2 larder import --tenant "$own" "$work"
expect "entries after all that" "$entries" "$(larder status --json | jq .entries)"
stop_daemon
