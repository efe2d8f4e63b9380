#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: profiles and measured qualities are kept, and used as they promise: what is stored and found
# for a KL is what was measured to keep it; what lacks its profile is a miss, never wrong. Method: the
# small model through larder-run, the commands, a restart, a rebuild, and files that went bad.
. tests/tools/daemon.sh

model=tests/models/tiny
profile=$model/profile.safetensors
name=$(sha256sum "$profile" | cut -d' ' -f1)
stored=$work/store/profiles/$name.safetensors

fails_with() { # STATUS TEXT COMMAND...
    local wanted=$1 text=$2 status=0
    shift 2
    "$@" >"$work/out" 2>"$work/err" || status=$?
    expect "status of $*" "$wanted" "$status"
    said "$work/err" "$text"
}
said() { # FILE TEXT
    grep -q -- "$2" "$1" || {
        echo "no '$2' in: $(cat "$1")" >&2
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
forget() { # all that is stored
    larder rm "$(larder ls --json | jq -r '.[] | select(.depth == 0) | .key' | head -1)" >/dev/null
}
measure() { # RECIPE KL BITS [PROFILE]
    jq -n --arg recipe "$1" --argjson kl "$2" --argjson bits "$3" --arg profile "${4-}" \
        '{recipe: $recipe, kl: $kl, kl_p99: 0.1, top1: 0.99, bits_per_element: $bits}
         + if $profile == "" then {} else {profile: $profile} end'
}
load() { # < MEASURES
    jq -s --arg fingerprint "$fingerprint" '{fingerprint: $fingerprint, recipes: .}' |
        larder quality load -
}

head -c 1000 $model/heldout.txt >"$work/prompt"
start_daemon
restored=$(($(run .prompt_tokens) - 1))
fingerprint=$(larder models --json | jq -r '.[0].fingerprint')
forget

# --- profiles
expect "no profile" 0 "$(larder profile ls --json | jq length)"
run .stored_tokens --recipe bfp4-ksort >/dev/null
said "$work/report.err" "larder profile add"
fails_with 2 "usage" larder profile frobnicate
fails_with 1 "no profile" larder profile show 00
fails_with 1 "no profile" larder profile rm 00
fails_with 2 "safetensors" larder profile add $model/README.md
expect "added" false "$(larder profile add $profile --json | jq .existed)"
ln -s "$PWD/$profile" "$work/link"
expect "added again" true "$(larder profile add "$work/link" --json | jq .existed)"
fails_with 2 "No such file" larder profile add "$work/nothing"
expect "its name" "$name" "$(larder profile ls --json | jq -r '.[0].name')"
expect "whole" false "$(larder profile ls --json | jq '.[0].damaged')"
larder profile show "${name:0:6}" | grep weights >/dev/null
larder profile ls | grep "${name:0:12} tiny" >/dev/null
cmp "$stored" $profile
run .stored_tokens --recipe bfp4-ksort >/dev/null
said "$work/report.err" "profile add --default" # it is there, but nobody's default
larder profile add --default $profile >/dev/null
expect "default" true "$(larder profile ls --json | jq '.[0].default')"

blocks=$(((restored + 256) / 256))
expect "stored with it" $((restored + 1)) "$(run .stored_tokens_new --recipe bfp4-ksort)"
expect "not measured" null "$(jq .stored_kl "$work/report")"
expect "its entries" "$blocks" "$(larder profile ls --json | jq '.[0].entries')"
fails_with 2 "$blocks entries" larder profile rm "$name"
key=$(larder ls --json | jq -r '.[] | select(.depth == 0) | .key')
expect "shown with it" "$name" "$(larder show "$key" --json | jq -r '.records[0].profile')"
larder export "$key" -o "$work/chain" >/dev/null # decoded: the file needs no profile

# --- measured
expect "nothing measured" 0 "$(larder quality ls --json | jq length)"
fails_with 2 "larder-eval" larder quality load $model/config.json
fails_with 2 "measured on no model" sh -c \
    'printf "{\"fingerprint\": \"%064d\", \"recipes\": [{\"recipe\": \"kivi4\", \"kl\": 1, \"kl_p99\": 1,
      \"top1\": 1, \"bits_per_element\": 5}]}" 0 | larder quality load -'
fails_with 2 "cannot be" sh -c \
    'printf "{\"fingerprint\": \"%064d\", \"recipes\": [{\"recipe\": \"kivi4\", \"kl\": -1, \"kl_p99\": 1,
      \"top1\": 1, \"bits_per_element\": 5}]}" 1 | larder quality load -'
expect "exact only" 0 "$(run .restored_tokens)"
forget
run .stored_tokens --recipe bfp4-ksort >/dev/null
expect "unmeasured is not taken" 0 "$(run .restored_tokens --max-kl 10)"
forget
run .stored_tokens --recipe bfp4-ksort >/dev/null
{ measure bfp4-ksort 0.004 4.5 "$name"; measure kivi4 0.001 5.08; measure kivi2 0.04 3.08; } | load
expect "measured" 3 "$(larder quality ls --json | jq length)"
expect "restored" $restored "$(run .restored_tokens --max-kl 0.01)"
expect "its KL" 4 "$(jq '.loaded_kl * 1000 | round' "$work/report")"
expect "kept" "$blocks" "$(larder ls --json | jq length)"
expect "too much" 0 "$(run .restored_tokens --max-kl 0.002)"
expect "put for less" kivi4 "$(jq -r .stored_recipe "$work/report")"
expect "in its place" 0 "$(larder profile ls --json | jq '.[0].entries')"
expect "restored for less" $restored "$(run .restored_tokens --max-kl 0.002)"
forget
expect "the smallest" kivi2 "$(run .stored_recipe --max-kl 0.05)"
forget
expect "nothing so good" "exact true" \
    "$(run '[.stored_recipe, .stored_unmeasured] | map(tostring) | join(" ")' --max-kl 0.0001)"
larder ls | grep exact >/dev/null
forget

# --- a chain in a file keeps its KL
run .stored_tokens --recipe kivi2 >/dev/null
key=$(larder ls --json | jq -r 'max_by(.depth) | .key')
expect "exported KL" "lossy 40" \
    "$(larder export "$key" -o "$work/chain" --json | jq -r '"\(.quality) \(.kl * 1000 | round)"')"
forget
expect "imported KL" 40 "$(larder import "$work/chain" --json | jq '.kl * 1000 | round')"
expect "measured again" "$restored" "$(run .restored_tokens --max-kl 0.05)"
expect "and not better" 0 "$(run .restored_tokens --max-kl 0.03)"
forget
# It is under the check of the head.
python3 - "$work/chain" <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(28)
    file.write(bytes(4))
PYTHON
fails_with 1 "check of its head" larder import "$work/chain"

# --- defaults of a tenant and a model
stop_daemon
echo "recipe uid-$(id -u) tiny = auto max_kl=0.01" >>"$work/larderd.conf"
start_daemon
expect "measures stay" 3 "$(larder quality ls --json | jq length)"
expect "the default stays" true "$(larder profile ls --json | jq '.[0].default')"
expect "by default" bfp4-ksort "$(run .stored_recipe)"
expect "found by who asks" $restored "$(run .restored_tokens --max-kl 0.01)"

# --- a profile that is gone, or damaged
stop_daemon
expect "fsck" 0 "$(larder fsck "$work/store" --json | jq .unreadable)"
mv "$stored" "$work/kept"
status=0
larder fsck "$work/store" --json >"$work/fsck" || status=$?
expect "fsck without it" "$blocks" "$(jq .unreadable "$work/fsck")"
[ $status -ne 0 ]
start_daemon
expect "a miss without it" 0 "$(run .restored_tokens --max-kl 0.01)"
said "$work/report.err" "the profile that its recipe reads is not there"
stop_daemon
{ head -c 1000 "$work/kept"; head -c 1000 /dev/zero; tail -c +2001 "$work/kept"; } >"$stored"
start_daemon
expect "a miss when damaged" 0 "$(run .restored_tokens --max-kl 0.01 2>/dev/null)"
said "$work/report.err" "the profile that its recipe reads is not there"
expect "listed as damaged" "$name true" \
    "$(larder profile ls --json | jq -r '.[0] | [.name, .damaged] | map(tostring) | join(" ")')"
larder profile ls | grep "${name:0:12} .* damaged .* default" >/dev/null
fails_with 2 "is damaged" larder profile show "$name"
expect "mended" false "$(larder profile add "$work/kept" --json | jq .existed)"
cmp "$work/kept" "$stored"
stop_daemon
rm -r "$work/store/index" # the segments name it too
start_daemon
expect "rebuilt" 1 "$(larder status --json | jq .index_rebuilt | sed 's/true/1/')"
expect "found again" $restored "$(run .restored_tokens --max-kl 0.01)"
forget
larder profile rm "${name:0:10}" >/dev/null
[ ! -e "$stored" ]
expect "nobody's default" kivi4 "$(run .stored_recipe)"

# --- measures that went bad
stop_daemon
sed -i 's/kivi2$/kivi4/' "$work/store/measures"
start_daemon 2>"$work/log"
expect "damaged measures" 0 "$(larder quality ls --json | jq length)"
expect "exact then" 0 "$(run .restored_tokens --max-kl 0.01)"
