# SPDX-License-Identifier: Apache-2.0
"""KVQuant's code books with Fisher weights, into a profile that `larder calibrate` made.

    python3 tests/reference/fisher.py MODEL_DIR TEXT PROFILE OUT

As tools/calibrate/codebooks.c finds them, but each number weighs as much as the loss feels it: the
square of the gradient of the next token's log probability with respect to this number (Hooper et
al., NeurIPS 2024). Replaces kvquant.SIDE.lutN and .normN and sets the metadata's kvquant_weights to
"fisher"; thresholds stay. Needs PyTorch and transformers; tokens are the text's bytes behind the
model's start token, as for larder calibrate --text.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

WINDOW = 1024
TAIL_SHARE = .005
ITERATIONS = 50
BINS = 8192


def read_profile(path):
    data = Path(path).read_bytes()
    length, = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + length]), bytearray(data[8 + length:])


def write_profile(path, header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def tensor(header, data, name):
    entry = header[name]
    begin, end = entry["data_offsets"]
    return np.frombuffer(data, np.float32, (end - begin) // 4, begin).reshape(entry["shape"])


def outputs(model):
    """The modules whose outputs are K without rotary embedding, and V, by layer."""
    for layer in model.model.layers:
        attention = layer.self_attn
        yield getattr(attention, "k_norm", attention.k_proj), attention.v_proj


def rows_and_squares(model, tokens):
    """By layer and side: numbers [token, channel] and squared gradients."""
    kept = {}

    def keep(key):
        def hook(_module, _inputs, output):
            output.retain_grad()
            kept[key] = output
        return hook

    hooks = [module.register_forward_hook(keep((number, side)))
             for number, pair in enumerate(outputs(model)) for side, module in zip("kv", pair)]
    for first in range(0, len(tokens) - WINDOW + 2, WINDOW - 1):
        window = [model.config.bos_token_id, *tokens[first:first + WINDOW - 1]]
        ids = torch.tensor([window])
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        yield {key: (x.detach().reshape(WINDOW, -1).numpy(),
                     np.square(x.grad.reshape(WINDOW, -1).numpy() * WINDOW))
               for key, x in kept.items()}
    for hook in hooks:
        hook.remove()


def normalised_k(x, weight, low, high):
    inside = (x >= low) & (x <= high) & (high > low)
    y = (x - (low + high) / 2) / np.maximum((high - low) / 2, 1e-30)
    return y[inside], weight[inside]


def normalised_v(x, weight):
    off = int(np.ceil(TAIL_SHARE * x.shape[1]))
    ends = np.sort(x, axis=1)
    low, high = ends[:, off:off + 1], ends[:, -1 - off:x.shape[1] - off]
    return normalised_k(x, weight, low, high)


def bin_values():
    return (np.arange(BINS) + .5) / (BINS / 2) - 1


def histograms(x, weight):
    """How often, and with what weight, numbers fall into each bin of [-1, 1]."""
    bins = np.clip((x + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64)
    return np.stack([np.bincount(bins, minlength=BINS),
                     np.bincount(bins, weights=weight, minlength=BINS)])


def weighted_levels(weight, count):
    x = bin_values()
    sums = np.concatenate([[0], np.cumsum(weight)])
    moments = np.concatenate([[0], np.cumsum(weight * x)])
    levels = x[np.searchsorted(sums[1:], (np.arange(count) + .5) / count * sums[-1])]
    for _ in range(ITERATIONS):
        ends = np.searchsorted(x, (levels[1:] + levels[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [BINS]])
        mass = np.diff(sums[ends])
        levels = np.where(mass > 0, np.diff(moments[ends]) / np.maximum(mass, 1e-300), levels)
    return levels


def norm(counts, levels):
    x = bin_values()
    quantized = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
    means = [np.average(y, weights=counts) for y in (x, quantized)]
    spreads = [np.sqrt(np.average(np.square(y - mean), weights=counts))
               for y, mean in zip((x, quantized), means)]
    scale = spreads[0] / spreads[1]
    return scale, means[0] - means[1] * scale


def main(model_dir, text, profile, out):
    header, data = read_profile(profile)
    low, high = (tensor(header, data, f"kvquant.k.{end}") for end in ("low", "high"))
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    gathered = {}
    for window in rows_and_squares(model, list(Path(text).read_bytes())):
        for (layer, side), (x, weight) in window.items():
            found = (normalised_k(x, weight, low[layer], high[layer]) if side == "k"
                     else normalised_v(x, weight))
            gathered[layer, side] = gathered.get((layer, side), 0) + histograms(*found)
    for (layer, side), (counts, weights) in gathered.items():
        for count in (4, 8, 16):
            levels = weighted_levels(weights, count)
            for name, values in ((f"lut{count}", levels), (f"norm{count}", norm(counts, levels))):
                entry = header[f"kvquant.{side}.{name}"]
                width = entry["shape"][1]
                begin = entry["data_offsets"][0] + 4 * width * layer
                data[begin:begin + 4 * width] = np.asarray(values, np.float32).tobytes()
    header["__metadata__"]["kvquant_weights"] = "fisher"
    write_profile(out, header, data)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: fisher.py MODEL_DIR TEXT PROFILE OUT")
    main(*sys.argv[1:])
