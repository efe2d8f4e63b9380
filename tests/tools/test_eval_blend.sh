#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: larder-eval blend measures what it says: what is computed again altogether is as good as
# dense prefill, moved chunks are not, figures do not depend on threads, recipes that keep every bit
# change nothing, and what is wrong is refused with a message.
# Method: few facts about two people, as a person runs it.
set -eu
python3 - <<'PYTHON'
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile

EVAL = os.path.join(os.environ["LARDER_BUILD"], "larder-eval")
failed = []


def start(*options):
    return subprocess.run([EVAL, "blend", *options], capture_output=True, text=True)


def run(*options):
    done = start(*options)
    if done.returncode != 0:
        sys.exit(f"{options}: {done.stderr}")
    return done.stdout


def check(what, true):
    if not true:
        failed.append(what)
        print("wrong:", what, file=sys.stderr)


METHODS = ["none", "full", "cacheblend r=1 layer=1", "cacheblend r=0 layer=3",
           "cacheblend r=.15 layer=3", "probe r=.15", "random r=.5"]
FEW = ("--people", "2", "-n", "24")
named = [option for method in METHODS for option in ("--method", method)]
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "rows.csv")
    picture = os.path.join(folder, "picture.png")
    has_gnuplot = shutil.which("gnuplot")
    options = ("--png", picture) if has_gnuplot else ()
    result = json.loads(run("--json", "--csv", path, *options, "-J", "2", *FEW, *named))
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    if has_gnuplot:
        with open(picture, "rb") as file:
            check("a picture", file.read(8) == b"\x89PNG\r\n\x1a\n")
    else:
        done = start("--png", picture, "--people", "2", "-n", "1", "--method", "none")
        check("no gnuplot", done.returncode == 1 and "gnuplot" in done.stderr)
rows = {row["method"]: row for row in result["methods"]}
check("all methods, in order, behind prefill",
      [row["method"] for row in result["methods"]] == ["prefill", *METHODS])
check("no claims of named methods", "summary" not in result)
check("nothing left out", result["not_measured"] == [])
for row in rows.values():
    check("questions", row["people"] == 2 and row["chance"] == .5 and row["samples"] == 6 and
          row["cross"]["asked"] == row["direct"]["asked"] == 24)
    turns = row["turns"]
    check("turns", turns["cross_asked"] + turns["direct_asked"] == 5 * 6 and
          sum(turn["asked"] for turn in turns["cross_by_turn"]) == turns["cross_asked"])
    check("direct is easy", row["direct"]["right"] >= .95)
prefill, none, full = rows["prefill"], rows["none"], rows["full"]
check("prefill", prefill["kl"] == 0 and prefill["recomputed_share"] == 1 and
      prefill["cross"]["right"] > .8)
# Only the first chunk is not computed again.
for name in ("full", "cacheblend r=1 layer=1"):
    row = rows[name]
    check(f"{name} is dense prefill", row["kl"] < 1e-6 and
          row["cross"] == {**prefill["cross"], "kl": row["cross"]["kl"],
                           "kl_error": row["cross"]["kl_error"]} and
          .6 < row["recomputed_share"] < 1)
check("moved chunks", none["recomputed_share"] == 0 and none["kl"] > .01 and
      none["cross"]["right"] < prefill["cross"]["right"] - .2)
chosen, nothing = rows["cacheblend r=.15 layer=3"], rows["cacheblend r=0 layer=3"]
check("the chosen tokens matter", chosen["kl"] < .1 * nothing["kl"] and
      chosen["cross"]["right"] > nothing["cross"]["right"] + .2)
probe = rows["probe r=.15"]
check("tokens chosen when chunks were stored matter", probe["recomputed_share"] < .2 and
      probe["kl"] < .1 * none["kl"] and probe["cross"]["right"] > none["cross"]["right"] + .2)
check("shares", 0 < nothing["recomputed_share"] < chosen["recomputed_share"] <
      full["recomputed_share"])
check("the mean of both kinds", min(none["cross"]["kl"], none["direct"]["kl"]) < none["kl"] <
      max(none["cross"]["kl"], none["direct"]["kl"]))
check("CSV", [line["method"] for line in lines] == ["prefill", *METHODS] and
      abs(float(lines[1]["kl"]) - none["kl"]) < 1e-5 and lines[1]["chunks"] == "raw")


# Times differ from run to run; nothing else does, whatever the number of threads.
def without_times(text):
    found = json.loads(text)
    for row in found["methods"]:
        check("time", row.pop("time_over_prefill") > 0)
    return found


one = ("--json", *FEW, "--method", "random r=.5", "-T", "2")
check("one thread and three", without_times(run(*one, "-J", "1")) ==
      without_times(run(*one, "-J", "3")))
check("other facts", without_times(run(*one, "-J", "2")) != without_times(run(*one, "-s", "2")))

# Chunks through recipes.
recipes = [option for recipe in ("raw", "exact", "kivi2", "zipcache")
           for option in ("--recipe", recipe)]
result = json.loads(run("--json", *FEW, "--method", "cacheblend r=.15 layer=3", *recipes))
rows = {row["chunks"]: row for row in result["methods"]}
for key in ("kl", "cross", "direct", "turns", "recomputed_share"):
    check(f"exact chunks: {key}", rows["exact"][key] == rows["raw"][key])
check("rougher chunks", rows["kivi2"]["kl"] > rows["raw"]["kl"])
check("what a recipe lacks is said", [row["chunks"] for row in result["not_measured"]] ==
      ["zipcache"] and "scores" in result["not_measured"][0]["why"])

table = run("--people", "3", "-n", "6", "--quick", "-J", "2")
check("a table for people", "cacheblend r=.15 layer=3" in table and "chance 0.333" in table and
      "not measured" in table)
check("the list", "cacheblend r=.15" in run("--list") and "link k=16" in run("--list"))

for options, text in ((["--method", "nothing"], "nothing"), (["--method", "link k=x"], "link"),
                      (["--method", "cacheblend layer=9"], "layer"),
                      (["--method", "none" * 30], "120 bytes"),
                      (["--recipe", "nothing"], "nothing"), (["--people", "1"], "--people=1"),
                      (["--people", "11"], "--people=11"), (["--turns", "9"], "--turns=9"),
                      (["--questions", "0"], "--questions=0"), (["--jobs", "65"], "--jobs=65"),
                      (["--seed", "x"], "--seed=x"), (["--model", "/nowhere"], "/nowhere"),
                      (["--profile", "tools/lint", "--method", "none"], ""),
                      (["--csv", "/nowhere/x", "-P", "2", "-n", "1", "--method", "none"],
                       "/nowhere/x"),
                      (["extra"], "")):
    done = start(*options)
    if done.returncode not in (1, 2) or text not in done.stderr or not done.stderr:
        failed.append(f"{options}: {done.returncode} {done.stderr}")
        print(failed[-1], file=sys.stderr)

sys.exit(1 if failed else 0)
PYTHON
