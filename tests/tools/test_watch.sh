#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: larder metrics and larder top say what larder status says, in their form. Method: the
# commands over a store with real KV in it; an own reader of the metrics' format; a terminal of tmux.
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
holds() { # FILE PATTERN
    grep -E -- "$2" "$1" >/dev/null && return
    echo "nothing in $1 is like '$2':" >&2
    cat "$1" >&2
    exit 1
}

# Nobody listens: the collector learns it, too.
prom=$work/larder.prom
fails_with 2 larder metrics --output "$prom"
expect "what the collector sees" "larder_up 0" "$(grep -v '^#' "$prom")"
fails_with 2 larder top --count 1
fails_with 2 larder top --interval 0
fails_with 2 larder top --count none
fails_with 2 larder metrics --json
fails_with 2 larder metrics --output "$work/none/larder.prom"

# A directory whose name has to be escaped.
mkdir "$work/a\"b\\c"
sed -i "s|^directory = .*|directory = $work/a\"b\\\\c/store|" "$work/larderd.conf"
start_daemon
for _ in 1 2; do
    larder-run --model tests/models/tiny --prompt-file tests/models/tiny/prompt.txt --tokens 1 \
        --durable >/dev/null
done
larder status --json >"$work/status"
larder tenants --json >"$work/tenants"
larder metrics >"$work/metrics"
python3 tests/tools/check_metrics.py "$work/metrics" "$work/status" "$work/tenants"
larder metrics --output "$prom"
python3 tests/tools/check_metrics.py "$prom" "$work/status" "$work/tenants"
# The same by the name that node_exporter's collector gives such a file; latencies of what ran.
larder metrics --textfile "$prom"
python3 tests/tools/check_metrics.py "$prom" "$work/status" "$work/tenants"
holds "$prom" '^larder_request_seconds_count\{request="get"\} [1-9]'
holds "$prom" '^larder_request_seconds_count\{request="put"\} [1-9]'
holds "$prom" '^larder_events_total\{event="evicted_ssd"\} 0$'
expect "mode" 644 "$(stat -c %a "$prom")"
expect "files beside it" 1 "$(find "$work" -name 'larder.prom*' | wc -l)"

# A file that cannot be replaced stays as it is, and nothing is left beside it.
mkdir -p "$work/taken/larder.prom/in"
fails_with 2 larder metrics --output "$work/taken/larder.prom"
expect "files left" 1 "$(find "$work/taken" -mindepth 1 -maxdepth 1 | wc -l)"
status=0
larder metrics >/dev/full 2>"$work/err" || status=$?
expect "status when the disk is full" 2 "$status"

# Views as plain lines: the first since the start, the next ones since the one before.
larder top --count 3 --interval 0.2 >"$work/top"
expect "views" 3 "$(grep -c '^larderd ' "$work/top")"
expect "control characters" 0 "$(LC_ALL=C grep -c '[[:cntrl:]]' "$work/top" || true)"
expect "wide lines" 0 "$(grep -cE '^.{81,}' "$work/top" || true)"
holds "$work/top" "^hit ratio  [0-9.]+ %: "
holds "$work/top" "^uid-$(id -u) +0 +[1-9]"
awk 'BEGIN { RS = "" } NR == 1' "$work/top" >"$work/first"
holds "$work/first" '^hit ratio  50.0 %: 50.0 % from host, 0.0 % from SSD'
expect "calm views" 2 "$(grep -c '^requests   0 gets/s, 0 puts/s' "$work/top")"
holds "$work/first" "^latency    lookup [0-9a-z-]+, get [0-9]+[mu]s, put [0-9]+[mu]s; of 99 %"
holds "$work/top" "^decisions  0 evicted, 0 by quota"
expect "no hits in them" 2 "$(grep -c '^hit ratio  -: ' "$work/top")"

# A signal ends it cleanly, between views.
rm "$work/top" # or the wait below may look at the old one
larder top --interval 60 >"$work/top" &
top=$!
for _ in $(seq 100); do
    [ -s "$work/top" ] && break
    sleep 0.05
done
kill -TERM "$top"
status=0
wait "$top" || status=$?
expect "status of top after SIGTERM" 0 "$status"

# On a terminal.
if command -v tmux >/dev/null; then
    mux() {
        tmux -f /dev/null -S "$work/tmux" "$@"
    }
    in_terminal() { # KEY: what ends it
        rm -f "$work/code"
        mux new-session -d -s "$1" -x 80 -y 24 \
            "stty -a >'$work/stty'; larder top; echo \$? >'$work/code'; stty -a >'$work/stty2'; \
            tput cnorm; sleep 20"
        for _ in $(seq 100); do
            mux capture-pane -p -t "$1" >"$work/screen" 2>/dev/null || true
            grep '^TENANT' "$work/screen" >/dev/null && break
            sleep 0.05
        done
        holds "$work/screen" '^larderd .*healthy'
        expect "the first line" 1 "$(grep -n '^larderd ' "$work/screen" | cut -d: -f1)"
        # A smaller window is drawn anew, and fits.
        mux resize-window -t "$1" -x 40 -y 14
        sleep 0.5
        mux capture-pane -p -t "$1" >"$work/screen"
        holds "$work/screen" '^larderd '
        holds "$work/screen" '^TENANT'
        mux send-keys -t "$1" "$1"
        for _ in $(seq 100); do
            [ -s "$work/stty2" ] && [ -s "$work/code" ] && break
            sleep 0.05
        done
        expect "status of top after $1" 0 "$(cat "$work/code")"
        diff <(sed 's/rows [0-9]*; columns [0-9]*;//' "$work/stty") \
            <(sed 's/rows [0-9]*; columns [0-9]*;//' "$work/stty2")
        rm -f "$work/stty2"
        mux kill-session -t "$1"
    }
    in_terminal q
    in_terminal C-c
fi

# The daemon goes: top says so.
larder top --interval 0.2 >"$work/top" 2>"$work/err" &
top=$!
sleep 0.5
stop_daemon
status=0
wait "$top" || status=$?
expect "status of top without larderd" 2 "$status"
holds "$work/err" 'larderd has closed the connection'
