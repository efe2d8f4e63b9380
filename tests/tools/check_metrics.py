#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""check_metrics.py METRICS STATUS TENANTS - reads Prometheus' text format 0.0.4 strictly, and
compares the values with those of `larder status --json` and `larder tenants --json`."""
import json
import re
import sys

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?[0-9.e+-]+|NaN|[+-]Inf)$")


def fail(what):
    sys.exit(f"check_metrics: {what}")


def parse(text):
    """{(name, labels): value}; fails on what the format forbids."""
    samples, kinds, helped, current, done = {}, {}, set(), None, set()
    if not text.endswith("\n"):
        fail("the last line does not end")
    for number, line in enumerate(text[:-1].split("\n"), 1):
        where = f"line {number}: {line!r}"
        if line.startswith("# "):
            match = re.match(rf"# (HELP|TYPE) ({NAME}) (.+)$", line)
            if not match:
                fail(f"{where} is no HELP or TYPE")
            word, name, rest = match.groups()
            if word == "HELP":
                if name in helped:
                    fail(f"{where}: a second HELP")
                helped.add(name)
                continue
            if name in kinds or name in done:
                fail(f"{where}: a second TYPE, or one behind its samples")
            if rest not in ("counter", "gauge", "histogram"):
                fail(f"{where}: unknown type")
            if (rest == "counter") != name.endswith("_total"):
                fail(f"{where}: counters end in _total, and nothing else does")
            kinds[name] = rest
            continue
        match = SAMPLE.match(line)
        if not match:
            fail(f"{where} is no sample")
        name, labels, value = match.group(1), match.group(2) or "", match.groups()[-1]
        sample = name
        base = re.sub("_(bucket|sum|count)$", "", name)
        if kinds.get(base) == "histogram":
            name = base
        elif kinds.get(name) == "histogram":
            fail(f"{where}: a histogram has only buckets, sum and count")
        if name not in kinds or name not in helped:
            fail(f"{where}: without TYPE and HELP")
        if name != current:
            if name in done:
                fail(f"{where}: samples of a metric are not together")
            done.add(name)
            current = name
        pairs = tuple(sorted((k, re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), v))
                             for k, v in re.findall(LABEL, labels)))
        if (sample, pairs) in samples:
            fail(f"{where}: twice")
        samples[sample, pairs] = float(value)
    return take_histograms(samples, [name for name, kind in kinds.items() if kind == "histogram"])


def take_histograms(samples, names):
    """Checks their rules: bounds rise, counts do not fall, +Inf is the count. They are left out of
    what it returns."""
    for name in names:
        groups = {}
        for (sample, pairs), value in samples.items():
            if sample.startswith(name + "_"):
                key = tuple(pair for pair in pairs if pair[0] != "le")
                groups.setdefault(key, []).append((sample, dict(pairs).get("le"), value))
        if not groups:
            fail(f"{name} has no samples")
        for key, rows in groups.items():
            buckets = [(float(le), value) for sample, le, value in rows if le is not None]
            counts = [value for _, value in buckets]
            if buckets != sorted(buckets) or counts != sorted(counts):
                fail(f"{name}{key}: buckets do not rise: {buckets}")
            rest = {sample: value for sample, le, value in rows if le is None}
            if set(rest) != {name + "_sum", name + "_count"}:
                fail(f"{name}{key}: wants a sum and a count")
            if not buckets or buckets[-1] != (float("inf"), rest[name + "_count"]):
                fail(f"{name}{key}: its last bucket is not +Inf with the count")
            if (rest[name + "_count"] == 0) != (rest[name + "_sum"] == 0):
                fail(f"{name}{key}: sum and count do not fit each other")
        samples = {k: v for k, v in samples.items() if not k[0].startswith(name + "_")}
    return samples


PLAIN = {
    "connections": None,  # of the one that asks, too
    "uptime_s": None,  # another second may have begun
    "leases": "larder_leases",
    "in_flight": "larder_in_flight_requests",
    "entries": "larder_entries",
    "raw_bytes": "larder_raw_bytes",
    "slab_bytes": "larder_slab_bytes",
    "slab_bytes_retired": "larder_retired_slab_bytes",
    "segments": "larder_segments",
    "segment_bytes": "larder_segment_bytes",
    "staging_bytes": "larder_staging_bytes",
    "puts": "larder_puts_total",
    "puts_refused": "larder_puts_refused_total",
    "gets": "larder_gets_total",
    "blocks_missed": "larder_missed_blocks_total",
    "corrupt": "larder_corrupt_total",
    "removed": "larder_removed_total",
    "synced_groups": "larder_synced_groups_total",
    "bytes_written": "larder_written_bytes_total",
    "bytes_not_admitted": "larder_not_admitted_bytes_total",
    "bytes_demoted": "larder_demoted_bytes_total",
    "demote_entries": "larder_demote_entries_total",
    "demote_saved_bytes": "larder_demote_saved_bytes_total",
    "bytes_read": "larder_read_bytes_total",
    "io_errors": "larder_io_errors_total",
    "frames_refused": "larder_refused_frames_total",
    "fell_back": "larder_fell_back_sections_total",
    "recovered_entries": "larder_recovered_entries",
    "recovered_from_tail": "larder_recovered_tail_entries",
    "read_only": "larder_read_only",
    "index_rebuilt": "larder_index_rebuilt",
}
TIERED = {
    "larder_tier_entries": ("entries_host", "entries_durable"),
    "larder_tier_bytes": ("bytes_host", "bytes_ssd"),
    "larder_tier_limit_bytes": ("host_bytes_max", "ssd_bytes_max"),
    "larder_hit_blocks_total": ("blocks_hit_host", "blocks_hit_ssd"),
    "larder_hit_bytes_total": ("bytes_hit_host", "bytes_hit_ssd"),
    "larder_evicted_total": ("evicted_host", "evicted_ssd"),
}
TENANT = {
    "entries": "larder_tenant_entries",
    "bytes_slabs": "larder_tenant_slab_bytes",
    "bytes_slabs_retired": "larder_tenant_retired_slab_bytes",
    "bytes_pinned": "larder_tenant_pinned_bytes",
    "connections": "larder_tenant_connections",
    "gets": "larder_tenant_gets_total",
    "puts": "larder_tenant_puts_total",
    "blocks_missed": "larder_tenant_missed_blocks_total",
    "corrupt": "larder_tenant_corrupt_total",
    "fell_back": "larder_tenant_fell_back_sections_total",
}
TENANT_TIERED = {
    "larder_tenant_tier_entries": ("entries_host", "entries_durable"),
    "larder_tenant_tier_bytes": ("bytes_host", "bytes_ssd"),
    "larder_tenant_tier_quota_bytes": ("host_bytes_max", "ssd_bytes_max"),
    "larder_tenant_hit_blocks_total": ("blocks_hit_host", "blocks_hit_ssd"),
}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        samples = parse(file.read())
    with open(sys.argv[2], encoding="utf-8") as file:
        status = json.load(file)
    with open(sys.argv[3], encoding="utf-8") as file:
        tenants = json.load(file)
    wanted = {("larder_up", ()): 1, ("larder_recovery_seconds", ()): status["recovery_us"] / 1e6}
    info = {key: status[key] for key in ("version", "directory", "io", "recipe")}
    wanted["larder_info", tuple(sorted(info.items()))] = 1
    for key, name in PLAIN.items():
        if name:
            wanted[name, ()] = status[key]
    for name, keys in TIERED.items():
        for tier, key in zip(("host", "ssd"), keys):
            wanted[name, (("tier", tier),)] = status[key]
    for tenant in tenants:
        label = ("tenant", tenant["name"])
        for key, name in TENANT.items():
            wanted[name, (label,)] = tenant[key]
        for name, keys in TENANT_TIERED.items():
            for tier, key in zip(("host", "ssd"), keys):
                wanted[name, (label, ("tier", tier))] = tenant[key]
    for key, value in wanted.items():
        if key not in samples:
            fail(f"{key} is missing")
        if samples[key] != value:
            fail(f"{key}: {samples[key]}, not {value}")
    events = {key for key in samples if key[0] == "larder_events_total"}
    if not events or any([pair[0] for pair in key[1]] != ["event"] for key in events):
        fail("events by reason are missing")
    scrub = {key for key in samples if key[0].startswith("larder_scrub_")}
    if len(scrub) != 6:
        fail(f"of scrubbing there are {sorted(scrub)}")
    left = set(samples) - events - scrub - set(wanted)
    left -= {("larder_uptime_seconds", ()), ("larder_connections", ())}
    if left:
        fail(f"{sorted(left)}: with nothing to compare them to")


main()
