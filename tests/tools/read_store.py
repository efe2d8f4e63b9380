#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads the segments of a store by docs/FORMAT.md alone: a second opinion on what larder wrote.

    read_store.py DIR [--key-file FILE]     prints one JSON object; exit 1 if anything is not valid

Shares no code with larder. Keys are computed again from tokens and the tenant's key, tags are
checked, and sections of the recipe `raw` are measured against the model's shape.
"""
import argparse
import ctypes
import ctypes.util
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

import xxhash

PAGE = 4096
RECORD = struct.Struct("<QHHHHQQQIIQ32s32s32s16s32sIIIIQHHBBHff16s")
SECTION = struct.Struct("<HHHHBBH4sQQ16s")
MARK_OF = struct.Struct("<32sQQQQQQbB6s")
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


def binding(key, variant, segment, page, generation, number):
    return key + struct.pack("<IIIQI", variant, segment, page, generation, number)


def tag(data, *bound):
    seed = xxhash.xxh3_64_intdigest(binding(*bound))
    # XXH3-128 is kept as two little-endian words, the low one first.
    return xxhash.xxh3_128_intdigest(data, seed=seed).to_bytes(16, "little")


def hkdf(key, salt, info):
    """HKDF-SHA256 of 32 bytes, by its definition."""
    extracted = hmac.new(salt, key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def gcm_open(key, nonce, added, sealed, sealed_tag):
    """What AES-256-GCM of libcrypto makes of it, or Invalid."""
    crypto = gcm_open.library
    context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    out, done = ctypes.create_string_buffer(len(sealed) + 16), ctypes.c_int()
    cipher = ctypes.c_void_p(crypto.EVP_aes_256_gcm())
    good = crypto.EVP_DecryptInit_ex(context, cipher, None, key, nonce) == 1
    good &= crypto.EVP_DecryptUpdate(context, None, ctypes.byref(done), added, len(added)) == 1
    if sealed:
        good &= crypto.EVP_DecryptUpdate(context, out, ctypes.byref(done), sealed,
                                         len(sealed)) == 1
    good &= crypto.EVP_CIPHER_CTX_ctrl(context, 0x11, 16, sealed_tag) == 1  # SET_TAG
    good &= crypto.EVP_DecryptFinal_ex(context, None, ctypes.byref(done)) == 1
    crypto.EVP_CIPHER_CTX_free(context)
    demand(good, "tag of AES-256-GCM")
    return out.raw[:len(sealed)]


def load_crypto():
    library = ctypes.CDLL(ctypes.util.find_library("crypto"))
    library.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
    library.EVP_aes_256_gcm.restype = ctypes.c_void_p
    gcm_open.library = library


def read_data_keys(directory, key_file):
    """By tenant's id; that of the store is under 16 zeros."""
    wrap = key_file.read_bytes()
    if len(wrap) > 32:
        wrap = bytes.fromhex(wrap.decode())
    data = (directory / "tenants").read_bytes()
    magic, version, count = struct.unpack_from("<8sII", data)
    demand(magic == b"LRDTNNT1" and version == 2, "version of tenants")
    # The canonical form of XXH3-128: its value, big-endian.
    checked = xxhash.xxh3_128_digest(data[:48] + bytes(16) + data[64:])
    demand(checked == data[48:64], "sum of tenants")
    salt, wrapped_tag = data[64:96], data[96:112]
    plain = gcm_open(hkdf(wrap, salt, b"larder tenants 2"), bytes(12), data[:48], data[112:],
                     wrapped_tag)
    demand(len(plain) == 32 + count * 144, "length of tenants")
    keys = {bytes(16): plain[:32]}
    for at in range(32, len(plain), 144):
        keys[plain[at + 64:at + 80]] = plain[at + 112:at + 144]
    return keys


def open_head(record, head_bytes, subkey, bound):
    """The record with its head decrypted."""
    added = binding(*bound, HEAD) + record[:240] + bytes(16)
    nonce = struct.pack("<III", bound[3], HEAD, 0)
    return record[:256] + gcm_open(subkey, nonce, added, record[256:head_bytes],
                                   record[240:256]) + record[head_bytes:]


def block_key(tenant_key, fingerprint, parent, extra, tokens):
    parts = (tenant_key, b"larder1", fingerprint, parent, extra,
             struct.pack("<I", len(tokens)), struct.pack(f"<{len(tokens)}I", *tokens))
    return hashlib.sha256(b"".join(struct.pack("<I", len(part)) + part for part in parts)).digest()


