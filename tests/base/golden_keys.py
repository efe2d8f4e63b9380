#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the golden vectors of test_key.c, from the words of docs/FORMAT.md ("Keys") alone.

Run it by hand after a change of the format; it shares no code with larder.
"""
import hashlib
import struct


def parts(*values):
    """SHA-256 over parts, each behind its length as a little-endian u32."""
    h = hashlib.sha256()
    for value in values:
        h.update(struct.pack("<I", len(value)) + value)
    return h


def fingerprint(weights, shape, angles):
    return parts(
        b"larder model 1", weights, struct.pack("<10I", *shape), struct.pack("<7d", *angles)
    )


def block(tenant_key, model, parent, extra, tokens):
    return parts(
        tenant_key,
        b"larder1",
        model,
        parent,
        extra,
        struct.pack("<I", len(tokens)),
        struct.pack(f"<{len(tokens)}I", *tokens),
    )


def main():
    weights = bytes(range(100, 132))
    # layers, kv_heads, k_dims, v_dims, dtype, vocab, rope kind, interleaved, rotary_dims,
    # original_max_position
    shape = (32, 8, 128, 128, 3, 128256, 3, 0, 128, 8192)
    # theta, factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow, attention_factor
    angles = (500000.0, 8.0, 1.0, 4.0, 0.0, 0.0, 1.0)
    model = fingerprint(weights, shape, angles).digest()
    tenant_key = bytes(range(32))
    first = block(tenant_key, model, bytes(32), b"", list(range(1, 257))).digest()
    second = block(tenant_key, model, first, b"lora-7", [5, 4, 3]).digest()
    print("sha256('larder')", hashlib.sha256(b"larder").hexdigest())
    print("fingerprint     ", model.hex())
    print("first block     ", first.hex())
    print("second block    ", second.hex())


if __name__ == "__main__":
    main()
