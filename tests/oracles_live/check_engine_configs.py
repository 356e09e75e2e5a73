#!/usr/bin/env python3
"""What vLLM and SGLang make of the config.json that `nibble convert` writes, asked of their own code.

Their CompressedTensorsConfig parses it and chooses a method for every layer as the engine builds it: q, k, v
and gate, up fused, the experts of a layer as one. A layer must be served quantized, with the directory's bits and
group, exactly where the directory holds packed tensors for all of its parts. The same for checkpoints that
llm-compressor wrote. Needs no GPU, as kernels are not run; only the two packages and what their imports ask for:

    python3 -m venv engines; . engines/bin/activate
    pip install torch==2.14.0 torchvision==0.29.0 transformers==5.19.0 numba==0.65.0
    pip install --no-deps vllm==0.33.0 sglang==0.5.23 compressed-tensors==0.17.0
    pip install regex cachetools psutil cloudpickle pydantic msgspec pyzmq fastapi aiohttp openai pillow \\
        prometheus_client tiktoken blake3 py-cpuinfo einops pyyaml partial-json-parser orjson requests pybase64 \\
        ninja sentencepiece protobuf loguru setproctitle cbor2 ijson oss-harmony uvloop xgrammar llguidance \\
        ipython dill gguf
    NIBBLE_BINARY=build/cpu/bin/nibble engines/bin/python tests/oracles_live/check_engine_configs.py

An engine that does not import is left out, with the reason; exit code 77 if both are.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("NIBBLE_BINARY", str(ROOT / "build/cpu/bin/nibble"))
MODELS = ROOT / "tests/oracles/models"
SKIPPED = 77
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

# Model and flags of `nibble convert`.
CASES = (
    *(("dense_untied", "--quant-type", f"W{bits}A16", "--quant-group-size", group)
      for bits in (4, 8) for group in (32, 64, 128)),
    ("dense_tied", "--targets", "mlp"),
    ("dense_tied", "--ignore", r"re:^model\.layers\.0\..*$"),
    ("dense_untied", "--ignore", "model.layers.1.mlp.down_proj", "--ignore",
     r"re:^.*\.(gate|up)_proj$"),
    ("llama_smol",),
    *(("moe_norm", "--quant-type", f"W{bits}A16", "--quant-group-size", group)
      for bits in (4, 8) for group in (32, 64)),
    ("moe_norm", "--targets", "linear"),
    ("moe_norm", "--ignore", r"re:^model\.layers\.0\.mlp\.experts\..*$"),
    ("moe_nonorm", "--targets", "mlp"),
    ("moe_mixed", "--targets", "mlp"),
    ("moe_mixed", "--targets", "linear"),
    ("moe_mixed",),
)
FOREIGN = ("dense_tied", "dense_untied", "moe_norm")


def bare(layer_class, **attributes):
    """A layer without weights, of which only class and name matter here."""
    import torch

    layer = layer_class.__new__(layer_class)
    torch.nn.Module.__init__(layer)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


class Vllm:
    """Each method returns None for BF16, else (bits, group)."""

    def __init__(self):
        from vllm.model_executor.layers import linear
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.quantization.compressed_tensors import (
            compressed_tensors, compressed_tensors_moe)
        from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
            compressed_tensors_moe_wna16)
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.parse = compressed_tensors.CompressedTensorsConfig.from_config
        self.moe_method = compressed_tensors_moe.CompressedTensorsMoEMethod.get_moe_method
        self.wna16 = compressed_tensors_moe_wna16.CompressedTensorsWNA16MoEMethod
        self.linear, self.head, self.experts = linear, ParallelLMHead, RoutedExperts

    def config(self, stored):
        config = self.parse(stored)
        config.packed_modules_mapping = FUSED
        return config

    def layer(self, config, name):
        layer = bare(self.head if name == "lm_head" else getattr(self.linear, layer_class(name)))
        config.get_quant_method(layer, name)
        scheme = getattr(layer, "scheme", None)
        return None if scheme is None else (scheme.num_bits, scheme.group_size)

    def moe(self, config, name):
        layer = bare(self.experts, moe_config=None,
                     **{f"ckpt_{part}_name": part for part in ("gate_proj", "up_proj", "down_proj")})
        found = []
        # The constructor chooses a kernel for the GPU.
        with mock.patch.object(self.wna16, "__init__", lambda _, weights, *__: found.append(weights)), \
                mock.patch(f"{self.moe_method.__module__}.UnquantizedFusedMoEMethod"):
            self.moe_method(config, layer, name)
        return (found[0].num_bits, found[0].group_size) if found else None


class Sglang:
    def __init__(self):
        from sglang.srt.layers import linear
        from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
        from sglang.srt.layers.quantization.compressed_tensors import compressed_tensors
        from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead

        self.parse = compressed_tensors.CompressedTensorsConfig.from_config
        self.linear, self.head, self.experts = linear, ParallelLMHead, FusedMoE

    def config(self, stored):
        return self.parse({**stored, "packed_modules_mapping": FUSED})

    def layer(self, config, name):
        kind = self.head if name == "lm_head" else getattr(self.linear, layer_class(name))
        scheme = self.scheme(config, name, kind)
        return None if scheme is None else (32 // scheme.pack_factor, scheme.group_size)

    def moe(self, config, name):
        scheme = self.scheme(config, name, self.experts)
        return None if scheme is None else (scheme.num_bits, scheme.group_size)

    def scheme(self, config, name, kind):
        layer = bare(kind)
        with mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)):
            config.get_quant_method(layer, name)
        return getattr(layer, "scheme", None)


def layer_class(name):
    """The class that an engine gives a layer of this name, but lm_head and experts."""
    return {"qkv_proj": "QKVParallelLinear", "gate_up_proj": "MergedColumnParallelLinear",
            "gate": "ReplicatedLinear"}.get(name.rsplit(".", 1)[1], "RowParallelLinear")


def stored_config(directory):
    return json.loads((directory / "config.json").read_text())["quantization_config"]


def stored_modules(directory):
    """module -> whether it is packed, of every matrix in the directory but the embedding."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text())["weight_map"]
    else:
        data = (directory / "model.safetensors").read_bytes()
        names = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    found = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if kind in ("weight", "weight_packed") and "norm" not in module and "embed" not in module:
            found[module] = kind == "weight_packed"
    return found


