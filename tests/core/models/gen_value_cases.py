#!/usr/bin/env python3
"""tests/oracles/critic: values of token-classification heads on the tiny checkpoints, and gradients of PPO's value loss.

Transformers' own head (one label, bias 0, dropout off) on the body of tests/oracles/models/NAME/bf16, in float32.

    pip install torch==2.11.0 transformers==5.17.0 safetensors && python3 tests/core/models/gen_value_cases.py
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

ORACLES = Path(__file__).resolve().parents[2] / "oracles"
NAMES = ("dense_untied", "dense_tied", "moe_norm", "llama_smol")
CLIP = 0.2
LAYER = "model.layers.0."
KEPT = ("score.weight", "model.norm.weight", LAYER + "self_attn.k_proj.weight", LAYER + "input_layernorm.weight")


def value_loss(values, old, returns):
    clipped = torch.maximum(torch.minimum(values, old + CLIP), old - CLIP)
    return torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).mean()


def make_case(name):
    folder = ORACLES / "models" / name
    model = AutoModelForTokenClassification.from_pretrained(
        folder / "bf16", num_labels=1, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager").eval()
    random = torch.Generator().manual_seed(20261129)
    # What BF16 can hold, so that the C++ side multiplies with the same head.
    head = (0.2 * torch.randn(model.score.weight.shape, generator=random)).bfloat16()
    with torch.no_grad():
        model.score.weight.copy_(head.float())
        model.score.bias.zero_()
    sequences = load_file(folder / "io.safetensors")
    ids = sequences[f"seq{sum(key.endswith('.input_ids') for key in sequences if key.startswith('seq')) - 1}.input_ids"]
    values = model(input_ids=ids[None].long()).logits[0, :, 0]
    old = values.detach() + 0.3 * torch.randn(values.shape, generator=random)
    returns = torch.randn(values.shape, generator=random)
    loss = value_loss(values, old, returns)
    loss.backward()
    out = {"head": head, "ids": ids.int(), "values": values.detach(), "old_values": old, "returns": returns,
           "loss": loss.detach()[None]}
    parameters = dict(model.named_parameters())
    for kept in KEPT:
        out["grad." + kept] = parameters[kept].grad
    return {f"{name}.{key}": tensor.contiguous() for key, tensor in out.items()}


def main():
    tensors = {}
    for name in NAMES:
        tensors |= make_case(name)
    (ORACLES / "critic").mkdir(exist_ok=True)
    out = ORACLES / "critic" / "values.safetensors"
    save_file(tensors, out)
    out.chmod(0o644)


if __name__ == "__main__":
    main()
