#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: larder rag answers questions from chunks stored apart as a prefill would, says what it did with
# each of them, and never uses a text that is not what was added. Method: made-up facts in files, the
# small model, a larderd whose worker has its weights; files, catalogue, worker and larderd then go bad.
. tests/tools/daemon.sh

model=tests/models/tiny
facts=$work/facts
export XDG_DATA_HOME=$work/data HOME=/nowhere
catalogue=$XDG_DATA_HOME/larder/rag
best="cacheblend r=.15 layer=3"

fails_with() { # STATUS TEXT COMMAND...
    local wanted=$1 text=$2 status=0
    shift 2
    "$@" >"$work/out" 2>"$work/err" || status=$?
    expect "status of $*: $(cat "$work/err")" "$wanted" "$status"
    said "$work/err" "$text"
}
said() { # FILE TEXT
    grep -q -- "$2" "$1" || {
        echo "no '$2' in: $(cat "$1")" >&2
        exit 1
    }
}
rag() { # VERB ARGUMENT...
    local verb=$1
    shift
    larder rag "$verb" --model $model "$@"
}
ask() { # QUESTION ARGUMENT...: into $work/answer
    rag ask "$@" --json >"$work/answer" 2>"$work/answer.err"
}
found() { # FILTER: of the last answer
    jq -r "$1" "$work/answer"
}

# A person a line pair: whoever is asked about by a follow-up is named in the chunk before it only.
mkdir "$facts"
number=10
while IFS= read -r line; do
    printf '%s\n' "$line" >"$facts/p$((number++))"
done <<'FACTS'
* Vegre is a doctor from Hudreitra.
* This person keeps a red hammer and likes olives.
* Treitru works as a baker in Cetriakria.
* That person has always liked beans, and keeps a blue drum at home.
* Biabei, a farmer, lives in Meifaco.
* The same person keeps a white clock and likes bread.
* Naso is a teacher from Gotroka.
* That person likes soup and keeps a copper basket.
* Coka works as a sailor in Dustuko.
* The same person keeps a black kite and likes rice.
* Stiakei, a singer, lives in Leikamei.
* This person has always liked plums, and keeps a paper boat at home.
FACTS

# Before there is anything.
fails_with 1 "there is no catalogue" larder rag ls --model $model
fails_with 2 "--model DIR" larder rag ls
fails_with 2 "none of add" larder rag guess
fails_with 2 "takes one question" larder rag ask --model $model
fails_with 2 "takes files" larder rag add --model $model
fails_with 2 "$work/run" larder rag add --model $model "$facts"/p*
[ ! -e "$catalogue" ] || expect "a catalogue without larderd" no yes

echo "model tiny = $(realpath $model) method=$best" >>"$work/larderd.conf"
start_daemon
for _ in $(seq 200); do # until the worker has its weights
    larder workers >/dev/null 2>&1 && break
    sleep 0.1
done
larder workers >/dev/null || {
    echo "the worker did not start" >&2
    exit 1
}

fails_with 2 "config.json" larder rag add --model "$work" "$facts/p10"
fails_with 1 "$facts/none" rag add "$facts/none"
fails_with 2 "is empty" rag add /dev/null
rag add --json "$facts"/p* >"$work/added"
expect "files" 12 "$(jq length "$work/added")"
expect "stored now" 12 "$(jq 'map(.stored_now) | add' "$work/added")"
expect "tokens" $(($(cat "$facts"/p* | wc -c) + 12)) "$(jq 'map(.tokens) | add' "$work/added")"
rag add --json "$facts"/p* >"$work/added"
expect "stored twice" 0 "$(jq 'map(.stored_now) | add' "$work/added")"
rag ls --json >"$work/list"
expect "chunks" 12 "$(jq length "$work/list")"
expect "whole" 12 "$(jq 'map(select(.stored_tokens == .tokens and .text_same)) | length' \
    "$work/list")"
