#!/usr/bin/env python3
"""Writes a model directory, without weights for training from scratch (model.init: random), or with random ones.

    python3 tools/make_random_model.py --architecture qwen3 --output models/tiny-qwen3
    python3 tools/make_random_model.py --architecture qwen3_moe --output models/tiny-qwen3-moe
    python3 tools/make_random_model.py --tokenizer models/SmolLM2-135M-Instruct --output models/M
    python3 tools/make_random_model.py --shape qwen3-0.6b --weights --output models/shape-0.6b

config.json of a small Qwen3 or Qwen3-MoE, and a tokenizer: copied from another directory, or one
whose tokens are the 256 bytes and three marks of a chat. The sizes that are asked for by default
can be quantized in groups of 32 and of 128. With --weights: normal BF16 values, norms 1, to measure
a shape. Needs Python only; --weights needs numpy or torch.
"""

import argparse
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Callable

ROW_MULTIPLE = 64  # of the vocabulary: whole tiles for kernels
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


# Sizes of known models, for --shape.
SHAPES = {
    "qwen3-0.6b": {"hidden": 1024, "intermediate": 3072, "layers": 28, "heads": 16, "kv_heads": 8,
                   "head_dim": 128, "vocabulary": 151936, "max_positions": 40960},
    "qwen3-4b": {"hidden": 2560, "intermediate": 9728, "layers": 36, "heads": 32, "kv_heads": 8,
                 "head_dim": 128, "vocabulary": 151936, "max_positions": 40960},
}


class ModelError(Exception):
    """What went wrong and what to do, in one sentence."""


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE, by byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in shown else chr(next(spare)) for byte in range(256)]


def byte_tokenizer() -> tuple[dict, dict]:
    """tokenizer.json and tokenizer_config.json of a tokenizer that merges nothing."""
    added = [{"id": 256 + i, "content": mark, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False, "special": True}
             for i, mark in enumerate(MARKS)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
             "use_regex": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {text: byte for byte, text in enumerate(byte_alphabet())},
                  "merges": []}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None,
              "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
              "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE}
    return tokenizer, config


def read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def token_ids(tokenizer: dict) -> dict[str, int]:
    ids = dict(tokenizer["model"]["vocab"])
    ids.update((token["content"], token["id"]) for token in tokenizer["added_tokens"])
    return ids


def token_text(token: object) -> str:
    """A special token of tokenizer_config.json: a string, or an object with its content."""
    return str(token["content"] if isinstance(token, dict) else token)


def model_config(sizes: argparse.Namespace, vocabulary: int, end: int) -> dict:
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "vocab_size": -(-max(vocabulary, sizes.vocabulary) // ROW_MULTIPLE) * ROW_MULTIPLE,
        "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim,
        "max_position_embeddings": sizes.max_positions, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False,
        "attention_dropout": 0.0, "tie_word_embeddings": True, "use_sliding_window": False,
        "initializer_range": sizes.initializer_range, "eos_token_id": end, "dtype": "bfloat16"}
    if sizes.architecture == "qwen3_moe":
        config.update({
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
            "num_experts": sizes.experts, "num_experts_per_tok": sizes.experts_per_token,
            "moe_intermediate_size": sizes.expert_intermediate, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": []})
    return config


def write_model(sizes: argparse.Namespace) -> dict:
    output = sizes.output
    if output.exists() and any(output.iterdir()):
        raise ModelError(f"{output} is not empty; choose another directory")
    if sizes.tokenizer is None:
        tokenizer, tokenizer_config = byte_tokenizer()
    else:
        tokenizer = read_json(sizes.tokenizer / "tokenizer.json")
        tokenizer_config = read_json(sizes.tokenizer / "tokenizer_config.json")
    ids = token_ids(tokenizer)
    end = ids.get(token_text(tokenizer_config.get("eos_token")))
    if end is None:
        raise ModelError(f"{sizes.tokenizer}/tokenizer_config.json has no eos_token that its "
                         "tokenizer knows; a response could not end")
    config = model_config(sizes, max(ids.values()) + 1, end)
    output.mkdir(parents=True, exist_ok=True)
    if sizes.tokenizer is None:
        write_json(output / "tokenizer.json", tokenizer)
        write_json(output / "tokenizer_config.json", tokenizer_config)
    else:
        for name in COPIED:
            if (sizes.tokenizer / name).is_file():
                shutil.copyfile(sizes.tokenizer / name, output / name)
    write_json(output / "generation_config.json", {"eos_token_id": end})
    if sizes.weights:
        write_weights(output / "model.safetensors", config, sizes.seed)
    write_json(output / "config.json", config)  # last: with it the directory is a model
    return config


def weight_shapes(config: dict) -> dict[str, list[int]]:
    """Hugging Face name -> shape of every tensor; the head is the embedding."""
    hidden, width = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden]}

    def mlp(at: str, inner: int) -> None:
        shapes.update({at + "gate_proj.weight": [inner, hidden], at + "up_proj.weight": [inner, hidden],
                       at + "down_proj.weight": [hidden, inner]})

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        attention = at + "self_attn."
        shapes.update({
            at + "input_layernorm.weight": [hidden], at + "post_attention_layernorm.weight": [hidden],
            attention + "q_proj.weight": [queries, hidden], attention + "k_proj.weight": [keys, hidden],
            attention + "v_proj.weight": [keys, hidden], attention + "o_proj.weight": [hidden, queries],
            attention + "q_norm.weight": [width], attention + "k_norm.weight": [width]})
        if "num_experts" in config:
            shapes[at + "mlp.gate.weight"] = [config["num_experts"], hidden]
            for expert in range(config["num_experts"]):
                mlp(f"{at}mlp.experts.{expert}.", config["moe_intermediate_size"])
        else:
            mlp(at + "mlp.", config["intermediate_size"])
    shapes["model.norm.weight"] = [hidden]
    return shapes


