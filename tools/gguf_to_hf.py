"""Turns a Llama GGUF file with the "smollm" tokenizer into a BF16 Hugging Face directory.

The tensors are those that Transformers 5.17 makes of the file (dequantized in float32, q and k
rows in Hugging Face order, rounded to BF16 half to even), byte for byte in the file that its
save_pretrained writes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from gguf_file import GgufError, GgufFile, dequantize

# Rows are converted in pieces of this many values, which bounds the memory in use.
_VALUES_PER_PIECE = 1 << 22
_CONTROL, _NORMAL = 3, 1  # tokenizer.ggml.token_type

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes to write."""


@dataclasses.dataclass(frozen=True)
class TensorPlan:
    """One tensor to write. `num_heads` is 0 unless its rows are permuted per head."""

    hf_name: str
    gguf_name: str
    shape: tuple[int, ...]
    num_heads: int = 0


def write_hf_directory(gguf: GgufFile, directory: pathlib.Path, progress: Progress) -> None:
    """Writes config, generation config, tokenizer and weights into the existing `directory`."""
    config = model_config(gguf)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", generation_config(config))
    _write_json(directory / "tokenizer.json", tokenizer_json(gguf))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(gguf))
    with open(directory / "model.safetensors", "wb") as file:
        write_safetensors(gguf, tensor_plans(gguf, config), file, progress)