def read_record(data, offset, segment, keys):
    """One record as a dict, or None where there is none."""
    if data[offset:offset + 8] != b"LLRDREC1":
        return None
    (_, version, kind, tag_kind, flags, record_bytes, raw_bytes, generation, segment_id, page,
     created, key, parent, model, tenant, profile, variant, head_bytes, extra_bytes, token_count,
     position, section_count, recipe_bytes, quality, computed_on, base_kl, k_error, v_error,
     head_tag) = RECORD.unpack_from(data, offset)
    demand(version == 1 and tag_kind == (2 if keys else 1), "version and tag kind")
    demand(flags == 0 and base_kl < 0x7f80 and (base_kl == 0 or computed_on), "flags, base KL")
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
    if keys:
        demand(tenant in keys, "tenant of a record")
        subkey = hkdf(keys[tenant], data[32:64], b"larder record 1")
        record = open_head(record, head_bytes, subkey, bound)
    else:
        demand(tag(head, *bound, HEAD) == head_tag, "tag of the head")

    sections, end = [], round_up(head_bytes, 64)
    for number in range(section_count):
        (layer, layers, head_first, heads, section_kind, flags, error, zeros, at,
         size, section_tag) = SECTION.unpack_from(record, directory_at + SECTION.size * number)
        demand(zeros == bytes(4) and section_kind <= 1 and layers and heads, "section")
        demand(flags <= 3 and error < 0x7f80 and (flags & 1 or error == 0), "error of a section")
        demand(at % 64 == 0 and at >= end and at + size <= record_bytes, "place of a section")
        if keys:
            gcm_open(subkey, struct.pack("<III", page, number, 0), binding(*bound, number),
                     record[at:at + size], section_tag)
        else:
            demand(tag(record[at:at + size], *bound, number) == section_tag, "tag of a section")
        known = struct.unpack("<f", struct.pack("<I", error << 16))[0] if flags & 1 else None
        sections.append({"layer": layer, "kind": "KV"[section_kind], "bytes": size,
                         "heads": heads, "error": known, "fell_back": bool(flags & 2)})
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


def read_segment(path, keys):
    data = path.read_bytes()
    segment = int(path.stem)
    magic, version, number = struct.unpack_from("<8sII", data)
    demand(magic == b"LRDSEGM1" and version == 1 and number == segment, "segment header")
    checked = xxhash.xxh3_128_intdigest(data[:80]).to_bytes(16, "little")
    rest = bytearray(data[96:PAGE])
    if keys:
        demand(data[2048:2048 + 96] == data[:96], "copy of the segment's header")
        rest[2048 - 96:2048] = bytes(96)
    demand(data[80:96] == checked and rest == bytes(PAGE - 96), "segment header's sum")
    offset = PAGE
    while offset < len(data):
        record = read_record(data, offset, segment, keys)
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


def live_marks(records, live):
    """The newest of each key, if it is newer than the entry and says something."""
    newest = {}
    for record in records:
        if record["kind"] != MARK:
            continue
        demand(len(record["extra"]) % MARK_OF.size == 0, "length of marks")
        demand(record["record_bytes"] == PAGE, "a record of marks is a page")
        for key, generation, expires, pin_end, _, _, _, priority, pinned, zeros in \
                MARK_OF.iter_unpack(record["extra"]):
            demand(zeros == bytes(6) and pinned <= 1 and -8 <= priority <= 8, "mark")
            if key not in newest or newest[key]["generation"] < generation:
                newest[key] = {"generation": generation, "expires_s": expires,
                               "pin_expires_s": pin_end, "priority": priority,
                               "pinned": pinned == 1}
    generations = {record["key"]: record["generation"] for record in live}
    return {key.hex(): mark for key, mark in sorted(newest.items())
            if key in generations and mark["generation"] > generations[key]
            and (mark["pinned"] or mark["expires_s"] or mark["priority"])}


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
    parser.add_argument("--key-file", type=Path, help="of an encrypted store")
    arguments = parser.parse_args()

    records, shapes = [], {}
    try:
        keys = None
        if arguments.key_file:
            load_crypto()
            keys = read_data_keys(arguments.directory, arguments.key_file)
        for path in sorted((arguments.directory / "segments").glob("*.seg")):
            records += read_segment(path, keys)
        for record in records:
            if record["kind"] == MODEL_RECORD:
                fields = MODEL.unpack(record["extra"])
                layers, heads, k_dims, v_dims, dtype = fields[2:7]
                shapes[record["model"]] = (layers, heads, k_dims, v_dims, 4 if dtype == 1 else 2)
        live = live_entries(records)
        for record in live:
            check_entry(record, shapes, arguments.tenant_key)
        marks = live_marks(records, live)
    except Invalid as problem:
        print(json.dumps({"valid": False, "problem": str(problem)}))
        return 1
    print(json.dumps({
        "valid": True,
        "records": len(records),
        "entries": len(live),
        "raw_bytes": sum(record["raw_bytes"] for record in live),
        "record_bytes": sum(record["record_bytes"] for record in live),
        "marks": marks,
        "keys": sorted(record["key"].hex() for record in live),
    }))
    return 0


if __name__ == "__main__":
    sys.exit(main())
