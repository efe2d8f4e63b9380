#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: larder fsck finds what is wrong with a store and nothing else, changes nothing unless told
# to repair, and mends it then. Method: a store with real KV in it; each kind of damage to a copy of
# it; golden stores, an encrypted one; the whole directory is hashed before and after.
. tests/tools/daemon.sh

hash_of() { # DIR: names, kinds, modes, times and bytes of all that is in it
    (cd "$1" && find . -printf '%p %y %m %T@ %s\n' | sort
        find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum
}
fsck() { # STATUS ARGUMENT...: JSON to $work/report
    local wanted=$1 status=0
    shift
    larder fsck --json "$@" >"$work/report" 2>"$work/err" || status=$?
    expect "status of fsck $*: $(cat "$work/report" "$work/err")" "$wanted" "$status"
}
field() {
    jq -r ".$1" "$work/report"
}
copy() {
    rm -rf "$work/copy"
    cp -a "$work/store" "$work/copy"
}
flip() { # FILE OFFSET
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf "$(printf '\\x%02x' $((byte ^ 1)))" |
        dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
# A check without --repair finds it and changes nothing; one with --repair mends it; then it is
# clean.
found_and_mended() { # WHAT FIELD VALUE ARGUMENT...
    local what=$1 field=$2 value=$3 before
    shift 3
    before=$(hash_of "$work/copy")
    fsck 4 "$@" "$work/copy"
    expect "$what" "$value" "$(field "$field")"
    expect "findings told of $what" true "$(field '"findings" | length > 0' 2>/dev/null ||
        jq '.findings | length > 0' "$work/report")"
    expect "bytes after a look at $what" "$before" "$(hash_of "$work/copy")"
    fsck 1 --repair "$@" "$work/copy"
    expect "left of $what" 0 "$(field findings_left)"
    fsck 0 --data "${key[@]}" "$work/copy"
}

key=() # of an encrypted store
fsck 8 "$work/none"
mkdir "$work/empty"
fsck 8 "$work/empty"
start_daemon
larder-run --model tests/models/tiny --prompt-file tests/models/tiny/prompt.txt --tokens 1 \
    --durable >/dev/null
count=$(larder status --json | jq .entries)
larder ls --json | jq 'sort_by(.depth)' >"$work/entries"
fsck 8 "$work/store"
grep 'in use by process' "$work/err" >/dev/null
larder rm "$(jq -r '.[-1].key' "$work/entries")" >/dev/null
count=$((count - 1))
larder pin "$(jq -r '.[1].key' "$work/entries")" >/dev/null
larder ttl 90d "$(jq -r '.[-2].key' "$work/entries")" >/dev/null
stop_daemon

# A sound store, and one that was killed.
before=$(hash_of "$work/store")
fsck 0 "$work/store"
expect "entries" "$count" "$(field entries)"
fsck 0 --data "$work/store"
expect "index" sound "$(field index)"
expect "bytes read" "$(jq '[.[:-1][].stored_bytes] | add' "$work/entries")" "$(field read_bytes)"
fsck 0 --data --repair "$work/store"
expect "bytes after all that" "$before" "$(hash_of "$work/store")"
larder fsck "$work/store" | grep '^clean' >/dev/null

copy
rm -r "$work/copy/index"
found_and_mended "no index" index missing
expect "entries without an index" "$count" "$(field entries)"

copy
truncate -s 6000 "$work/copy/index/data.mdb"
found_and_mended "a damaged index" index damaged
expect "entries of a damaged index" "$count" "$(field entries)"

copy
flip "$work/copy/tenants" 40
found_and_mended "damaged tenants" bad_tenant_copies 1
expect "entries with damaged tenants" "$count" "$(field entries)"

# In the sections of the third entry: it goes, with all behind it.
place() { # ENTRY: segment file and offset
    jq -r ".[$1] | \"\\(.segment) \\(.segment_offset) \\(.stored_bytes)\"" "$work/entries"
}
copy
read -r segment offset bytes < <(place 2)
file=$(printf '%s/copy/segments/%08u.seg' "$work" "$segment")
flip "$file" $((offset + bytes / 2))
found_and_mended "damaged data" bad_entries 1 --data
expect "entries before the damage" 2 "$(field entries)"

# Its head: the row names nothing valid.
copy
flip "$file" $((offset + 40))
found_and_mended "a damaged head" bad_rows 1
expect "entries before the damage" 2 "$(field entries)"

# A segment is gone.
copy
rm "$file"
fsck 4 "$work/copy"
fsck 1 --repair "$work/copy"
expect "entries without their segment" 0 "$(field entries)"

# Both copies of the tenants: nothing can mend that, and nothing is touched.
copy
flip "$work/copy/tenants" 40
flip "$work/copy/tenants.copy" 40
before=$(hash_of "$work/copy")
fsck 8 --repair "$work/copy"
expect "bytes of a hopeless store" "$(find "$work/copy" -type f -not -name lock | wc -l)" \
    "$(find "$work/store" -type f -not -name lock | wc -l)"
expect "bytes" "$before" "$(hash_of "$work/copy")"

# Another release's.
copy
sed -i 's/^larder store 1$/larder store 9/' "$work/copy/format"
before=$(hash_of "$work/copy")
fsck 8 --repair "$work/copy"
expect "bytes of another release's" "$before" "$(hash_of "$work/copy")"

# Killed while it wrote: clean, whatever the index does not know yet.
start_daemon
larder-run --model tests/models/tiny --prompt-file tests/models/tiny/prompt.txt --tokens 1 \
    >/dev/null
stop_daemon KILL
fsck 0 --data "$work/store"

# Stores of every release so far: clean, or with a tail that the next start takes in.
for archive in tests/golden/*/*.tar.gz; do
    rm -rf "$work/copy"
    mkdir "$work/copy"
    tar -xzf "$archive" -C "$work/copy"
    golden=$(dirname "$(find "$work/copy" -name format)")
    before=$(hash_of "$golden")
    with=()
    if [[ $archive == */encrypted* ]]; then
        install -m 600 "$(dirname "$archive")/test.key" "$work/golden.key"
        with=(--key-file "$work/golden.key")
    fi
    fsck 0 --data "${with[@]}" "$golden"
    expect "bytes of $archive" "$before" "$(hash_of "$golden")"
done

# An encrypted one: nothing can be said of it without its key.
rm -rf "$work/store" "$work/copy"
head -c 32 /dev/urandom >"$work/key"
chmod 600 "$work/key"
echo "key_file = $work/key" >>"$work/larderd.conf"
start_daemon
larder-run --model tests/models/tiny --prompt-file tests/models/tiny/prompt.txt --tokens 1 \
    --durable >/dev/null
larder ls --json | jq 'sort_by(.depth)' >"$work/entries"
stop_daemon
fsck 8 "$work/store"
before=$(hash_of "$work/store")
fsck 0 --data --key-file "$work/key" "$work/store"
expect "encrypted bytes" "$before" "$(hash_of "$work/store")"
copy
read -r segment offset bytes < <(place 2)
flip "$(printf '%s/copy/segments/%08u.seg' "$work" "$segment")" $((offset + bytes / 2))
key=(--key-file "$work/key")
found_and_mended "damaged encrypted data" bad_entries 1 --data "${key[@]}"
