#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: an operator's commands do what they say, and fail clearly. Method: the commands themselves,
# over a store with real KV in it.
. tests/tools/daemon.sh

fails_with() { # STATUS COMMAND...
    local wanted=$1 status=0
    shift
    "$@" >"$work/out" 2>"$work/err" || status=$?
    expect "status of $*" "$wanted" "$status"
    [ -s "$work/err" ] || {
        echo "no message from $*" >&2
        exit 1
    }
}

for program in larderd larder larder-run larder-bench larder-sim; do
    expect "version of $program" "$program" "$("$program" --version | cut -d' ' -f1)"
done
fails_with 2 larder status # nobody listens
fails_with 2 larder frobnicate

start_daemon
larder-run --model tests/models/tiny --prompt-file tests/models/tiny/prompt.txt --tokens 1 \
    --durable >/dev/null
count=$(larder status --json | jq .entries)
expect "entries" "$(larder ls --json | jq length)" "$count"
expect "models" tiny "$(larder models --json | jq -r '.[0].name')"
expect "tenants" "uid-$(id -u)" "$(larder tenants --json | jq -r '.[0].name')"
# Without -q: grep would leave before its writer is done, which pipefail takes for a failure.
larder ls | grep exact >/dev/null
larder tenants | grep "uid-$(id -u)" >/dev/null
larder models | grep bf16 >/dev/null
larder verify >/dev/null
larder recipe ls | grep exact >/dev/null
larder recipe ls | grep '^hadamard ' >/dev/null
larder recipe show exact | grep byte >/dev/null

key=$(larder ls --json | jq -r 'sort_by(.depth) | .[-1].key')
expect "show" "$key" "$(larder show "${key:0:12}" --json | jq -r .key)"
expect "layers of show" "6 0 6" "$(larder show "$key" --json |
    jq -r '.records[0] | [(.layers | length), ([.layers[].k.error] | add), .layers[5].layer + 1] | join(" ")')"
larder show "$key" | grep -E 'bits +[0-9.]+ an element' >/dev/null
fails_with 1 larder show 0000000000
fails_with 2 larder show not-hex
larder pin --for 1h "${key:0:12}" >/dev/null
expect "pinned" true "$(larder show "$key" --json | jq .pinned)"
larder show "$key" | grep -E 'pinned for (1h|59m)' >/dev/null
larder ls | grep ' P$' >/dev/null
fails_with 1 larder rm "$key"
larder unpin "$key" | grep 'unpinned 1 entry' >/dev/null
larder ttl 2d "$key" >/dev/null
larder priority --level=-3 --for 10m "$key" >/dev/null
expect "priority" -3 "$(larder show "$key" --json | jq .priority)"
larder ls | grep ' t-3$' >/dev/null
larder ttl never "$key" >/dev/null
expect "no time" 0 "$(larder show "$key" --json | jq .expires_s)"
fails_with 2 larder priority "$key"
fails_with 2 larder priority --level=9 "$key"
fails_with 2 larder ttl 5x "$key"
fails_with 2 larder pin --for 1y "$key"
larder pin "$key" >/dev/null
larder rm --pinned "${key:0:12}" >/dev/null
expect "entries after rm" $((count - 1)) "$(larder status --json | jq .entries)"
fails_with 1 larder show "$key"

# Why is it missing? The prompt's tokens are the start token and its bytes.
why() { # FILTER ARGUMENT...: of what is missing
    local filter=$1 status=0
    shift
    larder why "$@" --json >"$work/why" || status=$?
    expect "status of why $*" 1 "$status"
    jq -r "$filter" "$work/why"
}
expect "why a removed key" removed "$(why '.events[0].event' "$key")"
expect "why by a print" removed "$(why '.events[0].event' "${key:0:16}")"
expect "why an unknown key" 0 "$(why '.events | length' "$(printf '%064d' 7)")"
fails_with 1 larder why "${key:0:15}" # too short to be remembered by
fails_with 2 larder why
fails_with 2 larder why "$key" --tokens "$work/tokens"
{ jq .bos_token_id tests/models/tiny/config.json; od -An -v -tu1 tests/models/tiny/prompt.txt; } \
    >"$work/tokens"
expect "why tokens" "$key removed $(((count - 1) * 256)) exact" \
    "$(why '"\(.missing_key) \(.events[0].event) \(.tokens_stored) \(.quality)"' \
        --tokens "$work/tokens")"
jq -sc . "$work/tokens" >"$work/tokens.json"
expect "an array of tokens" "$key" "$(why .missing_key --tokens "$work/tokens.json" --model tiny)"
expect "another extra" 0 "$(why .tokens_stored --tokens "$work/tokens" --extra salt)"
larder why --tokens - <<<"$(jq -sc '.[:512]' "$work/tokens")" | grep '512 of 512 tokens' >/dev/null
fails_with 1 larder why --tokens "$work/tokens" --tenant nobody
fails_with 2 larder why --tokens "$work/none"
echo "12 x" >"$work/few"
fails_with 2 larder why --tokens "$work/few"
echo 16777216 >"$work/few"
fails_with 2 larder why --tokens "$work/few"

