"""inspect and export of training checkpoints, made by the tiny jobs."""

import hashlib
import json
import shutil
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

from nibble_cli import (BINARY, MODELS, ROOT, CliTestCase, Safetensors, directory_tensors,
                        weights_sha256, write_safetensors)

TRAIN_TIMEOUT_S = 100


def train(config, directory, *overrides):
    pairs = (f"run.directory={directory}", *overrides)
    flags = [flag for pair in pairs for flag in ("--set", pair)]
    subprocess.run([BINARY, "train", f"configs/ci/{config}.yaml", *flags], cwd=ROOT, check=True,
                   capture_output=True, timeout=TRAIN_TIMEOUT_S)
    return sorted((Path(directory) / "checkpoints").iterdir())[-1]


def masters(checkpoint):
    """name -> (shape, float32 bytes, of all rows), and the same of the moments."""
    files = [Safetensors(path) for path in sorted(Path(checkpoint).glob("rank-*.safetensors"))]
    parts = {}  # name -> [(first row, shape, bytes)]; a rank without rows has no tensor
    for file in files:
        for name, (_, shape, data) in file.tensors.items():
            first = int(file.metadata["first_row/" + name.split("/", 1)[1]])
            parts.setdefault(name, []).append((first, shape, data))
    out = {}
    for name, held in parts.items():
        held.sort()
        out[name] = ([sum(shape[0] for _, shape, _ in held), held[0][1][1]],
                     b"".join(data for _, _, data in held))
    return out


def bf16(data):
    """Round to nearest even, by definition: no NaN among weights."""
    out = bytearray()
    for (bits,) in struct.iter_unpack("<I", data):
        out += struct.pack("<H", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)
    return bytes(out)


MASK64 = 2**64 - 1


