#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: what nobody used is kept smaller as larderd.conf says, by a recipe with a profile too, and still
# serves its model; the commands, the metrics and the errors say what goes on. Method: the small model
# through larder-run, ages of seconds, a reload.
. tests/tools/daemon.sh

model=tests/models/tiny
profile=$model/profile.safetensors

fails_with() { # STATUS TEXT COMMAND...
    local wanted=$1 text=$2 status=0
    shift 2
    "$@" >"$work/out" 2>"$work/err" || status=$?
    expect "status of $*" "$wanted" "$status"
    grep -q -- "$text" "$work/err" || {
        echo "no '$text' in: $(cat "$work/err")" >&2
        exit 1
    }
}
run() { # FILTER ARGUMENT...: of a run's report
    local filter=$1
    shift
    larder-run --model $model --prompt-file "$work/prompt" --tokens 1 --durable --json "$@" \
        >"$work/report" 2>"$work/report.err"
    jq -r "$filter" "$work/report"
}
reload() { # LINE...
    local before
    before=$(grep -c "reload: done" "$work/log" || true)
    printf '%s\n' "$@" >>"$work/larderd.conf"
    kill -HUP "$daemon"
    for _ in $(seq 200); do
        [ "$(grep -c "reload: done" "$work/log")" -gt "$before" ] && return
        sleep 0.05
    done
    echo "no reload" >&2
    exit 1
}
recipes() { # of the whole blocks
    larder ls --json | jq -r '[.[] | select(.tokens == 256) | .recipe] | unique | join(" ")'
}
config_says() { # TEXT LINE: as an error
    { cat "$work/larderd.conf"; echo "$2"; } >"$work/bad.conf"
    fails_with 2 "$1" larderd --check-config --config "$work/bad.conf"
}

head -c 1000 $model/heldout.txt >"$work/prompt"
sed -i 's/^log_level.*/log_level = info/' "$work/larderd.conf"
larderd --config "$work/larderd.conf" 2>"$work/log" &
daemon=$!
for _ in $(seq 400); do
    larder status >/dev/null 2>&1 && break
    sleep 0.05
done
run .stored_tokens >/dev/null
restored=$(($(jq .prompt_tokens "$work/report") - 1))
blocks=$(larder ls --json | jq '[.[] | select(.tokens == 256)] | length')
expect "whole blocks" 3 "$blocks"

# --- errors
config_says "found 'kivi99'" "demote = 7d:kivi99"
config_says "takes 5.00 bits an element" "demote = 7d:kivi2, 9d:kivi4"
config_says "not above the one before" "demote = 7d:kivi4, 7d:kivi2"
config_says "no recipe to demote to" "demote = 7d:auto max_kl=1"
config_says "which only a PUT brings" "demote = 7d:zipcache"
config_says "is no AGE:RECIPE" "demote = kivi4"
config_says "is no time like" "demote = soon:kivi4"
config_says "AGE:RECIPE\[, AGE:RECIPE...\] or off" "demote ="
fails_with 2 "no demote line" larder demote
fails_with 2 "only one of" larder demote --status --cancel
larder demote --status | grep "nothing was demoted" >/dev/null

# --- without the profile that it reads nothing becomes of it, and that is said
reload "demote = 1s:larder"
sleep 1.2
status=0
larder demote >"$work/out" || status=$?
expect "status without a profile" 1 "$status"
grep "3 could not be demoted" "$work/out" >/dev/null
grep "demote: .*'larder': .*larder profile add --default" "$work/log" >/dev/null
expect "left alone" exact "$(recipes)"
larder profile add --default $profile >/dev/null
sleep 1.2
larder demote >"$work/out"
grep "entries are smaller now" "$work/out" >/dev/null
for _ in $(seq 100); do
    [ "$(recipes)" = larder ] && break
    sleep 0.1
done
expect "demoted" larder "$(recipes)"
expect "needs its profile" "$blocks" "$(larder profile ls --json | jq '.[0].entries')"
expect "one record each" "$blocks" "$(larder ls --json | jq '[.[] | select(.tokens == 256)] | length')"
key=$(larder ls --json | jq -r '.[] | select(.depth == 0) | .key')
larder show "$key" | grep "unused for" >/dev/null
larder why "$key" | grep "smaller record" >/dev/null
saved=$(larder demote --status --json | jq .saved_bytes_all)
[ "$saved" -gt 0 ]
expect "since the start" "$blocks 1" \
    "$(larder demote --status --json | jq -r '"\(.demoted_all) \(.lines)"')"
larder status --json >"$work/status"
larder metrics >"$work/metrics"
larder tenants --json >"$work/tenants"
python3 tests/tools/check_metrics.py "$work/metrics" "$work/status" "$work/tenants"
grep "^larder_demote_entries_total $blocks$" "$work/metrics" >/dev/null
grep "^larder_demote_saved_bytes_total $saved$" "$work/metrics" >/dev/null
grep "^larder_events_total{event=\"demoted\"} $blocks$" "$work/metrics" >/dev/null
larder status | grep "demoted  *$blocks entries" >/dev/null
larder top -n 1 | grep "demoted" >/dev/null

# --- who wants it exact has a miss, and puts it again; who does not is served
sed -i '/^demote/d' "$work/larderd.conf"
reload "demote = off"
larder quality load - <<JSON
{"fingerprint": "$(larder models --json | jq -r '.[0].fingerprint')", "recipes": [{"recipe": "larder",
  "profile": "$(sha256sum $profile | cut -d' ' -f1)", "kl": 0.01, "kl_p99": 0.1, "top1": 0.99,
  "bits_per_element": 0.8}]}
JSON
expect "served" "$restored" "$(run .restored_tokens --max-kl 0.02)"
expect "not exact" 0 "$(run .restored_tokens)"
expect "exact again" "$restored" "$(run .restored_tokens)"
expect "in its place" exact "$(recipes)"
fails_with 2 "no demote line" larder demote
stop_daemon
