"""Log-probabilities and gradients of low-rank adapters: plain torch sums over Transformers models.

Writes NAME.safetensors and cases.json beside this file. Needs torch 2.11 and transformers 5.17:

    python tests/oracles/lora/make_lora.py
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
RANK = 32
ALPHA = 48.0  # a scale of 1.5
# name, directory of the base, gradients that are kept whole
CASES = [
    ("dense_untied", "int4_sym7", ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"]),
    ("moe_mixed", "bf16", ["model.layers.0.self_attn.k_proj"]),
]


def grid(rows, cols, number, step, scale):
    """A matrix that any language makes without a random generator, rounded to BF16."""
    r = torch.arange(rows, dtype=torch.float64).reshape(-1, 1)
    c = torch.arange(cols, dtype=torch.float64).reshape(1, -1)
    place = torch.remainder(r * step + c * 401.0 + number * 97.0, 1009.0)
    return ((place / 1009.0 - 0.5) * scale).to(torch.float32).to(torch.bfloat16)


def unpack(tensors, module, group):
    """bf16(q * s) of a packed matrix."""
    words = tensors[module + ".weight_packed"]
    scale = tensors[module + ".weight_scale"].float()
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = ((words.unsqueeze(-1) >> shifts) & 15).reshape(words.shape[0], -1) - 8
    return (codes.float() * scale.repeat_interleave(group, dim=1)).to(torch.bfloat16)


def load_base(name, variant):
    directory = MODELS / name / variant
    config = AutoConfig.from_pretrained(MODELS / name / "bf16")
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_pretrained(MODELS / name / "bf16", config=config,
                                                 dtype=torch.float32)
    if variant == "bf16":
        return model
    tensors = load_file(directory / "model.safetensors")
    modules = dict(model.named_modules())
    for key in [k for k in tensors if k.endswith(".weight_packed")]:
        module = key[: -len(".weight_packed")]
        modules[module].weight.data = unpack(tensors, module, 32).float()
    return model


class Adapted(torch.nn.Module):
    """y = x W^T + (scale * (x A^T)) B^T."""

    def __init__(self, base, number):
        super().__init__()
        out_features, in_features = base.weight.shape
        self.base = base
        a = grid(RANK, in_features, number, 193.0, 2.0 / math.sqrt(in_features))
        b = grid(out_features, RANK, number, 211.0, 0.25)
        self.lora_A = torch.nn.Parameter(a.float())
        self.lora_B = torch.nn.Parameter(b.float())

    def forward(self, x):
        low = (x @ self.lora_A.t()) * (ALPHA / RANK)
        return self.base(x) + low @ self.lora_B.t()


def adapt(model):
    """Adapters beside q, k, v, o of every layer and gate, up, down of dense MLPs, by number."""
    adapted = {}
    for i, layer in enumerate(model.model.layers):
        places = [(layer.self_attn, "self_attn", n) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
        if hasattr(layer.mlp, "gate_proj"):
            places += [(layer.mlp, "mlp", n) for n in ("gate_proj", "up_proj", "down_proj")]
        for parent, kind, name in places:
            module = Adapted(getattr(parent, name), len(adapted))
            setattr(parent, name, module)
            adapted[f"model.layers.{i}.{kind}.{name}"] = module
    return adapted


def main():
    cases = []
    for name, variant, kept in CASES:
        model = load_base(name, variant).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        adapted = adapt(model)
        io = load_file(MODELS / name / "io.safetensors")
        out, loss, k = {}, torch.zeros((), dtype=torch.float32), 0
        while f"seq{k}.input_ids" in io:
            ids = io[f"seq{k}.input_ids"].long().reshape(-1)
            if len(ids) > 1:
                logits = model(ids.unsqueeze(0), use_cache=False).logits[0, :-1]
                logprobs = torch.log_softmax(logits.float(), -1).gather(1, ids[1:, None])[:, 0]
                out[f"seq{k}.logprobs_fp32"] = logprobs.detach().contiguous()
                loss = loss - logprobs.sum()
            k += 1
        loss.backward()
        squares = 0.0
        for module, layer in adapted.items():
            for which in ("lora_A", "lora_B"):
                gradient = getattr(layer, which).grad
                squares += gradient.double().pow(2).sum().item()
                if module in kept:
                    out[f"grad.{module}.{which}.weight"] = gradient.contiguous()
        save_file(out, HERE / f"{name}.safetensors", metadata={"format": "pt"})
        cases.append({"name": name, "base": variant, "rank": RANK, "alpha": ALPHA,
                      "num_adapters": len(adapted), "loss": loss.item(),
                      "global_grad_norm": math.sqrt(squares)})
    (HERE / "cases.json").write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
    main()
