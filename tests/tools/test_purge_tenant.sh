#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: `larder purge` ends all that a tenant has, for its clients, on disk and behind a rebuild; and
# an encrypted store shows nothing of a prompt, opens with its key only, and takes another key.
# Method: larder-run stores real KV as this user's tenant in a larderd with key_file.
. tests/tools/daemon.sh

(umask 077 && head -c 32 /dev/urandom >"$work/key" && head -c 32 /dev/urandom >"$work/new")
echo "key_file = $work/key" >>"$work/larderd.conf"
head -c 900 tests/models/tiny/prompt.txt >"$work/one"
run() { larder-run --model tests/models/tiny --tokens 1 --durable --prompt-file "$work/one" "$@"; }
entries() { larder status --json | jq .entries; }

start_daemon
run >/dev/null
tenant=$(larder tenants --json | jq -r '.[0].name')
stored=$(entries)
[ "$stored" -gt 0 ] || { echo "nothing was stored" >&2; exit 1; }

# Confirmation, and names that are none.
if larder purge "$tenant" </dev/null 2>"$work/said"; then exit 1; fi
grep -q -- --yes "$work/said"
if larder purge --yes nobody 2>"$work/said"; then exit 1; fi
grep -q "no tenant 'nobody'" "$work/said"
expect "after refusals" "$stored" "$(entries)"

cp -a "$work/store/segments" "$work/before"
expect "purged" "purged tenant $tenant: $stored entries" "$(larder purge --yes "$tenant")"
expect "entries" 0 "$(entries)"
# The tenant goes on, with other keys.
run >/dev/null
expect "stored again" "$stored" "$(entries)"
stop_daemon KILL

# Old segments put back, and no index: what was purged stays so.
cp -an "$work/before/." "$work/store/segments/"
rm -rf "$work/store/index"
start_daemon
expect "after a rebuild" "$stored" "$(entries)"
expect "restored after a rebuild" 900 "$(run --json | jq .restored_tokens)"
expect "json of purge" '{"removed": '"$stored"'}' "$(larder purge --yes --json "$tenant")"
run >/dev/null
stop_daemon

# Another key: the old one does not open it any more, and nothing is changed by trying.
larderd --config "$work/larderd.conf" --new-key-file "$work/new" >/dev/null
if larderd --config "$work/larderd.conf" 2>"$work/said"; then exit 1; fi
grep -q "key_file" "$work/said"
larder fsck --key-file "$work/new" "$work/store" >/dev/null
sed -i "s|^key_file = .*|key_file = $work/new|" "$work/larderd.conf"
start_daemon
expect "under the new key" "$stored" "$(entries)"
larder verify >/dev/null
stop_daemon
