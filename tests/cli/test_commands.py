"""Help, inspect, doctor and plot."""

import json
import os
import struct
import subprocess
import unittest

from nibble_cli import MODELS, CliTestCase, directory_tensors, weights_sha256

COMMANDS = ("convert", "export", "generate", "serve", "tokenize", "logprobs", "score", "eval", "inspect",
            "doctor", "plan", "bench", "plot")


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


class Help(CliTestCase):
    def test_every_command_has_help_with_an_example(self):
        overview = self.succeed("--help")
        for command in COMMANDS:
            self.assertIn(f"  {command} ", overview)
            text = self.succeed(command, "--help")
            self.assertIn("Example:", text)
            self.assertIn(f"nibble {command}", text)

    def test_version(self):
        self.assertRegex(self.succeed("--version"), r"^nibble \d+\.\d+\.\d+\n$")


class Inspect(CliTestCase):
    def inspect(self, path):
        return json.loads(self.succeed("inspect", path, "--json"))

    def test_a_bf16_checkpoint(self):
        path = MODELS / "dense_untied/bf16"
        got = self.inspect(path)
        want = sum(len(data) // 2 for _, _, data in directory_tensors(path).values())
        self.assertEqual(got["parameters"], want)
        self.assertEqual(got["architecture"], "qwen3")
        self.assertIsNone(got["quantization"])
        for key in ("state_sha256", "weight_version", "step"):
            self.assertIsNone(got[key])

    def test_an_int4_checkpoint_has_the_same_parameters(self):
        got = self.inspect(MODELS / "moe_norm/int4_sym7")
        self.assertEqual(got["parameters"], self.inspect(MODELS / "moe_norm/bf16")["parameters"])
        self.assertEqual(got["quantization"]["bits"], 4)
        self.assertEqual(got["quantization"]["group_size"], 32)
        self.assertEqual(got["quantization"]["quantized_parameters"], 2 * 8 * 3 * 128 * 64)

    def test_the_hash_is_of_the_tensors_not_of_the_files(self):
        source = MODELS / "dense_untied/bf16"  # three files
        self.succeed("export", "--input-dir", source, "--output-dir", self.folder / "one")
        hashes = {self.inspect(path)["weights_sha256"] for path in (source, self.folder / "one")}
        self.assertEqual(hashes, {weights_sha256(source)})
        other = self.inspect(MODELS / "dense_untied/int4_sym7")["weights_sha256"]
        self.assertEqual(other, weights_sha256(MODELS / "dense_untied/int4_sym7"))
        self.assertNotIn(other, hashes)

    def test_the_text_says_the_same(self):
        text = self.succeed("inspect", MODELS / "moe_norm/int4_sym7")
        for part in ("qwen3_moe", "4 bits, groups of 32",
                     weights_sha256(MODELS / "moe_norm/int4_sym7")):
            self.assertIn(part, text)


class Doctor(CliTestCase):
    def test_it_reports_this_machine(self):
        got = json.loads(self.succeed("doctor", "--json"))
        self.assertGreater(got["cpu"]["cores"], 0)
        self.assertIn(got["cpu"]["selected_isa"], got["cpu"]["isas"])
        self.assertGreater(got["memory"]["total_bytes"], 0)
        self.assertGreater(got["disk"]["free_bytes"], 0)
        self.assertTrue(got["torch"]["directory"])
        self.assertEqual(got["torch"]["version"].split(".")[0], "2")
        self.assertIn("nibble", self.succeed("doctor"))

    def test_a_cap_on_the_instruction_set_shows(self):
        got = json.loads(self.succeed("doctor", "--json", env={"NIBBLE_CPU_ISA": "scalar"}))
        self.assertEqual(got["cpu"]["selected_isa"], "scalar")


    DRIVER = r"""
        #include <string.h>
        int cuInit(unsigned flags) { return 0; }
        int cuDriverGetVersion(int* version) { *version = 12020; return 0; }
        int cuDeviceGetCount(int* count) { *count = 1; return 0; }
        int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "Tesla T4", size); return 0; }
        int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 16ull << 30; return 0; }
        int cuDeviceGetAttribute(int* value, int which, int device) { *value = which == 75 ? 7 : 5; return 0; }
        """

    def test_a_gpu_and_a_driver_that_are_too_old_are_named(self):
        source = self.folder / "driver.c"
        source.write_text(self.DRIVER)
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-include", "stddef.h", "-o",
                        self.folder / "libcuda.so.1", source], check=True, timeout=60)
        path = f"{self.folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        got = json.loads(self.succeed("doctor", "--json", env={"LD_LIBRARY_PATH": path}))
        self.assertEqual(got["cuda"]["gpus"][0]["name"], "Tesla T4")
        advice = " ".join(got["advice"])
        self.assertIn("The NVIDIA driver is for CUDA 12.2", advice)
        self.assertIn("Tesla T4 has compute capability 7.5; Nibble needs 8.0", advice)


