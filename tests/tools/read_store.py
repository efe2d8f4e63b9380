#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads the segments of a store by docs/FORMAT.md alone: a second opinion on what larder wrote.

    read_store.py DIR [--recipe raw]     prints one JSON object; exit 1 if anything is not valid

Shares no code with larder. Keys are computed again from tokens and the tenant's key, tags are
checked, and sections of the recipe `raw` are measured against the model's shape.
"""
import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path

import xxhash

PAGE = 4096
RECORD = struct.Struct("<QHHHHQQQIIQ32s32s32s16s32sIIIIQHHBB2sff16s")
SECTION = struct.Struct("<HHHHB7sQQ16s")
MODEL = struct.Struct("<64s32sIIIIIIIIIIddddddd")
ENTRY, TOMBSTONE, MARK, MODEL_RECORD = 1, 2, 3, 4
HEAD = 0xFFFFFFFF


class Invalid(Exception):
    """What docs/FORMAT.md says and the bytes do not."""


def demand(condition, what):
    if not condition:
        raise Invalid(what)


def round_up(value, align):
    return -(-value // align) * align


def tag(data, key, variant, segment, page, generation, number):
    seed = xxhash.xxh3_64_intdigest(
        key + struct.pack("<IIIQI", variant, segment, page, generation, number))
    # XXH3-128 is kept as two little-endian words, the low one first.
    return xxhash.xxh3_128_intdigest(data, seed=seed).to_bytes(16, "little")


def block_key(tenant_key, fingerprint, parent, extra, tokens):
    parts = (tenant_key, b"larder1", fingerprint, parent, extra,
             struct.pack("<I", len(tokens)), struct.pack(f"<{len(tokens)}I", *tokens))
    return hashlib.sha256(b"".join(struct.pack("<I", len(part)) + part for part in parts)).digest()


def read_record(data, offset, segment):
    """One record as a dict, or None where there is none."""
    if data[offset:offset + 8] != b"LLRDREC1":
        return None
    (_, version, kind, tag_kind, flags, record_bytes, raw_bytes, generation, segment_id, page,
     created, key, parent, model, tenant, profile, variant, head_bytes, extra_bytes, token_count,
     position, section_count, recipe_bytes, quality, computed_on, reserved, k_error, v_error,
     head_tag) = RECORD.unpack_from(data, offset)
    demand(version == 1 and tag_kind == 1 and flags == 0 and reserved == bytes(2), "header")
    demand(kind in (ENTRY, TOMBSTONE, MARK, MODEL_RECORD), "type")
    demand((segment_id, page) == (segment, offset // PAGE), "place")
    demand(record_bytes % PAGE == 0 and offset + record_bytes <= len(data), "record bytes")
    record = data[offset:offset + record_bytes]

    extra_at = RECORD.size
    recipe_at = extra_at + extra_bytes
    tokens_at = round_up(recipe_at + recipe_bytes, 4)
    directory_at = round_up(tokens_at + 4 * token_count, 8)
    demand(head_bytes == directory_at + SECTION.size * section_count, "head bytes")
    head = record[:240] + bytes(16) + record[256:head_bytes]
    bound = (key, variant, segment_id, page, generation)
    demand(tag(head, *bound, HEAD) == head_tag, "tag of the head")

    sections, end = [], round_up(head_bytes, 64)
    for number in range(section_count):
        (layer, layers, head_first, heads, section_kind, zeros, at, size,
         section_tag) = SECTION.unpack_from(record, directory_at + SECTION.size * number)
        demand(zeros == bytes(7) and section_kind <= 1 and layers and heads, "section")
        demand(at % 64 == 0 and at >= end and at + size <= record_bytes, "place of a section")
        demand(tag(record[at:at + size], *bound, number) == section_tag, "tag of a section")
        sections.append({"layer": layer, "kind": "KV"[section_kind], "bytes": size,
                         "heads": heads})
        end = at + size
    return {
        "kind": kind, "offset": offset, "record_bytes": record_bytes, "raw_bytes": raw_bytes,
        "generation": generation, "created": created, "key": key, "parent": parent,
        "model": model, "tenant": tenant, "position": position, "quality": quality,
        "extra": record[extra_at:recipe_at],
        "recipe": record[recipe_at:recipe_at + recipe_bytes].decode(),
        "tokens": struct.unpack_from(f"<{token_count}I", record, tokens_at),
        "sections": sections,
    }


def read_segment(path):
    data = path.read_bytes()
    segment = int(path.stem)
    magic, version, number = struct.unpack_from("<8sII", data)
    demand(magic == b"LRDSEGM1" and version == 1 and number == segment, "segment header")
    checked = xxhash.xxh3_128_intdigest(data[:80]).to_bytes(16, "little")
    demand(data[80:96] == checked and data[96:PAGE] == bytes(PAGE - 96), "segment header's sum")
    offset = PAGE
    while offset < len(data):
        record = read_record(data, offset, segment)
        if record:
            yield record
        offset += record["record_bytes"] if record else PAGE


def live_entries(records):
    """What a rebuild would find: newest of each key, not removed, with all its ancestors."""
    removed, newest = {}, {}
    for record in records:
        if record["kind"] == TOMBSTONE:
            for at in range(0, len(record["extra"]), 32):
                key = record["extra"][at:at + 32]
                removed[key] = max(removed.get(key, 0), record["generation"])
        elif record["kind"] == ENTRY:
            known = newest.get(record["key"])
            if not known or known["generation"] < record["generation"]:
                newest[record["key"]] = record
    live = {key: record for key, record in newest.items()
            if record["generation"] > removed.get(key, 0)}

    def rooted(record):
        while record and record["parent"] != bytes(32):
            record = live.get(record["parent"])
        return record is not None
    return [record for record in live.values() if rooted(record)]


def check_entry(record, shapes, tenant_keys):
    if record["tokens"] and tenant_keys:
        keys = [block_key(key, record["model"], record["parent"], record["extra"],
                          record["tokens"]) for key in tenant_keys]
        demand(record["key"] in keys, "key of the tokens")
    shape = shapes.get(record["model"])
    demand(shape is not None, "model of an entry")
    layers, heads, k_dims, v_dims, element = shape
    count = len(record["tokens"])
    demand(record["raw_bytes"] == count * layers * heads * (k_dims + v_dims) * element, "raw size")
    demand([(s["layer"], s["kind"]) for s in record["sections"]] ==
           [(layer, kind) for layer in range(layers) for kind in "KV"], "order of sections")
    if record["recipe"] == "raw":
        for section in record["sections"]:
            dims = k_dims if section["kind"] == "K" else v_dims
            demand(section["bytes"] == count * heads * dims * element, "size of a raw section")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tenant-key", action="append", default=[], type=bytes.fromhex,
                        help="hex; keys are computed again if it is given")
    arguments = parser.parse_args()

    records, shapes = [], {}
    try:
        for path in sorted((arguments.directory / "segments").glob("*.seg")):
            records += read_segment(path)
        for record in records:
            if record["kind"] == MODEL_RECORD:
                fields = MODEL.unpack(record["extra"])
                layers, heads, k_dims, v_dims, dtype = fields[2:7]
                shapes[record["model"]] = (layers, heads, k_dims, v_dims, 4 if dtype == 1 else 2)
        live = live_entries(records)
        for record in live:
            check_entry(record, shapes, arguments.tenant_key)
    except Invalid as problem:
        print(json.dumps({"valid": False, "problem": str(problem)}))
        return 1
    print(json.dumps({
        "valid": True,
        "records": len(records),
        "entries": len(live),
        "raw_bytes": sum(record["raw_bytes"] for record in live),
        "record_bytes": sum(record["record_bytes"] for record in live),
        "keys": sorted(record["key"].hex() for record in live),
    }))
    return 0


if __name__ == "__main__":
    sys.exit(main())
