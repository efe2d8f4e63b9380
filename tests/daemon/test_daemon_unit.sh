#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal:   what is installed for systemd is right: the unit names larderd where it is, systemd has
#         nothing against it, it stays as closed as it is, and forbids no system call that larderd
#         makes.
# Method: installs the daemon into a folder of its own, and asks systemd-analyze; compares the calls
#         of a larderd under strace with the unit's list.
set -euo pipefail
work=$(mktemp -d /tmp/larder-unit-XXXXXX)
daemon=
cleanup() {
    [ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() {
    echo "test_daemon_unit: $*" >&2
    exit 1
}

cmake --install "$LARDER_BUILD" --prefix "$work/usr" --component daemon >"$work/install.log"
unit=$(find "$work/usr" -name larderd.service)
[ -n "$unit" ] || fail "no larderd.service was installed"
program=$(sed -n 's/^ExecStart=//p' "$unit")
[ "${program#"$work"}" != "$program" ] && [ -x "$program" ] ||
    fail "ExecStart=$program is no program below the prefix"
[ -n "$(find "$work/usr" -path '*/sysusers.d/larder.conf')" ] || fail "no sysusers file"
[ -n "$(find "$work/usr" -path '*/tmpfiles.d/larder.conf')" ] || fail "no tmpfiles file"

command -v systemd-analyze >/dev/null || exit 77
systemd-analyze --man=no verify "$unit" || fail "systemd-analyze verify finds fault with the unit"
systemd-analyze security --offline=true --no-pager --threshold=5 "$unit" >"$work/security" || {
    cat "$work/security" >&2
    fail "the unit is more exposed than 0.5"
}
systemd-sysusers --dry-run --root="$work" "$(find "$work/usr" -path '*/sysusers.d/larder.conf')" \
    >"$work/sysusers" 2>&1 || fail "systemd-sysusers: $(cat "$work/sysusers")"

# A sanitizer's runtime makes calls of its own, and does not live beside ptrace.
command -v strace >/dev/null && [ -z "${1:-}" ] || exit 0
cat >"$work/larderd.conf" <<CONF
directory = $work/store
socket = $work/larder.sock
host_bytes = 64M
slab_bytes = 8M
ssd_bytes = 64M
segment_bytes = 16M
CONF
# The groups of a list, unfolded; "~" takes away.
calls_of() {
    local name
    for name in "$@"; do
        case $name in
            @*)
                # shellcheck disable=SC2046
                calls_of $(systemd-analyze syscall-filter "$name" 2>/dev/null |
                    sed 's/#.*//; 1d')
                ;;
            *) echo "$name" ;;
        esac
    done
}
# shellcheck disable=SC2046
calls_of @default $(sed -n 's/^SystemCallFilter=\([^~].*\)/\1/p' "$unit") | sort -u >"$work/with"
# shellcheck disable=SC2046
calls_of $(sed -n 's/^SystemCallFilter=~//p' "$unit") | sort -u >"$work/without"
comm -23 "$work/with" "$work/without" >"$work/allowed"
grep -qx memfd_create "$work/allowed" && grep -qx io_uring_setup "$work/allowed" ||
    fail "the list of calls is not read right"

strace -f -qq -o "$work/trace" "$program" --config "$work/larderd.conf" 2>"$work/log" &
tracer=$!
for _ in $(seq 300); do
    [ -S "$work/control.sock" ] && break
    kill -0 "$tracer" 2>/dev/null || exit 77 # ptrace may be forbidden
    sleep 0.05
done
daemon=$(cut -d ' ' -f 1 "$work/trace" | head -n 1)
LARDER_SOCKET=$work/larder.sock "$LARDER_BUILD/larder-run" --model tests/models/tiny \
    --prompt-file tests/models/tiny/prompt.txt --tokens 1 --durable >/dev/null
LARDER_CONTROL_SOCKET=$work/control.sock "$LARDER_BUILD/larder" verify >/dev/null
kill -HUP "$daemon"
kill -TERM "$daemon"
wait "$tracer" || fail "larderd failed: $(cat "$work/log")"
daemon=
# The first call is strace's own start of the program.
sed -nE '2,$s/^[0-9]+ +(<\.\.\. )?([a-z0-9_]+).*/\2/p' "$work/trace" | sort -u >"$work/made"
comm -23 "$work/made" "$work/allowed" | tee "$work/forbidden" >&2
[ ! -s "$work/forbidden" ] || fail "these calls of larderd are not in the unit's list"
[ "$(wc -l <"$work/made")" -gt 30 ] || fail "too few calls were traced"