def engine_layers(modules):
    """(name, parts, is_moe) of each layer that an engine builds for these modules."""
    layers = {}
    for module in modules:
        parent, _, last = module.rpartition(".")
        is_moe = ".experts." in module
        if is_moe:
            name = module[:module.index(".experts.")] + ".experts"
        else:
            fused = [key for key, parts in FUSED.items() if last in parts]
            name = f"{parent}.{fused[0]}" if fused else module
        layers.setdefault((name, is_moe), []).append(module)
    return [(name, parts, is_moe) for (name, is_moe), parts in layers.items()]


def problems_of(engine, directory):
    stored = stored_config(directory)
    weights = stored["config_groups"]["group_0"]["weights"]
    modules = stored_modules(directory)
    modules.setdefault("lm_head", False)
    config = engine.config(stored)
    for name, parts, is_moe in engine_layers(modules):
        packed = {modules[part] for part in parts}
        if len(packed) > 1:
            yield f"{name} is INT4 in part"
            continue
        want = (weights["num_bits"], weights["group_size"]) if packed.pop() else None
        got = (engine.moe if is_moe else engine.layer)(config, name)
        if got != want:
            yield f"{name} is served as {got}, stored as {want}"


def refuses_half_a_fused_layer(engine):
    """That this check can fail: q_proj alone ignored."""
    stored = stored_config(MODELS / "dense_untied/int4_llmcompressor")
    config = engine.config({**stored, "ignore": ["model.layers.0.self_attn.q_proj", "lm_head"]})
    try:
        engine.layer(config, "model.layers.0.self_attn.qkv_proj")
    except ValueError:
        return True
    return False


def import_engines():
    engines = {}
    for name, engine in (("vLLM", Vllm), ("SGLang", Sglang)):
        try:
            engines[name] = engine()
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return engines


def main():
    engines = import_engines()
    if not engines:
        return SKIPPED
    problems = [f"{name} takes half a fused layer" for name, engine in engines.items()
                if not refuses_half_a_fused_layer(engine)]
    with tempfile.TemporaryDirectory() as name:
        directories = {f"{model} of llm-compressor": MODELS / model / "int4_llmcompressor"
                       for model in FOREIGN}
        for k, (model, *flags) in enumerate(CASES):
            target = Path(name) / str(k)
            subprocess.run([BINARY, "convert", "--method", "rtn", "--input-dir", MODELS / model / "bf16",
                            "--output-dir", target, *map(str, flags)], check=True, capture_output=True)
            directories[" ".join(map(str, (model, *flags)))] = target
        for case, directory in directories.items():
            for engine in engines:
                found = list(problems_of(engines[engine], directory))
                problems += [f"{engine}: {case}: {problem}" for problem in found]
                print(f"{engine}: {case}: {'differs' if found else 'every layer as stored'}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
