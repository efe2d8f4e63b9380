# SPDX-License-Identifier: Apache-2.0
"""The small model in plain PyTorch: a Llama whose tensors carry transformers' names.

Keys are also handed out before their rotation, so that a test can place them anywhere.
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = Path(__file__).parent
BOS = 256


@dataclass(frozen=True)
class Config:
    vocab_size: int = 272
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


def rotate(x, cos, sin):
    """RoPE on [batch, heads, tokens, head_dim]; channel i is paired with i + head_dim / 2."""
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)


def causal(q, k, v):
    """Attention of queries that are the last of the keys' tokens; k and v have fewer heads."""
    queries, keys = q.shape[2], k.shape[2]
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (c.num_attention_heads, c.num_key_value_heads,
                                                    c.head_dim)
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c.hidden_size, bias=False)

    def forward(self, x, rope, attend, before, kept):
        batch, count, _ = x.shape
        q = self.q_proj(x).view(batch, count, self.heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(batch, count, self.kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(batch, count, self.kv_heads, -1).transpose(1, 2)
        if kept is not None:
            kept.append((k, v))
        q, k = rotate(q, *rope), rotate(k, *rope)
        if before is not None:
            k = torch.cat((before[0].expand(batch, -1, -1, -1), k), 2)
            v = torch.cat((before[1].expand(batch, -1, -1, -1), v), 2)
        y = attend(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, count, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)

    def forward(self, x, *context):
        x = x + self.self_attn(self.input_layernorm(x), *context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, config=Config()):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else weight.shape[1] ** -0.5)
        half = config.head_dim // 2
        turns = config.rope_theta ** (-torch.arange(half).float() / half)
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), turns)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rope(self, positions):
        """Tables for [batch, tokens] positions, with room for the heads."""
        return self.cos[positions][:, None], self.sin[positions][:, None]

    def forward(self, tokens, positions, attend=causal, before=None, kept=None):
        """Logits of [batch, tokens].

        attend: softmax(q k / sqrt(head_dim)) v under some mask.
        before: per layer rotated keys and values that come before the tokens.
        kept: a list that receives per layer the tokens' keys before RoPE and their values.
        """
        rope = self.rope(positions)
        x = self.embed_tokens(tokens)
        for number, layer in enumerate(self.layers):
            x = layer(x, rope, attend, before and before[number], kept)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def save(model, folder=FOLDER, state=None):
    """Write model.safetensors (bf16, embeddings tied) and config.json for transformers."""
    state = {f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous()
             for name, tensor in (state or model.state_dict()).items()}
    save_file(state, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
    facts = {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
             **asdict(model.config), "hidden_act": "silu", "attention_bias": False,
             "mlp_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True,
             "bos_token_id": BOS, "eos_token_id": None, "pad_token_id": None,
             "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16"}
    (Path(folder) / "config.json").write_text(json.dumps(facts, indent=2) + "\n")


def load(folder=FOLDER):
    """The committed model, its bf16 weights widened to fp32."""
    facts = json.loads((Path(folder) / "config.json").read_text())
    model = Llama(Config(**{name: facts[name] for name in asdict(Config())}))
    state = load_file(str(Path(folder) / "model.safetensors"))
    model.load_state_dict({name.removeprefix("model."): tensor.float()
                           for name, tensor in state.items()})
    return model.eval()