expect "quality" exact "$(jq -r 'map(.quality) | unique | join(" ")' "$work/list")"
expect "tier" host "$(jq -r 'map(.tier) | unique | join(" ")' "$work/list")"

# Questions that one chunk answers, and such as need the chunk before.
right() { # QUESTION ANSWER ARGUMENT...
    ask "$1" "${@:3}"
    expect "$1" "$2" "$(found .answer)"
    expect "blended" true "$(found .blend.done)"
}
right "Where does Naso live?" Gotroka
expect "chunks asked" 12 "$(found '.chunks | length')"
tokens=$(cat "$facts"/p* | wc -c)
expect "the context" $((tokens + 1)) "$(found '[.chunks[] | .reused + .moved + .missing] | add')"
expect "missing" 0 "$(found '.blend.missing_tokens')"
expect "the first is a prefix" "$(($(wc -c <"$facts/p10") + 1))" "$(found '.chunks[0].reused')"
expect "others are moved" true "$(found '.chunks[1:] | all(.moved == .tokens)')"
again=$(found '[.chunks[].recomputed] | add')
moved=$(found .blend.moved_tokens)
[ $((again * 100)) -gt $((moved * 10)) ] && [ $((again * 100)) -lt $((moved * 20)) ] ||
    expect "computed again of $moved" "some 15 %" "$again"
right "What does Stiakei like?" plums
right "What does Coka keep?" "a black kite" --compare
expect "as a prefill" true "$(found .prefill.same)"
# In another order; without repair such a question is not answered from what it needs.
right "What does Vegre keep?" "a red hammer" --chunks 'p18,p19,p1[01],p12,p13'
expect "order" "p18 p19 p10 p11 p12 p13" "$(found '[.chunks[].name] | join(" ")')"
ask "What does Coka keep?" --chunks 'p1[0-7],p18,p19' --method none
expect "recomputed by none" 0 "$(found '[.chunks[] | .recomputed + .recomputed_partly] | add')"
right "Where does Coka live?" Dustuko --top 1
expect "top" p18 "$(found '[.chunks[].name] | join(" ")')"
ask "Coka" --template $'Q: What does {} do?\nA: ' --chunks p18
expect "template" sailor "$(found .answer)"
expect "asked with p18" 7 "$(rag ls --json | jq '.[] | select(.name == "p18") | .asked')"

# For people.
rag ask "What does Naso like?" --compare >"$work/out" 2>"$work/err"
expect "on standard output" soup "$(cat "$work/out")"
said "$work/err" "^all  *$((tokens + 1)) "
said "$work/err" "the same answer: soup"
rag ls >"$work/out"
said "$work/out" "^p10 .*exact .*same"

# Arguments are bytes; JSON is UTF-8 all the same.
cp "$facts/p12" "$facts/"$'\xff'
rag add --json "$facts/"$'\xff' | jq -e '.[0].name == "\ufffd"' >/dev/null
ask $'\xff' --chunks $'\xff'
expect "a byte" $'\ufffd' "$(found .question)"
larder rag rm $'\xff' >/dev/null

# What cannot be asked.
fails_with 1 "no chunk is called 'p99'" rag ask x --chunks p10,p99
fails_with 2 "has no {}" rag ask x --template y
fails_with 1 "prefilling all" rag ask x --chunks p10 --method guess

# What left the store is computed, stored and found again.
larder rm "$(larder ls --json | jq -r '[.[] | select(.depth == 0)][0].key')" >/dev/null
# (chunks that begin alike share their first block)
left=$(rag ls --json | jq 'map(select(.stored_tokens == .tokens)) | length')
[ "$left" -lt 12 ] || expect "chunks left" "some" 12
right "What does Treitru keep?" "a blue drum"
expect "stored again" $((12 - left)) "$(found .blend.pieces_stored)"

