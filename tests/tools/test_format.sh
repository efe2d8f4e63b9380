#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: docs/FORMAT.md says what is on disk. Method: larderd stores real KV by both recipes, removes
# some of it and is killed; a reader that shares no code with larder must find the same entries.
# Debian's Python, which has Debian's xxhash.
python=/usr/bin/python3
"$python" -c 'import xxhash' || exit 77
. tests/tools/daemon.sh

head -c 900 tests/models/tiny/prompt.txt >"$work/one"
head -c 700 tests/models/tiny/heldout.txt >"$work/two"
run() { larder-run --model tests/models/tiny --tokens 1 --durable "$@" >/dev/null; }

# LARDER_TEST_ENCRYPTED: the same of an encrypted store.
key=()
if [ -n "${LARDER_TEST_ENCRYPTED:-}" ]; then
    (umask 077 && head -c 32 /dev/urandom >"$work/key")
    echo "key_file = $work/key" >>"$work/larderd.conf"
    key=(--key-file "$work/key")
fi

start_daemon
run --prompt-file "$work/one"
run --prompt-file "$work/two" --recipe raw
doomed=$(larder ls --json | jq -r 'map(select(.recipe == "raw" and .depth == 1)) | .[0].key')
larder rm "$doomed" >/dev/null
marked=$(larder ls --json | jq -r 'map(select(.recipe == "exact")) | sort_by(.depth) | .[1].key')
larder pin --for 1h "$marked" >/dev/null
larder ttl 2d "$marked" >/dev/null
larder priority --level=-2 "$marked" >/dev/null
unmarked=$(larder ls --json | jq -r 'map(select(.recipe == "exact")) | sort_by(.depth) | .[0].key')
larder pin "$unmarked" >/dev/null
larder unpin "$unmarked" >/dev/null
larder pin "$doomed" >/dev/null 2>&1 && exit 1
wanted='[.pinned, .priority, .expires_s, .pin_expires_s]'
larder ls --json | jq -c --arg key "$marked" "map(select(.key == \$key))[0] | $wanted" >"$work/mark"
larder ls --json | jq -c 'map(.key) | sort' >"$work/listed"
raw_bytes=$(larder status --json | jq .raw_bytes)
stop_daemon KILL

"$python" tests/tools/read_store.py "$work/store" "${key[@]}" >"$work/read.json" || {
    cat "$work/read.json" >&2
    exit 1
}
expect "keys" "$(cat "$work/listed")" "$(jq -c .keys "$work/read.json")"
expect "raw bytes" "$raw_bytes" "$(jq .raw_bytes "$work/read.json")"
expect "the removed one" false \
    "$(jq --arg key "$doomed" '.keys | index($key) != null' "$work/read.json")"
expect "marks" "[\"$marked\"]" "$(jq -c '.marks | keys' "$work/read.json")"
expect "the mark" "$(cat "$work/mark")" "$(jq -c ".marks[] | $wanted" "$work/read.json")"
