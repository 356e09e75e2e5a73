"""Writes a Hugging Face BF16 directory (Llama or dense Qwen3) as a GGUF of llama.cpp, without its tokenizer.

Names and keys are those of the `gguf` package. The matrices stay BF16 or become F32 (both exact); norms are
F32, as llama.cpp wants them. What llama.cpp would compute differently (RoPE scaling, biases) is refused.
"""

import json
import pathlib
from collections.abc import Iterator

import gguf
import numpy as np

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}
FILE_TYPES = {"F32": gguf.LlamaFileType.ALL_F32, "BF16": gguf.LlamaFileType.MOSTLY_BF16}


def read_config(folder: pathlib.Path) -> dict:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    config["rope_theta"] = rope.get("rope_theta") or config["rope_theta"]
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if config["model_type"] not in ARCHITECTURES or kind != "default" or config.get("use_sliding_window"):
        raise SystemExit(f"{folder}: want llama or qwen3, default RoPE, no sliding window; it is "
                         f"{config['model_type']}, {kind}, {config.get('use_sliding_window')}")
    return config


def bf16_tensors(folder: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and bits (uint16, mapped from the file) of every tensor."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, info in header.items():
            if name == "__metadata__":
                continue
            if info["dtype"] != "BF16":
                raise SystemExit(f"{path}: {name} is {info['dtype']}, not BF16")
            begin = 8 + size + info["data_offsets"][0]
            yield name, np.memmap(path, np.uint16, "r", begin, tuple(info["shape"]))


def interleave_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring rows of a Llama head together, Transformers rows half a head apart."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def add_keys(writer: gguf.GGUFWriter, config: dict, matrix_type: str) -> None:
    writer.add_file_type(FILE_TYPES[matrix_type])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def write_gguf(folder: pathlib.Path, path: pathlib.Path, matrix_type: str) -> None:
    """`matrix_type`: F32 or BF16."""
    config = read_config(folder)
    architecture = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[architecture])
    add_keys(writer, config, matrix_type)
    for name, bits in bf16_tensors(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise SystemExit(f"{folder}: llama.cpp has no place for {name}")
        projection = name.split(".")[-2]
        if config["model_type"] == "llama" and projection in heads:
            bits = interleave_halves(bits, heads[projection])
        if matrix_type == "BF16" and bits.ndim == 2:
            writer.add_tensor(target, np.ascontiguousarray(bits).view(np.uint8),
                              raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def tensor_types(path: pathlib.Path) -> dict[str, int]:
    """How many tensors of a file have each type; token_embd and output by name."""
    found: dict[str, int] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        kind = tensor.tensor_type.name
        if tensor.name in ("token_embd.weight", "output.weight"):
            kind = f"{tensor.name.removesuffix('.weight')}:{kind}"
        found[kind] = found.get(kind, 0) + 1
    return found