# Every command has a help of its own, and bash completes what they say.
for command in $(larder --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z]*\) .*/\1/p'); do
    larder "$command" --help | grep "^Usage: larder $command" >/dev/null
done
complete_with() { # WORD...: what bash offers for the last one
    COMP_WORDS=(larder "$@") COMP_CWORD=$#
    _larder
    echo "${COMPREPLY[*]}"
}
. tools/larder.bash-completion
expect "commands" "show" "$(complete_with sho)"
expect "options of a command" "--repair" "$(complete_with fsck --rep)"
expect "words of a command" "ls" "$(complete_with rag l)"
stored=$(larder ls --json | jq -r '.[0].key')
expect "keys" "${stored:0:12}" "$(complete_with show "${stored:0:10}")"

# A second daemon on the same directory, and a configuration that cannot be.
sed "s|^socket = .*|socket = $work/run/other.sock|; s|^control_socket = .*|control_socket = \
$work/run/other-control.sock|" "$work/larderd.conf" >"$work/second.conf"
status=0
larderd --config "$work/second.conf" 2>"$work/err" || status=$?
[ "$status" -ne 0 ] && grep -q 'in use by process' "$work/err"
echo "host_bytes = many" >"$work/bad.conf"
status=0
larderd --check-config --config "$work/bad.conf" 2>"$work/err" || status=$?
[ "$status" -ne 0 ] && grep -q 'bad.conf:1' "$work/err"
larderd --check-config --config "$work/larderd.conf"

# Scrubbing at its rate, in the background, at another rate, cancelled; then whole.
grep '^nothing' <<<"$(larder scrub --status)" >/dev/null
fails_with 2 larder scrub --rate 0
fails_with 2 larder scrub --status --cancel
larder scrub --background --rate 0.001 >/dev/null
expect "scrub runs" true "$(larder scrub --status --json | jq .running)"
expect "at its rate" 1000 "$(larder scrub --status --json | jq .rate_bytes)"
larder scrub --cancel >/dev/null
expect "scrub ended" "false true" "$(larder scrub --status --json |
    jq -r '"\(.running) \(.cancelled)"')"
larder scrub --background --rate 0.001 >/dev/null
larder scrub --rate 100 --json >"$work/scrub"
expect "a scrub that was joined" "false 0 0 1" \
    "$(jq -r '"\(.cancelled) \(.bad) \(.failed) \(.passes)"' "$work/scrub")"

# Moving: everything that is not in the newest segment may.
grep '^nothing' <<<"$(larder gc --status)" >/dev/null
fails_with 2 larder gc --live 0
fails_with 2 larder gc --live 101
fails_with 2 larder gc --status --cancel
larder gc --live 100 --rate 100 --json >"$work/gc"
expect "a gc" "false false 0 0 1" \
    "$(jq -r '"\(.running) \(.cancelled) \(.bad) \(.failed) \(.passes)"' "$work/gc")"
expect "all were looked at" "$(jq .entries_all "$work/gc")" "$(jq .entries_done "$work/gc")"
larder gc --background --rate 0.001 >/dev/null
larder gc --cancel >/dev/null
expect "gc ended" false "$(larder gc --status --json | jq .running)"

# A byte flipped while the daemon is down is found by verify, and what stood behind it goes too.
read -r segment offset < <(larder ls --json | jq -r 'sort_by(.depth) | .[1] |
    "\(.segment) \(.segment_offset + (.stored_bytes / 2 | floor))"')
stop_daemon
file=$(printf '%s/store/segments/%08u.seg' "$work" "$segment")
byte=$(od -An -tu1 -j "$offset" -N 1 "$file")
printf "$(printf '\\x%02x' $((byte ^ 1)))" |
    dd of="$file" bs=1 seek="$offset" conv=notrunc status=none
start_daemon
# A scrub finds it.
status=0
larder scrub --rate 100 --json >"$work/scrub" || status=$?
expect "status of scrub" 1 "$status"
expect "scrub" "false 1 0 1" "$(jq -r '"\(.cancelled) \(.bad) \(.failed) \(.passes)"' \
    "$work/scrub")"
[ "$(cat "$work/store/scrubbed")" -ge "$(jq .started_s "$work/scrub")" ]
expect "why a damaged block" corrupt "$(why '.events[0].event' --tokens "$work/tokens")"
larder metrics | grep '^larder_scrub_damaged_entries 1$' >/dev/null
# Hidden at once, gone when the tombstones are synced.
for _ in $(seq 100); do
    [ "$(larder status --json | jq .entries)" = 1 ] && break
    sleep 0.05
done
expect "entries left" 1 "$(larder status --json | jq .entries)"
expect "corrupt" 1 "$(larder status --json | jq .corrupt)"
larder verify >/dev/null
stop_daemon

# A week and more after the last time it begins by itself.
echo 1 >"$work/store/scrubbed"
start_daemon
for _ in $(seq 100); do
    [ "$(larder scrub --status --json | jq .passes)" = 1 ] && break
    sleep 0.05
done
expect "passes by itself" 1 "$(larder scrub --status --json | jq .passes)"
[ "$(cat "$work/store/scrubbed")" -gt 1 ]
stop_daemon
