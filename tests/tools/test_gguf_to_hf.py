"""Tests of the conversion in tools/gguf_to_hf.py."""

import json
import pathlib
import random
import struct
import sys
import unittest

import numpy as np

sys.path[:0] = [
    str(pathlib.Path(__file__).resolve().parents[2] / "tools"),
    str(pathlib.Path(__file__).resolve().parent),
]

import gguf_to_hf  # noqa: E402
import scalar_gguf  # noqa: E402
import tiny_gguf  # noqa: E402
from gguf_file import GgufError, GgufFile  # noqa: E402


class ConversionTest(unittest.TestCase):
    def config(self, **changes) -> dict:
        gguf = GgufFile(tiny_gguf.model({**tiny_gguf.metadata(), **changes}))
        return gguf_to_hf.model_config(gguf)

    def test_bfloat16_is_the_nearest_value_and_even_in_a_tie(self):
        rng = random.Random(3)
        codes = [0, 1 << 31, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 1, 0x7F7EFFFF]
        codes += [rng.randrange(0x7F7F0000) | rng.getrandbits(1) << 31 for _ in range(3000)]
        values = np.array(codes, np.uint32).view(np.float32)
        want = [scalar_gguf.scalar_bfloat16(value) for value in values.tolist()]
        self.assertEqual(gguf_to_hf.to_bfloat16(values, "t").tolist(), want)
        largest = np.array([0x7F7F7FFF], np.uint32).view(np.float32)
        self.assertEqual(gguf_to_hf.to_bfloat16(largest, "t").tolist(), [0x7F7F])

    def test_bfloat16_refuses_what_is_not_a_number_or_rounds_to_infinity(self):
        for code in (0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F7F8000, 0xFF7FFFFF):
            with self.assertRaisesRegex(GgufError, "'weights' holds"):
                gguf_to_hf.to_bfloat16(np.array([1, code], np.uint32).view(np.float32), "weights")

    def test_unpermuting_restores_the_rows_that_llama_cpp_stored(self):
        self.assertEqual(gguf_to_hf.hf_row_order(8, 1).tolist(), [0, 2, 4, 6, 1, 3, 5, 7])
        for num_heads, head_dim in [(1, 2), (3, 64), (9, 64), (4, 6)]:
            rows = list(range(num_heads * head_dim))
            stored = np.array(scalar_gguf.llama_cpp_permute(rows, num_heads))
            restored = stored[gguf_to_hf.hf_row_order(len(rows), num_heads)]
            self.assertEqual(restored.tolist(), rows)

    def test_rotating_restored_rows_by_halves_equals_rotating_stored_rows_by_neighbours(self):
        rng = np.random.default_rng(5)
        stored, angles = rng.normal(size=(3, 4, 2)), rng.normal(size=4)
        turned = (stored[..., 0] + 1j * stored[..., 1]) * np.exp(1j * angles)
        by_neighbours = np.stack([turned.real, turned.imag], axis=-1).reshape(-1)
        order = gguf_to_hf.hf_row_order(24, 3)
        halves = stored.reshape(-1)[order].reshape(3, 2, 4)
        turned = (halves[:, 0] + 1j * halves[:, 1]) * np.exp(1j * angles)
        by_halves = np.stack([turned.real, turned.imag], axis=1).reshape(-1)
        np.testing.assert_allclose(by_halves, by_neighbours[order], rtol=1e-12)

    def test_config_holds_the_values_of_the_metadata(self):
        config = self.config()
        self.assertEqual(config["architectures"], ["LlamaForCausalLM"])
        self.assertEqual(config["hidden_size"], 64)
        self.assertEqual(config["num_key_value_heads"], 2)
        self.assertEqual(repr(config["rms_norm_eps"]), "1e-05")
        self.assertEqual(repr(config["rope_theta"]), "100000")
        self.assertEqual([config[f"{name}_token_id"] for name in ("bos", "eos", "pad")], [1, 2, 2])
        self.assertIs(config["tie_word_embeddings"], True)

    def test_tokenizer_has_the_layout_of_smollm2(self):
        gguf = GgufFile(tiny_gguf.model())
        made = gguf_to_hf.tokenizer_json(gguf)
        oracle_folder = pathlib.Path(__file__).resolve().parents[1] / "oracles" / "tokenizer"
        oracle = json.loads((oracle_folder / "smollm2_style/tokenizer.json").read_text("utf-8"))
        self.assertEqual(made["added_tokens"], oracle["added_tokens"][:3])
        self.assertEqual(made["model"]["vocab"], {t: i for i, t in enumerate(tiny_gguf.TOKENS)})
        self.assertEqual(made["model"]["merges"], ["a b"])
        for part in (made, oracle):
            del part["added_tokens"], part["model"]["vocab"], part["model"]["merges"]
        self.assertEqual(made, oracle)

    def test_tokenizer_config_names_the_end_token_and_the_chat_template(self):
        made = gguf_to_hf.tokenizer_config(GgufFile(tiny_gguf.model()))
        self.assertEqual(made["eos_token"], "<|im_end|>")
        self.assertEqual(made["bos_token"], "<|im_start|>")
        self.assertEqual(made["chat_template"], tiny_gguf.TEMPLATE)
        self.assertEqual(list(made["added_tokens_decoder"]), ["0", "1", "2"])

    def test_refuses_metadata_that_does_not_fit(self):
        def count(value):
            return (tiny_gguf.U32, struct.pack("<I", value))

        text = (tiny_gguf.STRING, tiny_gguf.string("mamba"))
        for key, value, message in [
            ("general.architecture", text, "only llama"),
            ("llama.attention.head_count", count(5), "do not fit"),
            ("llama.attention.head_count_kv", count(3), "do not fit"),
            ("llama.embedding_length", text, "needs llama.embedding_length"),
            ("llama.context_length", count(0), "must be positive"),
            ("tokenizer.ggml.eos_token_id", count(9), "is no token"),
            ("llama.rope.freq_base", (tiny_gguf.F32_VALUE, struct.pack("<f", np.nan)), "positive"),
        ]:
            with self.subTest(key), self.assertRaisesRegex(GgufError, message):
                self.config(**{key: value})

    def test_refuses_tensors_that_do_not_fit(self):
        def plans(values, stored):
            gguf = GgufFile(tiny_gguf.model(values, stored))
            gguf_to_hf.tensor_plans(gguf, gguf_to_hf.model_config(gguf))

        stored, values = tiny_gguf.tensors(), tiny_gguf.metadata()
        norm = stored["output_norm.weight"]
        with self.assertRaisesRegex(GgufError, "has the tensor 'output.weight'"):
            plans(values, {**stored, "output.weight": norm})
        with self.assertRaisesRegex(GgufError, "want"):
            plans(values, {**stored, "output_norm.weight": ((8, 8), *norm[1:])})
        with self.assertRaisesRegex(GgufError, "more than tensors"):
            plans({**values, "llama.block_count": (4, struct.pack("<I", (1 << 31) - 1))}, stored)
        del stored["blk.1.attn_k.weight"]
        with self.assertRaisesRegex(GgufError, "lacks the tensor 'blk.1.attn_k.weight'"):
            plans(values, stored)

    def test_refuses_a_tokenizer_that_does_not_fit(self):
        for key, items, message in [
            ("tokens", ["a"] * len(tiny_gguf.TOKENS), "all differ"),
            ("tokens", ["a", "b"], "2 items"),
            ("merges", ["a  b"], "joins no two tokens"),
            ("merges", ["a a"], "joins no two tokens"),
            ("token_type", ["3"], "token_type must say"),
        ]:
            encoded = (tiny_gguf.ARRAY, tiny_gguf.strings(items))
            values = {**tiny_gguf.metadata(), f"tokenizer.ggml.{key}": encoded}
            with self.subTest(message), self.assertRaisesRegex(GgufError, message):
                gguf_to_hf.tokenizer_json(GgufFile(tiny_gguf.model(values)))
        values = {**tiny_gguf.metadata(), "tokenizer.ggml.pre": (8, tiny_gguf.string("qwen2"))}
        with self.assertRaisesRegex(GgufError, "only gpt2 with smollm"):
            gguf_to_hf.tokenizer_config(GgufFile(tiny_gguf.model(values)))


if __name__ == "__main__":
    unittest.main()
