"""Writes small GGUF files, valid or broken on purpose, for the tests of tools/."""

import random
import struct

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS = 64, 4, 2, 16, 96, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "Ġ", "ab", "é", "0"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
U8, U32, F32_VALUE, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8


def string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def strings(items: list[str]) -> bytes:
    return struct.pack("<IQ", STRING, len(items)) + b"".join(map(string, items))


def metadata() -> dict[str, tuple[int, bytes]]:
    """Key -> (value type, encoded value) of a whole little model."""
    counts = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": MLP,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.vocab_size": len(TOKENS),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
    }
    types = [3, 3, 3, *[1] * (len(TOKENS) - 3)]
    return {
        "general.architecture": (STRING, string("llama")),
        **{key: (U32, struct.pack("<I", count)) for key, count in counts.items()},
        "llama.rope.freq_base": (F32_VALUE, struct.pack("<f", 100000.0)),
        "llama.attention.layer_norm_rms_epsilon": (F32_VALUE, struct.pack("<f", 1e-5)),
        "tokenizer.ggml.add_bos_token": (BOOL, b"\0"),
        "tokenizer.ggml.model": (STRING, string("gpt2")),
        "tokenizer.ggml.pre": (STRING, string("smollm")),
        "tokenizer.ggml.tokens": (ARRAY, strings(TOKENS)),
        "tokenizer.ggml.token_type": (
            ARRAY,
            struct.pack(f"<IQ{len(types)}i", 5, len(types), *types),
        ),
        "tokenizer.ggml.merges": (ARRAY, strings(["a b"])),
        "tokenizer.chat_template": (STRING, string(TEMPLATE)),
    }


def blocks(rng: random.Random, tensor_type: int, num_values: int) -> bytes:
    """Random stored values of `tensor_type`, all finite."""

    def half() -> bytes:
        return struct.pack("<e", rng.uniform(-2.0, 2.0))

    if tensor_type == F32:
        return b"".join(struct.pack("<f", rng.gauss(1.0, 0.5)) for _ in range(num_values))
    if tensor_type == F16:
        return b"".join(half() for _ in range(num_values))
    scales, packed = (2, 16) if tensor_type == Q4_1 else (1, 32)
    return b"".join(
        b"".join(half() for _ in range(scales)) + rng.randbytes(packed)
        for _ in range(num_values // 32)
    )


def tensors(seed: int = 1) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    """Name -> (row-major shape, GGML type, stored bytes) of the little model."""
    rng = random.Random(seed)
    kv_size = KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[tuple[int, ...], int]] = {
        "token_embd.weight": ((len(TOKENS), HIDDEN), Q8_0),
        "output_norm.weight": ((HIDDEN,), F32),
    }
    for layer in range(LAYERS):
        for name, shape, tensor_type in [
            ("ffn_down", (HIDDEN, MLP), Q4_1),
            ("attn_norm", (HIDDEN,), F32),
            ("ffn_norm", (HIDDEN,), F32),
            ("attn_q", (HIDDEN, HIDDEN), Q4_1),
            ("attn_k", (kv_size, HIDDEN), Q4_1),
            ("attn_v", (kv_size, HIDDEN), F16),
            ("attn_output", (HIDDEN, HIDDEN), Q4_1),
            ("ffn_gate", (MLP, HIDDEN), Q4_1),
            ("ffn_up", (MLP, HIDDEN), Q8_0),
        ]:
            shapes[f"blk.{layer}.{name}.weight"] = (shape, tensor_type)
    made = {}
    for name, (shape, tensor_type) in shapes.items():
        num_values = shape[0] * (shape[1] if len(shape) == 2 else 1)
        made[name] = (shape, tensor_type, blocks(rng, tensor_type, num_values))
    return made


def entry(name: str, gguf_shape: tuple[int, ...], tensor_type: int, offset: int) -> bytes:
    """One row of the tensor table; `gguf_shape` has the contiguous dimension first."""
    return (
        string(name)
        + struct.pack(f"<I{len(gguf_shape)}Q", len(gguf_shape), *gguf_shape)
        + struct.pack("<IQ", tensor_type, offset)
    )


def build(
    values: list[tuple[str, tuple[int, bytes]]], entries: list[bytes], data: bytes, version: int = 3
) -> bytes:
    """A file of the given metadata pairs, table rows and tensor data."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(values))
    for key, (value_type, encoded) in values:
        head += string(key) + struct.pack("<I", value_type) + encoded
    head += b"".join(entries)
    return head + bytes(-len(head) % 32) + data


def model(
    values: dict[str, tuple[int, bytes]] | None = None,
    stored: dict[str, tuple[tuple[int, ...], int, bytes]] | None = None,
) -> bytes:
    """The little model, with other metadata or tensors where given."""
    entries, data = [], b""
    for name, (shape, tensor_type, raw) in (tensors() if stored is None else stored).items():
        entries.append(entry(name, shape[::-1], tensor_type, len(data)))
        data += raw + bytes(-len(raw) % 32)
    return build(list((metadata() if values is None else values).items()), entries, data)
