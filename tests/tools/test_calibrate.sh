#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: larder calibrate makes a profile in one command, the same each time, and says what is wrong
# when it cannot. Method: the small model and the start of its text; the committed profile.
. tests/tools/daemon.sh

fail() { # MESSAGE
    echo "$1" >&2
    exit 1
}
refused() { # TEXT ARGUMENT...
    local wanted=$1 status=0
    shift
    larder calibrate "$@" >"$work/out" 2>"$work/err" || status=$?
    expect "status of calibrate $*" 2 "$status"
    grep -qF -- "$wanted" "$work/err" || fail "calibrate $*: '$wanted' is not in: $(cat "$work/err")"
}

tiny=tests/models/tiny
head -c 6000 $tiny/calibration.txt >"$work/text"
larder calibrate --model $tiny --text "$work/text" --window 400 --kl-windows 1 --budget 3 \
    --out "$work/profile" --json >"$work/report"
expect "name in the report" "$(sha256sum <"$work/profile" | cut -d' ' -f1)" \
    "$(jq -r .profile "$work/report")"
expect "tokens" 5985 "$(jq .tokens "$work/report")"
expect "bits within the budget" true "$(jq '.kvtuner.bits <= 3' "$work/report")"
larder recipe show "$(jq -r .kvtuner.recipe "$work/report")" >/dev/null

od -An -v -tu1 "$work/text" >"$work/tokens"
larder calibrate --model $tiny --tokens "$work/tokens" --window 400 --kl-windows 1 --budget 3 \
    --output "$work/again" >"$work/report"
cmp "$work/profile" "$work/again" || fail "tokens and text of the same bytes give other profiles"
grep -q "layers\|kivi" "$work/report" || fail "no recipe in: $(cat "$work/report")"
[ ! -e "$work/again.new" ] || fail "a file is left over"

larder calibrate --model $tiny --text "$work/text" --window 400 --kl-windows 0 --json \
    --out "$work/short" >"$work/report"
expect "a bit map without measuring" null "$(jq .kvtuner "$work/report")"

# What blending reads: measured, so not without measuring.
tensors() { # FILE
    head -c 65536 "$1" | grep -aoE '"blend\.[a-z_]+"' | sort | tr '\n' ' '
}
expect "tensors of blending" '"blend.check_layer" "blend.kl" ' "$(tensors "$work/profile")"
expect "tensors of blending, not measured" "" "$(tensors "$work/short" || true)"
expect "tensors of blending, committed" '"blend.check_layer" "blend.kl" ' \
    "$(tensors $tiny/profile.safetensors)"

refused "--model DIR" --text "$work/text"
refused "--text FILE" --model $tiny
refused "--text FILE" --model $tiny --text "$work/text" --tokens "$work/tokens"
refused "from 2 to 8" --model $tiny --text "$work/text" --budget 1
refused "from 2 to 8" --model $tiny --text "$work/text" --budget nan
head -c 300 "$work/text" >"$work/little"
refused "a window needs 400" --model $tiny --text "$work/little" --window 400
refused "context of 4096" --model $tiny --text "$work/text" --window 9000
refused "at least 2 tokens" --model $tiny --text "$work/text" --window 1
refused "$work/none" --model $tiny --text "$work/none"
refused "config.json" --model "$work" --text "$work/text"
refused "$work/no/profile" --model $tiny --text "$work/text" --window 400 --kl-windows 0 \
    --out "$work/no/profile"
echo 300 500 >"$work/tokens"
refused "vocabulary of 272" --model $tiny --tokens "$work/tokens" --window 2

# The committed profile is of the committed model: its weights' digest is the one made here.
weights() { # FILE
    head -c 4096 "$1" | tail -c +9 | grep -aoE '"weights":"[0-9a-f]{64}"'
}
expect "model of the committed profile" "$(weights "$work/profile")" \
    "$(weights $tiny/profile.safetensors)"
