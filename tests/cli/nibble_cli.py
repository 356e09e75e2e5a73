"""Runs the `nibble` binary and reads what it writes, with Python's own library only."""

import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("NIBBLE_BINARY", str(ROOT / "build/cpu/bin/nibble"))
MODELS = ROOT / "tests/oracles/models"
TOKENIZERS = ROOT / "tests/oracles/tokenizer"
MODEL_NAMES = ("dense_untied", "dense_tied", "moe_norm", "moe_nonorm", "moe_mixed", "llama_smol")
TIMEOUT_S = 60


def nibble(*arguments, stdin="", env=None):
    """Exit code, stdout and stderr of one run."""
    run = subprocess.run([BINARY, *map(str, arguments)], input=stdin, capture_output=True,
                         text=True, encoding="utf-8", timeout=TIMEOUT_S,
                         env={**os.environ, **(env or {})})
    return run.returncode, run.stdout, run.stderr


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").split("\n") if line]


class Safetensors:
    """name -> (dtype, shape, bytes) of one file."""

    def __init__(self, path):
        data = Path(path).read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + size])
        self.metadata = header.pop("__metadata__", {})
        self.tensors = {}
        for name, info in header.items():
            begin, end = info["data_offsets"]
            self.tensors[name] = (info["dtype"], info["shape"],
                                  data[8 + size + begin:8 + size + end])

    def values(self, name):
        dtype, _, data = self.tensors[name]
        kind = {"F32": "f", "I64": "q", "I32": "i"}[dtype]
        return list(struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data))


def write_safetensors(path, tensors):
    header, blob = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + blob)


def directory_tensors(directory):
    """All tensors of a Hugging Face directory, through its index if it has one."""
    index = Path(directory) / "model.safetensors.index.json"
    if not index.exists():
        return Safetensors(Path(directory) / "model.safetensors").tensors
    weight_map = json.loads(index.read_text())["weight_map"]
    files = {name: Safetensors(Path(directory) / name) for name in set(weight_map.values())}
    return {name: files[file].tensors[name] for name, file in weight_map.items()}


class CliTestCase(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="nibble_cli_"))
        self.addCleanup(shutil.rmtree, self.folder)

    def succeed(self, *arguments, stdin="", env=None):
        code, out, err = nibble(*arguments, stdin=stdin, env=env)
        self.assertEqual(code, 0, f"{arguments}\n{err}")
        return out

    def refuse(self, *arguments, says=(), stdin="", code=2):
        """The run fails with one line on stderr that names what is wrong."""
        got, _, err = nibble(*arguments, stdin=stdin)
        self.assertEqual(got, code, f"{arguments}\n{err}")
        lines = [line for line in err.split("\n") if line]
        self.assertEqual(len(lines), 1, err)
        self.assertTrue(lines[0].startswith("nibble: "), err)
        for text in says:
            self.assertIn(text, lines[0])

    def copy_model(self, name="dense_tied/bf16"):
        target = self.folder / "model"
        shutil.copytree(MODELS / name, target)
        return target