# A file that changed, and one that is gone: never the old text, never the new one unasked.
cp "$facts/p10" "$work/kept"
sed -i s/doctor/hunter/ "$facts/p10"
fails_with 1 "is not any more what it was" rag ask "What does Vegre do?"
right "What does Naso do?" teacher --chunks 'p1[67]'
status=0
rag ls >"$work/out" || status=$?
expect "status of ls" 1 $status
said "$work/out" "^p10 .*changed"
rag add "$facts/p10" >/dev/null
expect "chunks still" 12 "$(rag ls --json | jq length)"
right "What does Vegre do?" hunter
rm "$facts/p11"
fails_with 1 "is gone" rag ask "What does Vegre do?"
larder rag rm p11 >/dev/null
expect "chunks then" 11 "$(rag ls --json | jq length)"
fails_with 1 "no chunk is called p11" larder rag rm p11

# Another file of the same name; a long one, cut at its empty lines and lines.
mkdir "$work/other"
for paragraph in 1 2 3 4; do
    printf 'Paragraph %s is here.\nIt has a second line, which is some bytes longer.\n\n' $paragraph
done >"$work/other/p10"
cp "$catalogue" "$work/before"
fails_with 2 "is that of" rag add "$work/other/p10"
cmp "$catalogue" "$work/before"
rag add --name long --chunk-bytes 100 "$work/other/p10" >/dev/null
expect "cut" "long:1 long:2 long:3 long:4" "$(rag ls --json |
    jq -r '[.[] | select(.name | startswith("long")) | .name] | join(" ")')"
expect "by a paragraph" "72 72 72 72" "$(rag ls --json |
    jq -r '[.[] | select(.name | startswith("long")) | .bytes] | join(" ")')"
rag add --name long --chunk-bytes 30 "$work/other/p10" >/dev/null
expect "in the middle" 288 "$(rag ls --json |
    jq '[.[] | select(.name | startswith("long")) | .bytes] | add')"
expect "at most" true "$(rag ls --json |
    jq '[.[] | select(.name | startswith("long")) | .bytes] | max <= 30')"
right "Where does Naso live?" Gotroka --chunks 'p16,long'
larder rag rm long >/dev/null

# Two at once: no question is lost.
before=$(rag ls --json | jq '.[] | select(.name == "p12") | .asked')
rag ask x --chunks p12 >/dev/null 2>&1 &
rag ask y --chunks p12 >/dev/null 2>&1
wait $!
expect "asked by two" $((before + 2)) \
    "$(rag ls --json | jq '.[] | select(.name == "p12") | .asked')"

# A catalogue that is none, or was cut short, is left alone.
bad() { # TEXT
    cp "$work/catalogue" "$work/catalogue.before"
    fails_with 2 "$1" rag ls --catalogue "$work/catalogue"
    fails_with 2 "$1" rag add --catalogue "$work/catalogue" "$facts/p12"
    fails_with 2 "$1" larder rag rm --catalogue "$work/catalogue" x
    cmp "$work/catalogue" "$work/catalogue.before"
}
cp "$facts/p12" "$work/catalogue"
bad "is no catalogue"
head -c 100 "$catalogue" >"$work/catalogue"
bad "line 2 is no chunk"
sed '2s/\t/\t-/' "$catalogue" >"$work/catalogue"
bad "line 2 is no chunk"
printf 'larder rag catalogue 1\n\0' >"$work/catalogue"
bad "is no catalogue"

# A restart: from SSD. Without a worker, or without larderd, the answer is computed, and that is said.
stop_daemon
sed -i '/^model/d' "$work/larderd.conf"
start_daemon
expect "tier" ssd "$(rag ls --json | jq -r 'map(.tier) | unique | join(" ")')"
fails_with 1 "prefilling all" rag ask "What does Naso like?"
said "$work/out" "^soup"
said "$work/err" "not blended"
stop_daemon
fails_with 1 "going on without" rag ask "What does Naso like?"
said "$work/out" "^soup"
fails_with 2 "$work/run" rag ls
echo "test_rag: ok"
