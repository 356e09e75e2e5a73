"""Tests of the GGUF reader in tools/gguf_file.py."""

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

import gguf_file  # noqa: E402
import gguf_to_hf  # noqa: E402
import scalar_gguf  # noqa: E402
import tiny_gguf  # noqa: E402
from gguf_file import GgufError, GgufFile  # noqa: E402


class ReaderTest(unittest.TestCase):
    def refuses(self, data: bytes, message: str) -> None:
        with self.assertRaisesRegex(GgufError, message):
            GgufFile(data)

    def refuses_value(self, value_type: int, encoded: bytes, message: str, key: str = "k") -> None:
        self.refuses(tiny_gguf.build([(key, (value_type, encoded))], [], b""), message)

    def refuses_entries(self, entries: list[bytes], message: str) -> None:
        self.refuses(tiny_gguf.build([], entries, bytes(256)), message)

    def test_reads_metadata_and_tensor_table(self):
        gguf = GgufFile(tiny_gguf.model())
        self.assertEqual(gguf.metadata["general.architecture"], "llama")
        self.assertEqual(gguf.metadata["tokenizer.ggml.tokens"], tiny_gguf.TOKENS)
        self.assertEqual(gguf.metadata["tokenizer.ggml.token_type"][:4], [3, 3, 3, 1])
        self.assertIs(gguf.metadata["tokenizer.ggml.add_bos_token"], False)
        stored = tiny_gguf.tensors()
        self.assertEqual(list(gguf.tensors), list(stored))
        for name, (shape, _, raw) in stored.items():
            self.assertEqual(gguf.tensors[name].shape, shape)
            self.assertEqual(gguf.rows(name).tobytes(), raw)

    def test_dequantizes_as_a_scalar_loop_does(self):
        gguf = GgufFile(tiny_gguf.model())
        for name, (_, tensor_type, raw) in tiny_gguf.tensors().items():
            values = gguf_file.dequantize(gguf.rows(name), gguf.tensors[name].type)
            self.assertEqual(values.dtype, np.float32)
            self.assertEqual(
                values.reshape(-1).tolist(), scalar_gguf.scalar_values(tensor_type, raw), name
            )

    def test_q4_1_block_written_out_by_hand(self):
        block = struct.pack("<2e", 0.5, -1.0) + bytes([0xF0, 0x21] + [0x00] * 14)
        values = gguf_file.dequantize(
            np.frombuffer(block, np.uint8).reshape(1, 20), gguf_file.Q4_1
        )[0]
        self.assertEqual(values[:3].tolist(), [-1.0, -0.5, -1.0])  # codes 0, 1, 0
        self.assertEqual(values[16:19].tolist(), [6.5, 0.0, -1.0])  # codes 15, 2, 0

    def test_refuses_every_truncation(self):
        data = tiny_gguf.model()
        last = max(info.offset + info.num_bytes for info in GgufFile(data).tensors.values())
        first = min(info.offset for info in GgufFile(data).tensors.values())
        for length in [*range(first + 1), *range(first + 1, last, 997), last - 1]:
            with self.assertRaises(GgufError, msg=f"{length} bytes"):
                GgufFile(data[:length])
        GgufFile(data[:last])

    def test_a_damaged_header_is_read_or_refused_but_never_crashes(self):
        data = tiny_gguf.model()
        header_bytes = min(info.offset for info in GgufFile(data).tensors.values())
        rng, refused = random.Random(7), 0
        for _ in range(1500):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(header_bytes)] = rng.choice([0, 1, 0x7F, 0xFF, 65])
            try:
                gguf = GgufFile(bytes(damaged))
                gguf_to_hf.tensor_plans(gguf, gguf_to_hf.model_config(gguf))
                gguf_to_hf.tokenizer_json(gguf)
                gguf_to_hf.tokenizer_config(gguf)
            except GgufError:
                refused += 1
        self.assertGreater(refused, 1000)

    def test_refuses_a_hostile_header(self):
        self.refuses(b"GGML" + bytes(20), "not a GGUF file")
        self.refuses(tiny_gguf.build([], [], b"", version=2), "version is 2")
        self.refuses(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announces .* tensors")
        self.refuses(b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "announces .* metadata")
        self.refuses(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, (1 << 64) - 1), "metadata key is")

    def test_refuses_hostile_metadata(self):
        huge = struct.pack("<Q", 1 << 62)
        self.refuses_value(tiny_gguf.STRING, huge, "bytes long")
        self.refuses_value(tiny_gguf.STRING, struct.pack("<Q", 2) + b"\xc3\x28", "not UTF-8")
        self.refuses_value(tiny_gguf.ARRAY, struct.pack("<I", tiny_gguf.U64) + huge, "items")
        self.refuses_value(tiny_gguf.ARRAY, struct.pack("<IQ", tiny_gguf.U64, 1 << 20), "ends")
        self.refuses_value(tiny_gguf.ARRAY, struct.pack("<IQ", tiny_gguf.STRING, 9), "ends")
        nested = struct.pack("<IQIQ", tiny_gguf.ARRAY, 1, tiny_gguf.U8, 0)
        self.refuses_value(tiny_gguf.ARRAY, nested, "has the type 9")
        self.refuses_value(13, bytes(8), "has the type 13")
        self.refuses_value(tiny_gguf.BOOL, b"\2", "truth value")
        number = (tiny_gguf.U8, b"\1")
        self.refuses(tiny_gguf.build([("k", number), ("k", number)], [], b""), "occurs twice")
        for alignment in (0, 4, 24, 1 << 17):
            encoded = struct.pack("<I", alignment)
            self.refuses_value(tiny_gguf.U32, encoded, "power of two", "general.alignment")
        self.refuses_value(
            tiny_gguf.STRING, tiny_gguf.string("32"), "power of two", "general.alignment"
        )

    def test_refuses_a_hostile_tensor_table(self):
        def entry(shape=(32,), tensor_type=tiny_gguf.Q4_1, offset=0, name="t"):
            return tiny_gguf.entry(name, shape, tensor_type, offset)

        self.refuses_entries([entry(shape=())], "0 dimensions")
        self.refuses_entries([entry(shape=(32,) * 5)], "5 dimensions")
        self.refuses_entries([entry(shape=(32, 0))], "cannot store")
        self.refuses_entries([entry(shape=(33,))], "cannot store")
        self.refuses_entries([entry(tensor_type=2)], "GGML type 2")
        self.refuses_entries([entry(shape=(1 << 63, 1 << 63))], "ends inside the tensor")
        self.refuses_entries([entry(offset=(1 << 64) - 32)], "ends inside the tensor")
        self.refuses_entries([entry(offset=8)], "not aligned")
        self.refuses_entries([entry(), entry(offset=32)], "occurs twice")
        self.refuses_entries([entry(shape=(64,)), entry(offset=32, name="u")], "overlap")


if __name__ == "__main__":
    unittest.main()