def normal_bf16(seed: int, deviation: float) -> Callable[[list[int]], bytes]:
    """Draws normal values as BF16 bytes, with numpy or, where there is none, torch."""
    try:
        import numpy as np
    except ImportError:
        np = None
    if np is not None:
        random = np.random.default_rng(seed)

        def draw(shape: list[int]) -> bytes:
            values = random.standard_normal(shape, np.float32) * np.float32(deviation)
            bits = values.view(np.uint32)  # rounded to nearest, ties to even; all are finite
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()

        return draw
    try:
        import torch
    except ImportError as error:
        raise ModelError("--weights needs numpy or torch: pip install numpy") from error
    generator = torch.Generator().manual_seed(seed)

    def draw_with_torch(shape: list[int]) -> bytes:
        values = torch.randn(shape, generator=generator) * deviation
        return bytes(values.to(torch.bfloat16).untyped_storage())

    return draw_with_torch


def write_weights(path: pathlib.Path, config: dict, seed: int) -> None:
    shapes = weight_shapes(config)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = normal_bf16(seed, config["initializer_range"])
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            is_norm = len(shape) == 1
            file.write(b"\x80\x3f" * shape[0] if is_norm else draw(shape))  # 1.0, or random


def write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--architecture", choices=("qwen3", "qwen3_moe"), default="qwen3")
    parser.add_argument("--tokenizer", type=pathlib.Path, metavar="DIR",
                        help="directory whose tokenizer is copied; without it: bytes")
    for name, size, text in (
            ("hidden", 128, ""), ("layers", 4, ""), ("heads", 4, ""), ("kv-heads", 2, ""),
            ("head-dim", 32, ""), ("intermediate", 384, "of a dense MLP"),
            ("max-positions", 1024, ""), ("experts", 8, "of a layer (qwen3_moe)"),
            ("experts-per-token", 2, "(qwen3_moe)"), ("expert-intermediate", 128, "(qwen3_moe)")):
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{text} (%(default)s)")
    parser.add_argument("--initializer-range", type=float, default=0.02,
                        help="standard deviation of the weights that training starts from")
    parser.add_argument("--vocabulary", type=int, default=0,
                        help="tokens at least, whatever the tokenizer has")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="sizes of a known dense model")
    parser.add_argument("--weights", action="store_true", help="random weights too; needs numpy or torch")
    parser.add_argument("--seed", type=int, default=1, help="of --weights (%(default)s)")
    sizes = parser.parse_args(arguments)
    for name, size in SHAPES.get(sizes.shape, {}).items():
        setattr(sizes, name, size)
    return sizes


def main(arguments: list[str] | None = None) -> int:
    sizes = parse(arguments)
    try:
        config = write_model(sizes)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {sizes.output} ({error.strerror})", file=sys.stderr)
        return 1
    print(f"{sizes.output}: {config['model_type']}, {config['num_hidden_layers']} layers of "
          f"{config['hidden_size']}, {config['vocab_size']} tokens; "
          f"{'random' if sizes.weights else 'no'} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