def mix64(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def content_hash(data, first):
    """The composable hash of float32 values: a sum over (position, bits), so order is free."""
    low = high = 0
    for position, (bits,) in enumerate(struct.iter_unpack("<I", data), first):
        seed = mix64((position + 0x9E3779B97F4A7C15) & MASK64) ^ bits
        low += mix64(seed)
        high += mix64((seed + 0x632BE59BD9B4E019) & MASK64)
    return f"{high & MASK64:016x}{low & MASK64:016x}"


def seal(meta, config_text):
    """meta.json with the SHA-256 that covers its other keys and config.json."""
    meta = {key: value for key, value in meta.items() if key != "sha256"}
    text = json.dumps(meta, separators=(",", ":")) + config_text
    return {**meta, "sha256": hashlib.sha256(text.encode()).hexdigest()}


class Checkpoints(CliTestCase):
    @classmethod
    def setUpClass(cls):
        cls.runs = Path(tempfile.mkdtemp(prefix="nibble_cli_runs_"))
        cls.addClassCleanup(shutil.rmtree, cls.runs)
        cls.dense = train("tiny-dense", cls.runs / "dense")
        cls.moe = train("tiny-moe", cls.runs / "moe")

    def inspect(self, path):
        return json.loads(self.succeed("inspect", path, "--json"))

    def export(self, checkpoint, to, *flags):
        target = self.folder / f"{checkpoint.parents[1].name}-{to}"
        self.succeed("export", "--to", to, "--input-dir", checkpoint, "--output-dir", target,
                     *flags)
        return target

    def test_a_checkpoint_and_its_int4_export_have_the_same_weights_sha256(self):
        for checkpoint, source in ((self.dense, "dense_untied"), (self.moe, "moe_norm")):
            with self.subTest(source):
                side_files = MODELS / source / "bf16"
                target = self.export(checkpoint, "int4", "--side-files", side_files)
                want = self.inspect(checkpoint)
                got = self.inspect(target)
                self.assertEqual(got["weights_sha256"], want["weights_sha256"])
                self.assertEqual(got["weights_sha256"], weights_sha256(target))
                self.assertEqual(got["quantization"], want["quantization"])
                self.assertEqual((want["format"], got["format"]), ("training", "huggingface"))
                for name in ("tokenizer.json", "tokenizer_config.json"):
                    self.assertEqual((target / name).read_bytes(), (side_files / name).read_bytes())
                names = set(directory_tensors(target))
                self.assertEqual(names, set(directory_tensors(MODELS / source / "int4_sym7")))

    def test_inspect_says_where_the_run_stands(self):
        got = self.inspect(self.dense)
        initial = self.inspect(MODELS / "dense_untied/bf16")
        rows = [json.loads(line) for line in
                (self.runs / "dense/metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if "reward_mean" in row][-1]
        self.assertEqual((got["step"], last["step"]), (6, 6))
        self.assertEqual(got["weight_version"], last["step"] + 1)  # version 1 is before step 1
        self.assertEqual(got["parameters"], initial["parameters"])
        text = self.succeed("inspect", self.dense)
        for part in ("training checkpoint", got["weights_sha256"], got["state_sha256"]):
            self.assertIn(part, text)

    def test_state_sha256_is_over_masters_and_moments_by_name(self):
        stored = masters(self.dense)
        sha = hashlib.sha256(struct.pack("<q", json.loads(
            (self.dense / "meta.json").read_text())["updates"]))
        names = sorted(name.split("/", 1)[1] for name in stored if name.startswith("master/"))
        for name in names:
            for kind in ("m", "master", "v"):
                sha.update(stored[f"{kind}/{name}"][1])
        self.assertEqual(self.inspect(self.dense)["state_sha256"], sha.hexdigest())

    def test_exported_tensors_are_the_masters_rounded_as_served(self):
        # Rounded by the converter, of which the oracles are elsewhere: masters that are BF16
        # values go the same way through `convert`.
        checkpoint = self.copy_checkpoint()
        rounded = {name: (shape, bf16(data)) for name, (shape, data) in masters(checkpoint).items()
                   if name.startswith("master/")}
        for path in checkpoint.glob("rank-*.safetensors"):
            file = Safetensors(path)
            for name, (dtype, shape, data) in file.tensors.items():
                if name.startswith("master/"):
                    wide = b"".join(b"\0\0" + value for (value,) in
                                    struct.iter_unpack("2s", bf16(data)))
                    file.tensors[name] = (dtype, shape, wide)
            self.write_with_metadata(path, file)
        plain = self.copy_model("dense_untied/bf16")
        for path in plain.glob("model*"):
            path.unlink()
        write_safetensors(plain / "model.safetensors", {
            name.split("/", 1)[1]: ("BF16", shape[1:] if "norm" in name else shape, data)
            for name, (shape, data) in rounded.items()})
        want = self.folder / "converted"
        self.succeed("convert", "--method", "rtn", "--input-dir", plain, "--output-dir", want)
        got = self.export(checkpoint, "int4")
        self.assertEqual(directory_tensors(got), directory_tensors(want))

    def test_what_is_not_quantized_is_the_master_in_bf16(self):
        got = directory_tensors(self.export(self.moe, "int4"))
        stored = masters(self.moe)
        plain = [name for name, (dtype, _, _) in got.items()
                 if dtype == "BF16" and name.endswith(".weight")]
        self.assertGreater(len(plain), 10)
        for name in plain:
            self.assertEqual(got[name][2], bf16(stored["master/" + name][1]), name)

    def test_the_bf16_export_is_the_int4_export_dequantized(self):
        target = self.export(self.dense, "bf16")
        packed = self.export(self.dense, "int4")
        again = self.folder / "again"
        self.succeed("export", "--to", "bf16", "--input-dir", packed, "--output-dir", again)
        self.assertEqual(directory_tensors(target), directory_tensors(again))
        self.assertNotIn("quantization_config", json.loads((target / "config.json").read_text()))
        line = '{"input_ids": [1, 2, 3, 4]}\n'
        outputs = {self.succeed("logprobs", "--model", path, "--path", "rollout", stdin=line)
                   for path in (target, packed)}
        self.assertEqual(len(outputs), 1)

    def test_an_export_can_be_sampled_and_evaluated(self):
        target = self.export(self.dense, "int4", "--side-files", MODELS / "dense_untied/bf16")
        out = self.succeed("generate", "--model", target, "--max-new-tokens", 4,
                           stdin='{"prompt": "value 1 plus"}\n')
        self.assertIsInstance(json.loads(out)["text"], str)

    def test_a_bf16_run_has_no_int4_export(self):
        checkpoint = train("tiny-dense", self.runs / "bf16", "qat.enabled=false",
                           "rollout.quantize=false", "run.steps=2")
        self.refuse("export", "--to", "int4", "--input-dir", checkpoint, "--output-dir",
                    self.folder / "out", says=["--to bf16", "step-000002"])
        target = self.export(checkpoint, "bf16", "--side-files", MODELS / "dense_untied/bf16")
        self.assertEqual(self.inspect(target)["weights_sha256"],
                         self.inspect(checkpoint)["weights_sha256"])

    def copy_checkpoint(self):
        target = self.folder / "run/checkpoints/step-000006"
        shutil.copytree(self.dense, target)
        return target

    def write_with_metadata(self, path, file):
        """As training writes it: a damaged value is one that its hash agrees with."""
        header, blob = {"__metadata__": file.metadata}, b""
        for name, (dtype, shape, data) in file.tensors.items():
            first = int(file.metadata["first_row/" + name.split("/", 1)[1]]) * shape[1]
            file.metadata["hash/" + name] = content_hash(data, first)
            header[name] = {"dtype": dtype, "shape": shape,
                            "data_offsets": [len(blob), len(blob) + len(data)]}
            blob += data
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + blob)

    def refuse_checkpoint(self, checkpoint, *says):
        self.refuse("inspect", checkpoint, says=says)
        self.refuse("export", "--to", "int4", "--input-dir", checkpoint, "--output-dir",
                    self.folder / "out", says=says)
        self.assertEqual(list(self.folder.glob("out*")), [])

    def test_broken_checkpoints_are_refused(self):
        checkpoint = self.copy_checkpoint()
        meta = checkpoint / "meta.json"
        good = meta.read_text()
        config_text = (checkpoint / "config.json").read_text()
        for key, value in (("world", 3), ("world", 1), ("world", "two"), ("step", -1),
                           ("format_version", 9), ("updates", None)):
            with self.subTest(key, value=value):
                changed = {**json.loads(good), key: value}
                meta.write_text(json.dumps(seal(changed, config_text)))
                self.refuse_checkpoint(checkpoint, "rank-" if key == "world" and value != "two"
                                       else key)
        meta.unlink()
        self.refuse_checkpoint(checkpoint, "step-000006", "meta.json")
        meta.write_text(good)
        rank = checkpoint / "rank-001-of-002.safetensors"
        file = Safetensors(rank)
        file.metadata["first_row/lm_head.weight"] = "-5"
        self.write_with_metadata(rank, file)
        self.refuse_checkpoint(checkpoint, rank.name, "lm_head")
        file.metadata["first_row/lm_head.weight"] = "257"
        file.tensors["master/lm_head.weight"] = ("F32", [255, 128], b"\0" * 255 * 512)
        self.write_with_metadata(rank, file)
        self.refuse_checkpoint(checkpoint, "lm_head")
        rank.write_bytes(rank.read_bytes()[:5000])
        self.refuse_checkpoint(checkpoint, rank.name)

    def test_damaged_bytes_are_refused(self):
        checkpoint = self.copy_checkpoint()
        meta, config = checkpoint / "meta.json", checkpoint / "config.json"
        for path, old, new in ((meta, '"step": 6', '"step": 7'), (config, "10000", "20000")):
            with self.subTest(path.name):
                good = path.read_text()
                self.assertIn(old, good)
                path.write_text(good.replace(old, new, 1))
                self.refuse_checkpoint(checkpoint, "meta.json", "damaged")
                path.write_text(good)
        rank = checkpoint / "rank-001-of-002.safetensors"
        name, (_, _, data) = next((name, entry) for name, entry in
                                  Safetensors(rank).tensors.items() if name.startswith("m/"))
        good = rank.read_bytes()
        at = good.index(data[:4096]) + 100
        rank.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
        self.refuse("inspect", checkpoint, says=[rank.name, name, "hash"])
        rank.write_bytes(good)
        self.succeed("inspect", checkpoint)

    def test_stored_hashes_are_the_composable_hash_of_the_values(self):
        for path in sorted(self.dense.glob("rank-*.safetensors")):
            file = Safetensors(path)
            for name, (_, shape, data) in file.tensors.items():
                first = int(file.metadata["first_row/" + name.split("/", 1)[1]]) * shape[1]
                self.assertEqual(file.metadata["hash/" + name], content_hash(data, first), name)

    def test_bad_flags_are_named(self):
        out = self.folder / "out"
        self.refuse("inspect", self.runs / "dense", says=["run directory", "step-000006"])
        self.refuse("export", "--input-dir", self.runs / "dense", "--output-dir", out,
                    says=["run directory", "step-000006"])
        self.refuse("export", "--to", "int4", "--input-dir", self.dense, "--output-dir", out,
                    "--side-files", self.folder / "none", says=["--side-files", "none"])
        model = MODELS / "dense_untied/bf16"
        self.refuse("export", "--to", "int4", "--input-dir", model, "--output-dir", out,
                    says=["training checkpoint", "nibble convert"])
        self.refuse("export", "--input-dir", model, "--output-dir", out, "--side-files", model,
                    says=["--side-files"])
        out.mkdir()
        (out / "mine.txt").write_text("keep")
        self.refuse("export", "--to", "int4", "--input-dir", self.dense, "--output-dir", out,
                    says=["out", "not empty"])
        self.assertEqual([path.name for path in self.folder.iterdir()], ["out"])


if __name__ == "__main__":
    unittest.main()
