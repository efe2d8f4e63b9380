#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Expected logits of small models, computed by transformers in fp32.

  logits.py            recompute and write tests/reference/expected/NAME.json
  logits.py --check    recompute and compare with what is committed; status 77 (skipped) where
                       PyTorch or transformers is missing
  logits.py --models   write the random models below tests/reference/models again (needs numpy only)

NAMEs behind the options restrict what is done. test_reference compares the C forward with the
committed numbers; it needs neither PyTorch nor transformers. Each file names the digest of the
weights it belongs to, so that numbers of older weights are noticed.
"""
import argparse
import hashlib
import importlib.util
import json
import os
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "models" / "tiny"
MODELS = HERE / "models"
EXPECTED = HERE / "expected"
TOLERANCE = 2e-5  # between two releases of PyTorch

BASE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2}
SMALL = {**BASE, "hidden_size": 32, "intermediate_size": 80}

# name: (dtype of the file, config.json)
RANDOM = {
    "qwen2": ("BF16", {**BASE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
                       "tie_word_embeddings": False, "rope_theta": 1000000.0,
                       "use_sliding_window": False, "sliding_window": 128,
                       "max_window_layers": 2}),
    "qwen3": ("BF16", {**BASE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
                       "head_dim": 32, "tie_word_embeddings": True, "attention_bias": False,
                       "rope_theta": 1000000.0}),
    "mistral": ("F16", {**BASE, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
                        "tie_word_embeddings": False, "sliding_window": None,
                        "rope_theta": 10000.0}),
    "llama-biased": ("F32", {**SMALL, "architectures": ["LlamaForCausalLM"],
                             "model_type": "llama", "tie_word_embeddings": True,
                             "attention_bias": True, "mlp_bias": True, "head_dim": 24,
                             "num_hidden_layers": 1, "rope_theta": 10000.0}),
    "llama-linear": ("BF16", {**SMALL, "architectures": ["LlamaForCausalLM"],
                              "model_type": "llama", "tie_word_embeddings": True,
                              "rope_theta": 10000.0,
                              "rope_scaling": {"type": "linear", "factor": 3.0}}),
    "llama-llama3": ("BF16", {**SMALL, "architectures": ["LlamaForCausalLM"],
                              "model_type": "llama", "tie_word_embeddings": True,
                              "rope_theta": 500.0,
                              "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                                               "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                               "original_max_position_embeddings": 64}}),
    "llama-yarn": ("BF16", {**SMALL, "architectures": ["LlamaForCausalLM"],
                            "model_type": "llama", "tie_word_embeddings": True,
                            "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0,
                                                "factor": 4.0, "beta_fast": 8.0,
                                                "original_max_position_embeddings": 64}}),
}


def shapes(config):
    """Names and shapes of a model's tensors, as transformers names them."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dims = config.get("head_dim", hidden // heads)
    architecture = config["architectures"][0]
    out_bias = config.get("attention_bias", False)
    qkv_bias = out_bias or architecture == "Qwen2ForCausalLM"
    found = {"model.embed_tokens.weight": (config["vocab_size"], hidden),
             "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)

    def linear(name, rows, columns, bias):
        found[name + ".weight"] = (rows, columns)
        if bias:
            found[name + ".bias"] = (rows,)

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found[at + "input_layernorm.weight"] = (hidden,)
        found[at + "post_attention_layernorm.weight"] = (hidden,)
        linear(at + "self_attn.q_proj", heads * dims, hidden, qkv_bias)
        linear(at + "self_attn.k_proj", kv_heads * dims, hidden, qkv_bias)
        linear(at + "self_attn.v_proj", kv_heads * dims, hidden, qkv_bias)
        linear(at + "self_attn.o_proj", hidden, heads * dims, out_bias)
        for part, rows, columns in (("gate", wide, hidden), ("up", wide, hidden),
                                    ("down", hidden, wide)):
            linear(at + f"mlp.{part}_proj", rows, columns, config.get("mlp_bias", False))
        if architecture == "Qwen3ForCausalLM":
            found[at + "self_attn.q_norm.weight"] = (dims,)
            found[at + "self_attn.k_norm.weight"] = (dims,)
    return found


def write_model(name):
    import numpy as np
    dtype, config = RANDOM[name]
    random = np.random.Generator(np.random.PCG64(int.from_bytes(name.encode(), "little")))
    header, blobs, offset = {}, [], 0
    for tensor, shape in sorted(shapes(config).items()):
        values = random.standard_normal(shape, dtype=np.float32)
        if tensor.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif len(shape) == 1:
            values *= 0.2
        else:
            values *= 1.5 * shape[1] ** -0.5  # enough for attention to prefer some keys
        if dtype == "BF16":
            bits = values.astype("<f4").view("<u4")
            blob = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            blob = values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
        header[tensor] = {"dtype": dtype, "shape": list(shape),
                          "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    data = struct.pack("<Q", len(text)) + text + b"".join(blobs)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def digest(folder):
    """larder_weights_digest() (kernels/safetensors.h), written a second time."""
    def part(data):
        return struct.pack("<Q", len(data)) + data

    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    state = hashlib.sha256(part(b"larder weights 1"))
    for name, tensor in sorted(header.items()):
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        shape = tensor["shape"]
        for field in (name.encode(), tensor["dtype"].encode(),
                      struct.pack(f"<{1 + len(shape)}Q", len(shape), *shape), data[begin:end]):
            state.update(part(field))
    return state.hexdigest()


def prompts(name):
    """Token sequences; the long ones cross the forward's chunks, blocks of keys and tiles."""
    if name == "tiny":
        text = (TINY / "heldout.txt").read_bytes()
        return [[256, *text[:500]], [256, *b"Who lives in the house by the river?"]]
    step = (7 * len(name)) | 1
    return [[(i * i + step * i + 3) % 256 for i in range(200)], [1]]


def compute(name, folder):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    sequences = []
    with torch.no_grad():
        for tokens in prompts(name):
            logits = model(torch.tensor([tokens])).logits[0]
            rows = sorted({0, len(tokens) // 3, len(tokens) - 1})
            sequences.append({"tokens": tokens,
                              "rows": [{"position": row,
                                        "logits": [float(f"{x:.7g}") for x in logits[row].tolist()]}
                                       for row in rows]})
    return {"model": str(folder.relative_to(HERE.parents[1])), "weights": digest(folder),
            "sequences": sequences}


def largest_difference(a, b):
    if a["weights"] != b["weights"]:
        return float("inf")  # the committed numbers are those of other weights
    return max(abs(x - y)
               for one, other in zip(a["sequences"], b["sequences"], strict=True)
               for row, twin in zip(one["rows"], other["rows"], strict=True)
               for x, y in zip(row["logits"], twin["logits"], strict=True))


def dump(expected):
    """One line per row of logits, so that a diff shows which changed."""
    lines = json.dumps(expected, indent=1).splitlines()
    text, depth = "", 0
    for line in lines:
        stripped = line.strip()
        inner = depth > 0
        if stripped.endswith("[") and stripped.startswith(('"tokens"', '"logits"')):
            depth = 1
        elif depth and stripped.startswith("]"):
            depth = 0
        text += (" " + stripped if inner else "\n" + line) if text else line
    return text + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed numbers")
    parser.add_argument("--models", action="store_true", help="write the random models again")
    parser.add_argument("names", nargs="*", help=f"of tiny, {', '.join(RANDOM)}")
    options = parser.parse_args()
    names = options.names or ["tiny", *RANDOM]
    if unknown := set(names) - {"tiny", *RANDOM}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.models:
        for name in names:
            if name in RANDOM:
                write_model(name)
        return 0
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        print(f"{' and '.join(missing)} not installed", file=sys.stderr)
        return 77 if options.check else 1
    os.environ["HF_HUB_OFFLINE"] = "1"  # every model lies in this tree
    failed = False
    for name in names:
        fresh = compute(name, TINY if name == "tiny" else MODELS / name)
        path = EXPECTED / f"{name}.json"
        if options.check:
            difference = largest_difference(fresh, json.loads(path.read_text()))
            failed |= difference > TOLERANCE
            print(f"{name}: largest difference {difference:.2e}")
        else:
            EXPECTED.mkdir(exist_ok=True)
            path.write_text(dump(fresh))
            print(f"{name}: {path.relative_to(HERE.parents[1])}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
