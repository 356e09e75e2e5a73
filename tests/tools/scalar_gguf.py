"""What tools/ must make of tiny_gguf's model, computed one value at a time without numpy."""

import fractions
import functools
import json
import struct

import tiny_gguf


def float32(value: float) -> float:
    """`value` rounded once to float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def scalar_values(tensor_type: int, raw: bytes) -> list[float]:
    """Stored values by the definition of each format, one at a time, one rounding per operation."""
    if tensor_type == tiny_gguf.F32:
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    if tensor_type == tiny_gguf.F16:
        return list(struct.unpack(f"<{len(raw) // 2}e", raw))
    values = []
    if tensor_type == tiny_gguf.Q8_0:
        for start in range(0, len(raw), 34):
            (scale,) = struct.unpack_from("<e", raw, start)
            for code in struct.unpack_from("<32b", raw, start + 2):
                values.append(float32(scale * code))
        return values
    for start in range(0, len(raw), 20):
        scale, minimum = struct.unpack_from("<2e", raw, start)
        for index in range(32):
            byte = raw[start + 4 + index % 16]
            code = byte & 15 if index < 16 else byte >> 4
            values.append(float32(float32(scale * code) + minimum))
    return values


def scalar_bfloat16(value: float) -> int:
    """BF16 bits of a float32: the neighbour that is nearer in exact arithmetic, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    below = bits >> 16
    low, high = (
        fractions.Fraction(struct.unpack("<f", struct.pack("<I", code << 16))[0])
        for code in (below, below + 1)
    )
    to_low, to_high = abs(fractions.Fraction(value) - low), abs(high - fractions.Fraction(value))
    if to_low == to_high:
        return below + below % 2
    return below if to_low < to_high else below + 1


def llama_cpp_permute(rows: list, num_heads: int) -> list:
    """The order in which llama.cpp's converter stores q and k rows, from its definition."""
    per_head = len(rows) // num_heads
    stored = []
    for head in range(num_heads):
        of_head = rows[head * per_head : (head + 1) * per_head]
        for index in range(per_head // 2):
            stored += [of_head[index], of_head[index + per_head // 2]]
    return stored


@functools.cache
def expected_safetensors() -> bytes:
    """The weights file of the little model, made value by value."""
    hf_names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    made = {}
    for name, (shape, tensor_type, raw) in tiny_gguf.tensors().items():
        codes = [scalar_bfloat16(value) for value in scalar_values(tensor_type, raw)]
        parts = name.split(".")
        if parts[0] == "blk":
            hf_name = f"model.layers.{parts[1]}.{hf_names[parts[2]]}.weight"
        else:
            hf_name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]]
            hf_name += ".weight"
        if parts[-2] in ("attn_q", "attn_k"):
            heads = tiny_gguf.HEADS if parts[-2] == "attn_q" else tiny_gguf.KV_HEADS
            rows = [codes[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
            stored_at = llama_cpp_permute(list(range(shape[0])), heads)
            codes = [code for row in range(shape[0]) for code in rows[stored_at.index(row)]]
        made[hf_name] = (shape, struct.pack(f"<{len(codes)}H", *codes))
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for hf_name in sorted(made):
        shape, raw = made[hf_name]
        offsets = [len(data), len(data) + len(raw)]
        header[hf_name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data
