#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: larder-sim counts as the trace's README does, runs the same way every time, never looks
# ahead, and the default policy is as good as docs/EVICTION.md says.
# Method: a small trace in the repository with the hits of every policy written down; the big one in
# ../shared/traces when it is there, against the published table; the same trace cut and uncut.
set -eu
python3 - <<'PYTHON'
import json
import os
import subprocess
import sys

SMALL = "tests/tools/traces/small.jsonl"
BIG = "../shared/traces/mooncake_conversation.jsonl"
SIM = os.path.join(os.environ["LARDER_BUILD"], "larder-sim")
POLICIES = ["value", "lru", "fifo", "lfu", "s3fifo", "arc", "belady"]
failed = []


def run(trace, *options):
    done = subprocess.run([SIM, "--json", "--trace", trace, *options], capture_output=True,
                          text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


def capacities(*blocks):
    return [option for count in blocks for option in ("-c", str(count))]


def expect(what, wanted, got):
    if wanted != got:
        failed.append(what)
        print(f"{what}: expected {wanted}, got {got}", file=sys.stderr)


# Every policy on the small trace; --holes knows no chains.
small = {(row["policy"], row["holes"]): row["hits"]
         for holes in ([], ["--holes"])
         for row in run(SMALL, "-p", "all", *holes, *capacities(400))}
with open("tests/tools/traces/small.expected.json", encoding="utf-8") as file:
    expect("hits of the small trace", json.load(file),
           {f"{name}{' (holes)' if holes else ''}": hits for (name, holes), hits in small.items()})
expect("two runs", run(SMALL, "-p", "all", *capacities(100, 400)),
       run(SMALL, "-p", "all", *capacities(100, 400)))

# No peeking: what a policy did in the first N requests does not depend on what follows.
for cut in (1, 37, 200, 399):
    for options in ([], ["--admission"]):
        whole = run(SMALL, "-p", "all", "--mark", str(cut), *options, *capacities(300))
        part = run(SMALL, "-p", "all", "--requests", str(cut), *options, *capacities(300))
        for a, b in zip(whole, part):
            if a["policy"] != "belady":
                expect(f"{a['policy']}, cut at {cut}", a["hits_marked"], b["hits"])

# A request that does not fit, and a tier that everything fits.
for policy in POLICIES:
    run(SMALL, "-p", policy, *capacities(3))
    expect(f"{policy}, unlimited", run(SMALL, "-p", "belady", *capacities(100000))[0]["hits"],
           run(SMALL, "-p", policy, *capacities(100000))[0]["hits"])

for arguments, text in ((["--trace", "none.jsonl", "-c", "1"], "none.jsonl"),
                        (["--trace", SMALL], "capacity-blocks is missing"),
                        (["--trace", SMALL, "-c", "0"], "capacity-blocks=0"),
                        (["--trace", "tools/larder_sim.c", "-c", "1"], "larder_sim.c:1")):
    done = subprocess.run([SIM, *arguments], capture_output=True, text=True)
    if done.returncode == 0 or text not in done.stderr:
        failed.append(f"{arguments}: {done.stderr}")

if not os.path.exists(BIG):
    print(f"{BIG} is not there: the published table was not checked")
else:
    table = {"fifo": (.0505, .1180, .2480, .3373), "lru": (.0525, .1257, .2789, .3577),
             "s3fifo": (.0770, .1518, .2443, .3492), "belady": (.2464, .3479, .3664, .3664)}
    sizes = (1827, 5483, 18279, 54837)
    rows = run(BIG, "-p", "all", "--holes", "--mark", "6000", *capacities(*sizes))
    ratios = {(row["policy"], row["capacity_blocks"]): row["hit_ratio"] for row in rows}
    for policy, published in table.items():
        for size, ratio in zip(sizes, published):
            expect(f"{policy} at {size}", f"{ratio:.4f}", f"{ratios[policy, size]:.4f}")
    for size, share in ((1827, .20), (5483, .12)):
        gap = ((ratios["value", size] - ratios["lru", size]) /
               (ratios["belady", size] - ratios["lru", size]))
        print(f"value at {size} blocks: {ratios['value', size]:.4f}, closes {gap:.1%} of the gap")
        expect(f"gap at {size}", True, gap >= share)
    for size in sizes:
        best = max(ratios[policy, size] for policy in POLICIES[1:-1])
        print(f"value at {size} blocks: {ratios['value', size] - best:+.4f} beside the best other")
        expect(f"value beside the best at {size}", True, ratios["value", size] >= best - .002)
    cut = run(BIG, "-p", "value", "--requests", "6000", *capacities(*sizes))
    expect("value, big trace cut", [row["hits_marked"] for row in rows if row["policy"] == "value"],
           [row["hits"] for row in cut])

sys.exit(1 if failed else 0)
PYTHON