def model_config(gguf: GgufFile) -> dict[str, Any]:
    """config.json: sizes and ids from the metadata, the rest as SmolLM2-135M-Instruct has it."""
    if (architecture := _get(gguf, "general.architecture", str)) != "llama":
        raise GgufError(f"general.architecture is {architecture!r}; only llama is converted")
    hidden = _get_count(gguf, "llama.embedding_length")
    heads = _get_count(gguf, "llama.attention.head_count")
    kv_heads = _get_count(gguf, "llama.attention.head_count_kv")
    head_dim = _get_count(gguf, "llama.rope.dimension_count")
    if heads * head_dim != hidden or heads % kv_heads or head_dim % 2:
        raise GgufError(
            f"{heads} heads, {kv_heads} of keys and values, of {head_dim} do not fit "
            f"llama.embedding_length {hidden}"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _get_token_id(gguf, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _get_token_id(gguf, "tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": _get_count(gguf, "llama.feed_forward_length"),
        "is_llama_config": True,
        "max_position_embeddings": _get_count(gguf, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": _get_count(gguf, "llama.block_count"),
        "num_key_value_heads": kv_heads,
        "pad_token_id": _get_token_id(gguf, "tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": _get_positive_float(gguf, "llama.attention.layer_norm_rms_epsilon"),
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": _get_positive_float(gguf, "llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": _get_count(gguf, "llama.vocab_size"),
    }


def generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json as Transformers derives it from the model's config."""
    return {
        "_from_model_config": True,
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "transformers_version": config["transformers_version"],
    }


def tokenizer_json(gguf: GgufFile) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE that splits every digit off ("smollm")."""
    tokens = _tokens(gguf)
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = _get(gguf, "tokenizer.ggml.merges", list)
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else []
        if len(parts) != 2 or any(part not in vocab for part in [*parts, "".join(parts)]):
            raise GgufError(f"tokenizer.ggml.merges holds {merge!r}, which joins no two tokens")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, **_added_token(tokens[token_id])}
            for token_id in _control_token_ids(gguf)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def tokenizer_config(gguf: GgufFile) -> dict[str, Any]:
    """tokenizer_config.json with the chat template of the metadata.

    The end token is the metadata's eos_token_id. Transformers 5.17 looks up bos_token_id instead
    when it builds a tokenizer from a GGUF file, and so calls <|im_start|> the end token.
    The class is not the published GPT2Tokenizer: under that name Transformers 5.17 puts its own
    split in place of the one in tokenizer.json and no longer separates digits.
    """
    tokens = _tokens(gguf)

    def token(key: str) -> str:
        return tokens[_get_token_id(gguf, key)]

    bos, eos = token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id")
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token_id): _added_token(tokens[token_id]) for token_id in _control_token_ids(gguf)
        },
        "additional_special_tokens": [bos, eos],
        "bos_token": bos,
        "chat_template": _get(gguf, "tokenizer.chat_template", str),
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": _get_count(gguf, "llama.context_length"),
        "pad_token": token("tokenizer.ggml.padding_token_id"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("tokenizer.ggml.unknown_token_id"),
        "vocab_size": len(tokens),
    }


def tensor_plans(gguf: GgufFile, config: dict[str, Any]) -> list[TensorPlan]:
    """Every tensor of a tied-embedding LlamaForCausalLM, sorted by name.

    A tensor that is missing, left over or of another shape in the file is a GgufError.
    """
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kv_size = hidden // heads * kv_heads
    if config["num_hidden_layers"] > len(gguf.tensors):  # bounds the loop below
        raise GgufError(f"llama.block_count is {config['num_hidden_layers']}, more than tensors")
    plans = [
        TensorPlan(
            "model.embed_tokens.weight", "token_embd.weight", (config["vocab_size"], hidden)
        ),
        TensorPlan("model.norm.weight", "output_norm.weight", (hidden,)),
    ]
    for layer in range(config["num_hidden_layers"]):
        for hf_name, gguf_name, shape, permuted_heads in [
            ("input_layernorm", "attn_norm", (hidden,), 0),
            ("post_attention_layernorm", "ffn_norm", (hidden,), 0),
            ("self_attn.q_proj", "attn_q", (hidden, hidden), heads),
            ("self_attn.k_proj", "attn_k", (kv_size, hidden), kv_heads),
            ("self_attn.v_proj", "attn_v", (kv_size, hidden), 0),
            ("self_attn.o_proj", "attn_output", (hidden, hidden), 0),
            ("mlp.gate_proj", "ffn_gate", (mlp, hidden), 0),
            ("mlp.up_proj", "ffn_up", (mlp, hidden), 0),
            ("mlp.down_proj", "ffn_down", (hidden, mlp), 0),
        ]:
            plans.append(
                TensorPlan(
                    f"model.layers.{layer}.{hf_name}.weight",
                    f"blk.{layer}.{gguf_name}.weight",
                    shape,
                    permuted_heads,
                )
            )
    if left_over := gguf.tensors.keys() - {plan.gguf_name for plan in plans}:
        raise GgufError(f"the file has the tensor {min(left_over)!r}, which Llama does not")
    for plan in plans:
        if plan.gguf_name not in gguf.tensors:
            raise GgufError(f"the file lacks the tensor {plan.gguf_name!r}")
        if (shape := gguf.tensors[plan.gguf_name].shape) != plan.shape:
            raise GgufError(f"{plan.gguf_name!r} has the shape {shape}; want {plan.shape}")
    return sorted(plans, key=lambda plan: plan.hf_name)


def write_safetensors(
    gguf: GgufFile, plans: list[TensorPlan], file: BinaryIO, progress: Progress
) -> None:
    """Writes `plans` in their order as BF16, laid out as safetensors itself lays a file out."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total_bytes = 0
    for plan in plans:
        end = total_bytes + 2 * int(np.prod(plan.shape))
        header[plan.hf_name] = {
            "dtype": "BF16",
            "shape": list(plan.shape),
            "data_offsets": [total_bytes, end],
        }
        total_bytes = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    written = 0
    for plan in plans:
        info = gguf.tensors[plan.gguf_name]
        rows = gguf.rows(plan.gguf_name)
        if plan.num_heads:
            rows = rows[hf_row_order(info.num_rows, plan.num_heads)]
        step = max(1, _VALUES_PER_PIECE // info.shape[-1])
        for first in range(0, info.num_rows, step):
            values = dequantize(rows[first : first + step], info.type)
            written += file.write(to_bfloat16(values, plan.hf_name).tobytes())
            progress(written, total_bytes)


def hf_row_order(num_rows: int, num_heads: int) -> np.ndarray:
    """For each q or k row of the Hugging Face layout, the row of the GGUF file that holds it.

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, Hugging Face rows (i, i + half).
    """
    pairs = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def to_bfloat16(values: np.ndarray, name: str) -> np.ndarray:
    """float32 -> BF16 bits (little-endian uint16), nearest, ties to even; all must be finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    if (bits & np.uint32(0x7F800000) == 0x7F800000).any() or (
        rounded & np.uint32(0x7F800000) == 0x7F800000
    ).any():
        raise GgufError(f"the tensor {name!r} holds a value that BF16 cannot store as a number")
    return (rounded >> np.uint32(16)).astype("<u2")


def _tokens(gguf: GgufFile) -> list[str]:
    model, pre = _get(gguf, "tokenizer.ggml.model", str), _get(gguf, "tokenizer.ggml.pre", str)
    if (model, pre) != ("gpt2", "smollm"):
        raise GgufError(f"the tokenizer is {model!r} with {pre!r}; only gpt2 with smollm is known")
    tokens = _get(gguf, "tokenizer.ggml.tokens", list)
    if len(tokens) != _get_count(gguf, "llama.vocab_size"):
        raise GgufError(f"tokenizer.ggml.tokens has {len(tokens)} items, not llama.vocab_size")
    if len(set(tokens)) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise GgufError("tokenizer.ggml.tokens must be texts that all differ")
    return tokens


def _control_token_ids(gguf: GgufFile) -> list[int]:
    types = _get(gguf, "tokenizer.ggml.token_type", list)
    if len(types) != len(_tokens(gguf)) or not set(types) <= {_CONTROL, _NORMAL}:
        raise GgufError("tokenizer.ggml.token_type must say normal (1) or control (3) per token")
    return [token_id for token_id, token_type in enumerate(types) if token_type == _CONTROL]


def _added_token(content: str) -> dict[str, Any]:
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _get(gguf: GgufFile, key: str, kind: type) -> Any:
    value = gguf.metadata.get(key)
    if type(value) is not kind:
        raise GgufError(f"the metadata needs {key} ({kind.__name__}); it has {str(value)[:80]!r}")
    return value


def _get_count(gguf: GgufFile, key: str) -> int:
    value = _get(gguf, key, int)
    if not 1 <= value < 1 << 31:
        raise GgufError(f"{key} is {value}; it must be positive")
    return value


def _get_token_id(gguf: GgufFile, key: str) -> int:
    value = _get(gguf, key, int)
    if not 0 <= value < _get_count(gguf, "llama.vocab_size"):
        raise GgufError(f"{key} is {value}, which is no token")
    return value


def _get_positive_float(gguf: GgufFile, key: str) -> float | int:
    """A float32 as the shortest decimal that means it (1e-05, not 9.999999747378752e-06)."""
    value = _get(gguf, key, float)
    if not 0 < value < float("inf"):
        raise GgufError(f"{key} is {value}; it must be positive")
    shortest = float(str(np.float32(value)))
    return int(shortest) if shortest.is_integer() else shortest


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
