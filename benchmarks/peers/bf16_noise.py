#!/usr/bin/env python3
"""How far two BF16 passes over the same tokens may be apart: PyTorch against itself, and Nibble.

    nibble export --to bf16 --input-dir INT4 --output-dir BF16     (or a BF16 model as it is)
    nibble generate --model INT4 --device cuda --numerics fast --input prompts.jsonl --output gen.jsonl
    nibble logprobs --model INT4 --device cuda --numerics fast --path trainer ...   > trainer.jsonl
    python3 benchmarks/peers/bf16_noise.py --model BF16 --sequences sequences.jsonl

sequences.jsonl: {"input_ids": [..], "prompt": P, "engine": [..], "trainer": [..]} a line; engine and
trainer are log-probabilities of the tokens after the first P. PyTorch runs the same model (Llama or
dense Qwen3) twice in BF16: the whole sequence at once, and token by token with a cache, batch 1. Both
are valid orders of accumulation. The bar (shared numerics contract): Nibble's gap is at most 1.2 x
PyTorch's, KL(engine, trainer) < 0.002, mean exp|difference| < 1.05. Needs torch only; it means something on a GPU.
"""

import argparse
import json
import math
import pathlib
import struct
import sys

import torch
import torch.nn.functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load_weights(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        for name, info in json.loads(data[8:8 + size]).items():
            if name == "__metadata__":
                continue
            if info["dtype"] != "BF16":
                sys.exit(f"bf16_noise: {path}: {name} is {info['dtype']}, not BF16")
            begin, end = (8 + size + at for at in info["data_offsets"])
            flat = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.bfloat16)
            weights[name] = flat.reshape(info["shape"]).to(DEVICE)
    return weights


class Decoder:
    """A decoder as Transformers writes it, without batches."""

    def __init__(self, folder: pathlib.Path, dtype: torch.dtype):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: w.to(dtype) for name, w in load_weights(folder).items()}
        heads = self.config["num_attention_heads"]
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // heads
        rope = self.config.get("rope_parameters") or self.config
        theta = rope.get("rope_theta") or self.config["rope_theta"]
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=DEVICE)
        self.frequency = 1.0 / theta ** (steps / self.head_dim)
        self.cache: list[tuple[torch.Tensor, torch.Tensor]] = []

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return self.weights[name] * wide.to(x.dtype)

    def rotate(self, x: torch.Tensor, first: int) -> torch.Tensor:
        angle = (first + torch.arange(x.shape[0], device=DEVICE))[:, None].float() * self.frequency
        angle = torch.cat((angle, angle), -1)[:, None, :]
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), -1)
        return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)

    def attention(self, x: torch.Tensor, layer: int, first: int) -> torch.Tensor:
        at = f"model.layers.{layer}.self_attn."
        q, k, v = (F.linear(x, self.weights[at + name + "_proj.weight"])
                   .view(x.shape[0], -1, self.head_dim) for name in "qkv")
        if at + "q_norm.weight" in self.weights:
            q, k = self.norm(q, at + "q_norm.weight"), self.norm(k, at + "k_norm.weight")
        q, k = self.rotate(q, first), self.rotate(k, first)
        if first > 0:
            k, v = (torch.cat(pair) for pair in zip(self.cache[layer], (k, v)))
        if len(self.cache) == layer:
            self.cache.append((k, v))
        self.cache[layer] = (k, v)
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=first == 0, enable_gqa=True)
        return F.linear(out[0].transpose(0, 1).flatten(1), self.weights[at + "o_proj.weight"])

    def logits(self, ids: torch.Tensor, first: int) -> torch.Tensor:
        if first == 0:
            self.cache = []
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, at + "input_layernorm.weight"), layer, first)
            h = self.norm(x, at + "post_attention_layernorm.weight")
            gate, up = (F.linear(h, self.weights[at + f"mlp.{name}_proj.weight"])
                        for name in ("gate", "up"))
            x = x + F.linear(F.silu(gate) * up, self.weights[at + "mlp.down_proj.weight"])
        x = self.norm(x, "model.norm.weight")
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return F.linear(x, head).float()

    def whole(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.logits(ids[:-1], 0)
        return logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]

    def stepwise(self, ids: torch.Tensor, prompt: int) -> torch.Tensor:
        parts = [self.logits(ids[:prompt], 0)[-1:]]
        for i in range(prompt, len(ids) - 1):
            parts.append(self.logits(ids[i:i + 1], i))
        return torch.cat(parts).log_softmax(-1).gather(1, ids[prompt:, None])[:, 0]


def compare(a: torch.Tensor, b: torch.Tensor) -> dict:
    """a was sampled from: KL(a, b) is estimated by k3, unbiased and never negative."""
    difference = (a - b).double()
    return {"mean": difference.abs().mean().item(), "max": difference.abs().max().item(),
            "kl": (torch.expm1(-difference) + difference).mean().item(),
            "mean_exp": difference.abs().exp().mean().item()}


PLACES = (0, 16, 32, 64, 128, 256)


def by_place(a: list[torch.Tensor], b: list[torch.Tensor]) -> dict:
    """Mean absolute difference by place in the answer, over all sequences, and its standard error
    as if tokens were independent."""
    found = {}
    for begin, end in zip(PLACES, PLACES[1:]):
        parts = [(x[begin:end] - y[begin:end]).double().abs() for x, y in zip(a, b)]
        joined = torch.cat(parts)
        if len(joined) > 1:
            error = joined.std().item() / math.sqrt(len(joined))
            found[str(end)] = {"mean": joined.mean().item(), "error": error, "tokens": len(joined)}
    return found


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--sequences", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    rows = [json.loads(line) for line in arguments.sequences.read_text().splitlines()]
    found: dict[str, list[torch.Tensor]] = {}
    decoders = {"bf16": Decoder(arguments.model, torch.bfloat16),
                "float32": Decoder(arguments.model, torch.float32)}
    for row in rows:
        ids = torch.tensor(row["input_ids"], device=DEVICE)
        prompt = row["prompt"]
        found.setdefault("engine", []).append(torch.tensor(row["engine"]))
        found.setdefault("trainer", []).append(torch.tensor(row["trainer"]))
        found.setdefault("whole", []).append(decoders["bf16"].whole(ids)[prompt - 1:].cpu())
        found.setdefault("stepwise", []).append(decoders["bf16"].stepwise(ids, prompt).cpu())
        found.setdefault("float32", []).append(decoders["float32"].whole(ids)[prompt - 1:].cpu())
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    nibble = compare(joined["engine"], joined["trainer"])
    peer = compare(joined["stepwise"], joined["whole"])
    nibble["by_place"] = by_place(found["engine"], found["trainer"])
    peer["by_place"] = by_place(found["stepwise"], found["whole"])
    ratio = nibble["mean"] / peer["mean"] if peer["mean"] > 0 else math.inf
    print(json.dumps({
        "bench": "bf16_noise", "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE, "sequences": len(rows),
        "tokens": len(joined["engine"]), "nibble": nibble, "torch": peer, "ratio": ratio,
        "off_float32": {name: compare(joined[name], joined["float32"])["mean"]
                        for name in ("engine", "trainer", "stepwise", "whole")},
        "within": ratio <= 1.2 and nibble["kl"] < 0.002 and nibble["mean_exp"] < 1.05}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
