# SPDX-License-Identifier: Apache-2.0
# Sourced by the tests of the tools: a larderd of their own in a directory that goes with them.
set -euo pipefail
work=$(mktemp -d "$LARDER_BUILD/test.XXXXXX")
daemon=
export LARDER_SOCKET=$work/run/larder.sock LARDER_CONTROL_SOCKET=$work/run/control.sock
export PATH=$LARDER_BUILD:$PATH

cleanup() {
    [ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

cat >"$work/larderd.conf" <<CONF
directory = $work/store
socket = $LARDER_SOCKET
control_socket = $LARDER_CONTROL_SOCKET
host_bytes = 256M
slab_bytes = 64M
segment_bytes = 64M
ssd_bytes = 1G
log_level = warn
CONF

start_daemon() {
    larderd --config "$work/larderd.conf" &
    daemon=$!
    for _ in $(seq 400); do
        larder status >/dev/null 2>&1 && return
        kill -0 "$daemon" || exit 1
        sleep 0.05
    done
    echo "larderd did not start" >&2
    exit 1
}

stop_daemon() { # [SIGNAL]
    kill "-${1:-TERM}" "$daemon"
    wait "$daemon" || true
    daemon=
}

expect() { # WHAT WANTED FOUND
    [ "$2" = "$3" ] && return
    echo "$1: wanted '$2', found '$3'" >&2
    exit 1
}
