#!/usr/bin/env python3
"""What an external engine receives, decompressed by compressed-tensors itself.

Runs the tests of tests/integration/test_external_engine.py that compare weights, with the library in
place of their own arithmetic: bit for bit what `nibble export --to bf16` writes. Needs an interpreter
with requirements.txt of this folder and python/requirements.txt, and the binary in NIBBLE_BIN.
"""

import sys
import unittest
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import test_external_engine  # noqa: E402


def decompressed(words, scale, shape, config):
    """BF16 bits of the weight."""
    stored = QuantizationConfig.model_validate(config["quantization_config"])
    scheme = next(iter(stored.config_groups.values()))
    size = torch.from_numpy(np.frombuffer(shape, "<i8").copy())
    rows = int(size[0])
    weight = PackedQuantizationCompressor.decompress({
        "weight_packed": torch.from_numpy(np.frombuffer(words, "<i4").reshape(rows, -1).copy()),
        "weight_scale": torch.from_numpy(
            np.frombuffer(scale, "<i2").reshape(rows, -1).copy()).view(torch.bfloat16),
        "weight_shape": size}, scheme)["weight"]
    num_decompressed.append(weight.shape)
    assert weight.dtype is torch.bfloat16
    return weight.contiguous().view(torch.int16).numpy().tobytes()


num_decompressed = []
TESTS = ("test_a_late_engine_receives_versions_and_the_run_ends_in_the_same_state",
         "test_versions_arrive_from_deltas_and_from_workers_that_are_trainers_too")


def main():
    test_external_engine.dequantized = decompressed
    suite = unittest.TestSuite(map(test_external_engine.ExternalEngine, TESTS))
    result = unittest.TextTestRunner().run(suite)
    print(f"compressed-tensors decompressed {len(num_decompressed)} matrices")
    return 0 if result.wasSuccessful() and num_decompressed else 1


if __name__ == "__main__":
    sys.exit(main())
