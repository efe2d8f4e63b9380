#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Goal:   what is installed is what a program needs: headers, library, larder.pc; the README's
#         program builds with them and runs; nothing but the API is exported.
# Method: installs the client into a folder of its own, builds the program taken from README.md
#         between its fences, and runs it twice against a daemon.
# Usage:  test_install.sh SOURCE BUILD SANITIZE
set -euo pipefail
source=$1 build=$2 sanitize=${3:-}
flags=()
[ -z "$sanitize" ] || flags=("-fsanitize=$sanitize")

work=$(mktemp -d /tmp/larder-install-XXXXXX)
daemon=
cleanup() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap cleanup EXIT
fail() {
    echo "test_install: $*" >&2
    exit 1
}

cmake --install "$build" --prefix "$work/prefix" --component client >"$work/install.log"
pc=$(find "$work/prefix" -name larder.pc)
[ -n "$pc" ] || fail "no larder.pc was installed"
# The tree must work wherever it stands.
mv "$work/prefix" "$work/moved"
export PKG_CONFIG_PATH=${pc%/*}
PKG_CONFIG_PATH=${PKG_CONFIG_PATH/prefix/moved}
library=$(find "$work/moved" -name 'liblarder.so.0')
[ -n "$library" ] || fail "no liblarder.so.0 was installed"
export LD_LIBRARY_PATH=${library%/*}
readelf -d "$library" | grep 'SONAME.*\[liblarder.so.0\]' >/dev/null ||
    fail "the soname is not liblarder.so.0"

# Exported: the functions of larder.h, all of them.
grep -A1 '^LARDER_API' "$source/client/larder.h" | grep -oE 'larder_[a-z_]+\(' | tr -d '(' |
    sort -u >"$work/declared"
nm -D --defined-only "$library" | grep -v ' A ' | sed 's/.* //; s/@@.*//' | sort >"$work/exported"
diff "$work/declared" "$work/exported" >&2 || fail "exported and declared functions differ"

# Every function has its page.
while read -r function; do
    [ -n "$(find "$work/moved" -name "$function.3")" ] || fail "no manual page of $function"
done <"$work/declared"

# The headers need nothing else, in C and in C++.
read -ra pc_flags < <(pkg-config --cflags --libs larder)
echo '#include <larder.h>' >"$work/alone.c"
cc -std=c99 -pedantic -Wall -Wextra -Werror -c "$work/alone.c" -o "$work/alone.o" "${pc_flags[@]}"
if command -v c++ >/dev/null; then
    c++ -x c++ -Wall -Wextra -Werror -c "$work/alone.c" -o "$work/alone.o" "${pc_flags[@]}"
fi

# The first C program of the README.
awk '/^```c$/ { on = 1; next } /^```$/ { if (on) exit } on' "$source/README.md" >"$work/put_get.c"
grep -q 'larder_connect' "$work/put_get.c" || fail "README.md has no program"
[ "$(wc -l <"$work/put_get.c")" -le 40 ] || fail "the program of README.md is longer than 40 lines"
cc -std=c17 -Wall -Wextra -Werror ${flags[@]+"${flags[@]}"} "$work/put_get.c" -o "$work/put_get" \
    "${pc_flags[@]}"

export LARDER_SOCKET=$work/larder.sock
cat >"$work/larderd.conf" <<CONF
directory = $work/store
socket = $LARDER_SOCKET
control_socket = $work/control.sock
host_bytes = 64M
slab_bytes = 8M
ssd_bytes = 64M
segment_bytes = 16M
log_level = warn
CONF
"$build/larderd" --config "$work/larderd.conf" &
daemon=$!
for _ in $(seq 300); do
    [ -S "$LARDER_SOCKET" ] && break
    sleep 0.05
done
expect() { # LINE
    got=$("$work/put_get") || fail "the program of README.md failed"
    [ "$got" = "$1" ] || fail "the program said \"$got\", not \"$1\""
}
expect "0 tokens were stored, 1000 were not"
expect "1000 tokens were stored, 0 were not"
echo "test_install: ok"
