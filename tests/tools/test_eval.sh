#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: larder-eval measures what it says: what comes back bit by bit costs nothing, fewer bits cost
# more, figures do not depend on threads, and what is wrong is refused with a message.
# Method: few samples of the small model, as a person runs it.
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


def run(*options):
    done = subprocess.run([EVAL, *options], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{options}: {done.stderr}")
    return done.stdout


def check(what, true):
    if not true:
        failed.append(what)
        print("wrong:", what, file=sys.stderr)


RECIPES = ["raw", "exact", "kivi4", "kivi2", "quant bits=2 group=64 | rans", "quant bits=2 group=64"]
named = [option for recipe in RECIPES for option in ("--recipe", recipe)]
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "rows.csv")
    result = json.loads(run("--json", "--csv", path, "-n", "2", "-J", "2", *named))
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
rows = {row["recipe"]: row for row in result["recipes"]}
check("all recipes, in order", [row["recipe"] for row in result["recipes"]] == RECIPES)
check("samples", result["text_samples"] == result["question_samples"] == 2)
check("no claims of named recipes", "summary" not in result)
for name in ("raw", "exact"):
    row = rows[name]
    check(f"{name} is exact", row["exact"] and row["kl"] == row["kl_p99"] == 0 and
          row["top1"] == 1 and row["bits_per_byte_change"] == 0 and
          row["kl_all"]["worst_decile"] == 0)
    for part in ("error_k", "error_v", "error_attention"):
        check(f"{name}: {part}", row[part] == {"all": 0, "layers": [0] * 6})
# 16 bits an element, and the head and padding of records of 786,432 bytes.
check("size of raw", 16 < rows["raw"]["bits_per_element"] < 16.2)
check("sections of raw", rows["raw"]["section_bits_per_element"] == 16)
check("size of exact", 9 < rows["exact"]["bits_per_element"] < .72 * 16)
check("kivi2 costs more than kivi4", 0 < rows["kivi4"]["kl"] < rows["kivi2"]["kl"] and
      rows["kivi2"]["bits_per_element"] < rows["kivi4"]["bits_per_element"])
check("kivi4 at this model", rows["kivi4"]["kl"] < .01 and 5 < rows["kivi4"]["bits_per_element"] < 5.2)
for part in ("error_k", "error_v", "error_attention"):
    few, more = rows["kivi2"][part]["layers"], rows["kivi4"][part]["layers"]
    check(f"{part} in each layer", len(few) == 6 and all(a > b > 0 for a, b in zip(few, more)))
plain, coded = rows[RECIPES[5]], rows[RECIPES[4]]
check("rans is smaller and the same", coded["bits_per_element"] < plain["bits_per_element"] and
      all(coded[key] == plain[key] for key in ("kl", "kl_all", "top1", "error_attention")))
for row in rows.values():
    check("worst decile, p99 and mean", row["kl_all"]["mean"] <= row["kl_all"]["worst_decile"])
    check("kl is the worse of the two",
          row["kl"] == max(row["kl_first"]["mean"], row["kl_answers"]["mean"]))
check("CSV", [line["recipe"] for line in lines] == RECIPES and
      abs(float(lines[3]["kl"]) - rows["kivi2"]["kl"]) < 1e-6)

# Times differ from run to run; nothing else does, whatever the number of threads.
def without_times(text):
    found = json.loads(text)
    for row in found["recipes"]:
        for key in ("encode_gb_s", "decode_gb_s", "memcpy_gb_s"):
            check(f"{key} > 0", row.pop(key) > 0)
    return found


few = ("--json", "-n", "3", "--recipe", "kivi2")
check("one thread and three", without_times(run(*few, "-J", "1")) == without_times(run(*few, "-J", "3")))

table = run("-n", "1", "--family", "kivi", "-J", "1")
check("a table for people", "4 bits, rans" in table and "GB/s" in table and "uniform" not in table)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "picture.png")
    done = subprocess.run([EVAL, "-n", "1", "-f", "kivi", "-f", "exact", "--png", path],
                          capture_output=True, text=True)
    if shutil.which("gnuplot"):
        with open(path, "rb") as file:
            check("a picture", file.read(8) == b"\x89PNG\r\n\x1a\n" and done.returncode == 0)
    else:
        check("no gnuplot", done.returncode == 1 and "gnuplot" in done.stderr)
check("the list", "quant bits=8" in run("--list"))

for options, text in ((["--recipe", "nothing"], "nothing"),
                      (["--family", "nothing"], "--family=nothing"),
                      (["--recipe", "raw", "--family", "kivi"], "exclude"),
                      (["--samples", "0"], "--samples=0"), (["--samples", "x"], "--samples=x"),
                      (["--jobs", "65"], "--jobs=65"), (["--model", "/nowhere"], "/nowhere"),
                      (["--text", "/nowhere"], "/nowhere"), (["--text", "LICENSE.none"], "LICENSE"),
                      (["--profile", "/nowhere"], "/nowhere"),
                      (["--profile", "tools/lint", "-n", "1"], ""),
                      (["--questions", "tools/lint"], "tools/lint"),
                      (["--questions", "tests/models/tiny/config.json"], "array"),
                      (["--csv", "/nowhere/x", "-n", "1", "--recipe", "raw"], "/nowhere/x"),
                      (["extra"], "")):
    done = subprocess.run([EVAL, *options], capture_output=True, text=True)
    if done.returncode not in (1, 2) or text not in done.stderr or not done.stderr:
        failed.append(f"{options}: {done.returncode} {done.stderr}")
        print(failed[-1], file=sys.stderr)

sys.exit(1 if failed else 0)
PYTHON
