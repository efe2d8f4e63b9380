#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Goal:   larder-run gives the same text whether its prompt's KV was computed or restored, forwards
#         only what was not restored, and works without a daemon.
# Method: the small model; cold, warm, a longer prompt, after SIGKILL, and without a daemon.
# Usage:  test_larder_run.sh SOURCE BUILD
set -euo pipefail
source=$1 build=$2
work=$(mktemp -d /tmp/larder-run-XXXXXX)
daemon=
cleanup() {
    [ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap cleanup EXIT
fail() {
    echo "test_larder_run: $*" >&2
    exit 1
}

export LARDER_SOCKET=$work/larder.sock
cat >"$work/larderd.conf" <<CONF
directory = $work/store
socket = $LARDER_SOCKET
control_socket = $work/control.sock
host_bytes = 64M
slab_bytes = 16M
ssd_bytes = 256M
segment_bytes = 16M
log_level = warn
worker_threads = 1
model tiny = $(realpath "$source/tests/models/tiny")
CONF
start() {
    rm -f "$LARDER_SOCKET"
    "$build/larderd" --config "$work/larderd.conf" &
    daemon=$!
    for _ in $(seq 300); do
        [ -S "$LARDER_SOCKET" ] && return
        sleep 0.05
    done
    fail "larderd did not start"
}
answer() { # NAME BYTES ARGUMENTS...
    head -c "$2" "$source/tests/models/tiny/heldout.txt" >"$work/prompt"
    "$build/larder-run" --model "$source/tests/models/tiny" --prompt-file "$work/prompt" \
        --tokens 8 --json "${@:3}" >"$work/$1.json" 2>"$work/$1.log" || fail "$(cat "$work/$1.log")"
}
expect() { # NAME FIELD VALUE
    got=$(jq -r ".$2" "$work/$1.json")
    [ "$got" = "$3" ] || fail "$1: $2 is $got, not $3: $(cat "$work/$1.log")"
}
same_text() { # NAME NAME
    [ "$(jq .text "$work/$1.json")" = "$(jq .text "$work/$2.json")" ] || fail "$1 and $2 differ"
}

answer alone 600
expect alone daemon false
expect alone forwarded_tokens 601
grep -q 'going on without' "$work/alone.log" || fail "it did not say that there is no daemon"

start
answer cold 600 --durable
expect cold restored_tokens 0
expect cold forwarded_tokens 601
expect cold stored_tokens_new 601
same_text alone cold
answer warm 600
expect warm restored_tokens 600
expect warm forwarded_tokens 1
expect warm stored_tokens_new 0
same_text cold warm
answer skipped 600 --no-store
expect skipped restored_tokens 0
same_text cold skipped

# Longer: everything that was stored is used, the short last block included.
answer longer 700 --durable
expect longer restored_tokens 601
expect longer forwarded_tokens 100

# Pieces in an order of their own: stored once, blended from then on. Computed in full it is the very
# text of the whole prompt.
head -c 3400 "$source/tests/models/tiny/heldout.txt" | tail -c 400 >"$work/piece1"
head -c 1300 "$source/tests/models/tiny/heldout.txt" | tail -c 300 >"$work/piece2"
head -c 50 "$source/tests/models/tiny/heldout.txt" >"$work/question"
cat "$work/piece1" "$work/piece2" "$work/question" >"$work/whole"
ask() { # NAME ARGUMENTS...
    "$build/larder-run" --model "$source/tests/models/tiny" --tokens 8 --json "${@:2}" \
        >"$work/$1.json" 2>"$work/$1.log" || fail "$(cat "$work/$1.log")"
}
ask whole --prompt-file "$work/whole" --no-store
pieces=(--piece "$work/piece1" --piece "$work/piece2" --prompt-file "$work/question")
for _ in $(seq 100); do # until the worker has its weights
    ask full "${pieces[@]}" --method full
    [ "$(jq .blend.done "$work/full.json")" = true ] && break
    sleep 0.1
done
same_text whole full
expect full blend.quality 0
ask moved "${pieces[@]}" --method "link k=8"
expect moved blend.pieces_stored 0
expect moved blend.prefix_tokens 401
expect moved blend.moved_tokens 300
expect moved blend.suffix_tokens 50
expect moved blend.quality 2
expect moved forwarded_tokens 0
ask refused "${pieces[@]}" --method "guess"
expect refused blend.done false
same_text whole refused
grep -q 'prefilling all' "$work/refused.log" || fail "it did not say that it could not blend"

kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
start
answer again 700
expect again restored_tokens 700
same_text longer again
[ "$(jq .loaded_bytes_ssd "$work/again.json")" -gt 0 ] || fail "nothing came from SSD"
echo "test_larder_run: ok"