class Plot(CliTestCase):
    def make_run(self, name, rows):
        run = self.folder / name
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    def rows(self, count):
        return [{"step": s, "reward_mean": s / (s + 5), "kl_reference": 0.001 * s,
                 "logprob_abs_diff_mean": None if s == 2 else 1e-4, "loss": 1.0,
                 "generate_ms": 1000 + s, "optimizer_ms": 50, "step_ms": 1100}
                for s in range(count)]

    def test_a_run_gets_its_charts(self):
        for count in (1, 3, 200):
            with self.subTest(steps=count):
                run = self.make_run(f"run{count}", self.rows(count))
                self.succeed("plot", run)
                sizes = {path.name: png_size(path) for path in (run / "plots").iterdir()}
                chart = (800, 480)
                self.assertEqual(sizes, {"reward.png": chart, "kl.png": chart, "gap.png": chart,
                                         "phases.png": chart, "summary.png": (1600, 960)})

    def test_what_steps_change_is_drawn_where_it_was_recorded(self):
        rows = self.rows(4)
        for row in rows:
            row.update(codes_changed_share=1e-5, scales_changed_share=0.0, bytes_changed_share=2e-5)
        run = self.make_run("changes", rows)
        self.succeed("plot", run)
        names = {path.name for path in (run / "plots").iterdir()}
        self.assertIn("changes.png", names)
        self.assertNotIn("changes_by_layer.png", names)
        for row in rows:
            for layer in range(3):
                row[f"codes_changed_share_layer_{layer:02}"] = 1e-5 * layer
        other = self.make_run("layers", rows)
        self.succeed("plot", other)
        self.assertIn("changes_by_layer.png", {path.name for path in (other / "plots").iterdir()})
        self.succeed("plot", run, other, "--output", self.folder / "both.png")

    def test_a_supervised_run_gets_charts_of_its_own(self):
        rows = [{"step": 0, "eval_loss": 6.0}]
        rows += [{"step": s, "loss": 6 / s, "grad_norm": 1.0, "forward_backward_ms": 9}
                 for s in range(1, 9)]
        run = self.make_run("sft", rows)
        self.succeed("plot", run)
        self.assertEqual({path.name for path in (run / "plots").iterdir()},
                         {"loss.png", "grad_norm.png", "phases.png", "summary.png"})
        target = self.folder / "both.png"
        self.succeed("plot", run, self.make_run("other", rows[:5]), "--output", target)
        self.assertTrue(target.exists())

    def test_a_row_still_being_written_is_left_out(self):
        run = self.make_run("live", self.rows(3))
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "rew')
        self.succeed("plot", run)

    def test_the_picture_depends_on_the_values_only(self):
        first = self.make_run("a", self.rows(9))
        again = self.make_run("b", self.rows(4) + self.rows(9))  # resumed at step 0
        other = self.make_run("c", [{**row, "reward_mean": 0.1} for row in self.rows(9)])
        for run in (first, again, other):
            self.succeed("plot", run)
        pictures = [(run / "plots/reward.png").read_bytes() for run in (first, again, other)]
        self.assertEqual(pictures[0], pictures[1])
        self.assertNotEqual(pictures[0], pictures[2])

    def test_several_runs_share_one_picture(self):
        runs = [self.make_run("bf16", self.rows(9)), self.make_run("int4", self.rows(5))]
        target = self.folder / "both.png"
        self.succeed("plot", *runs, "--labels", "BF16,INT4", "--output", target)
        self.assertEqual(png_size(target), (1600, 960))
        self.assertFalse((runs[0] / "plots").exists())
        self.refuse("plot", *runs, "--labels", "one", "--output", target, says=["--labels"])


if __name__ == "__main__":
    unittest.main()
