"""nibble convert --method gptq: better than rounding, the same after any interruption, clear refusals."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
import unittest

from nibble_cli import BINARY, MODELS, CliTestCase, directory_tensors, nibble

WINDOW = 64


def samples(number=24):
    return ("--num-calibration-samples", number, "--max-sequence-length", WINDOW, "--held-out-samples", 4)


WORDS = ("the of and to in is that for it as was with be by on not he his but at are this have "
         "from or had an they which one you were all her she there would their we him been has "
         "when who will no more if out so up said what its about than into them can only").split()
# One run each; CI must not take an hour. NIBBLE_TEST_KILLS=50 for the whole proof.
KILLS = int(os.environ.get("NIBBLE_TEST_KILLS", "6"))


def write_text(path, records=400, seed=0):
    """Sentences of a small grammar: words follow a few others, so that inputs are correlated."""
    source = random.Random(seed)
    with open(path, "w") as out:
        for _ in range(records):
            word, words = source.choice(WORDS), []
            for _ in range(source.randint(20, 60)):
                words.append(word)
                word = WORDS[(WORDS.index(word) * 7 + source.randint(0, 4)) % len(WORDS)]
            out.write(json.dumps({"text": " ".join(words) + "."}) + "\n")


class ConvertGptq(CliTestCase):
    def setUp(self):
        super().setUp()
        self.data = self.folder / "text.jsonl"
        write_text(self.data)

    def refused(self, *arguments):
        """The one line that says why."""
        code, _, error = nibble(*arguments)
        self.assertEqual(code, 2, error)
        return error.strip().split("\n")[-1]

    def arguments(self, model, target, *flags, number=24):
        return ("convert", "--input-dir", MODELS / model / "bf16", "--output-dir", target,
                "--data-dir", self.data, *samples(number), *flags)

    def convert(self, model, *flags, target="out", env=None):
        target = self.folder / target
        out = self.succeed(*self.arguments(model, target, "--json", *flags), env=env)
        return target, json.loads(out)

    def test_outputs_are_closer_than_those_of_rounding_for_every_kind_of_model(self):
        for model, flags in (("dense_tied", ()), ("llama_smol", ()), ("moe_norm", ()),
                             ("moe_mixed", ("--targets", "linear"))):
            with self.subTest(model):
                target, report = self.convert(model, *flags)
                _, rounded = self.convert(model, "--method", "rtn", *flags, target="rtn")
                ratios = [layer["output_error"] / layer["nearest_output_error"]
                          for layer in report["layers"]]
                self.assertLess(sum(ratios) / len(ratios), 0.8)
                self.assertTrue(all(layer["recovery"] == "none" for layer in report["layers"]))
                self.assertLess(report["held_out"]["kl"], rounded["held_out"]["kl"])
                self.assertEqual(report["calibration_tokens"], 24 * WINDOW)
                self.assertEqual(report["held_out"]["tokens"], 4 * (WINDOW - 1))
                config = json.loads((target / "config.json").read_text())["quantization_config"]
                self.assertIsNone(config["config_groups"]["group_0"]["weights"]["actorder"])
                self.assertEqual({path.name for path in target.iterdir()} & {"layers", "conversion.json"},
                                 set())
                shutil.rmtree(target)
                shutil.rmtree(self.folder / "rtn")

    def perplexity(self, model, windows):
        """Through the engine's side, which had no part in the report."""
        lines = "".join(json.dumps({"input_ids": window}) + "\n" for window in windows)
        out = self.succeed("logprobs", "--model", model, "--path", "rollout", stdin=lines)
        logprobs = [value for line in out.splitlines() for value in json.loads(line)["logprobs"]]
        return math.exp(-sum(logprobs) / len(logprobs))

    def test_perplexities_of_the_report_are_those_of_the_served_models(self):
        source = MODELS / "dense_untied/bf16"
        words = " ".join(json.loads(line)["text"] for line in self.data.read_text().splitlines()[:60])
        self.data.write_text(json.dumps({"text": words}) + "\n")  # one record: windows in its order
        out = self.succeed("tokenize", "--model", source, stdin=json.dumps({"text": words}) + "\n")
        ids = json.loads(out)["ids"]
        held_out = [ids[at:at + WINDOW] for at in range(24 * WINDOW, 28 * WINDOW, WINDOW)]
        # In float32, and as the processor does it: with BF16 products where it has them.
        for name, env, delta in (("float", {"NIBBLE_CPU_ISA": "avx2"}, 1e-4), ("own", None, 1e-3)):
            target, report = self.convert("dense_untied", target=name, env=env)
            for model, key in ((source, "reference_perplexity"), (target, "perplexity")):
                self.assertAlmostEqual(self.perplexity(model, held_out) / report["held_out"][key], 1.0,
                                       delta=delta)
            self.assertNotEqual(report["held_out"]["perplexity"],
                                report["held_out"]["reference_perplexity"])

    def test_eight_bits_searched_scales_and_the_other_grid(self):
        errors = {}
        for name, flags in (("plain", ()), ("unsearched", ("--scale-search", "none")),
                            ("sym7p5", ("--grid", "sym7p5")), ("none", ("--actorder", "none")),
                            ("eight", ("--quant-type", "W8A16"))):
            target, report = self.convert("dense_untied", *flags)
            errors[name] = report["held_out"]["kl"]
            self.succeed("logprobs", "--model", target, "--input", self.ids()) if name != "eight" else None
            shutil.rmtree(target)
        self.assertLess(errors["eight"], 0.1 * errors["plain"])
        for name in ("unsearched", "sym7p5", "none"):
            self.assertLess(errors[name], 2.0 * errors["plain"], name)

    def ids(self):
        path = self.folder / "ids.jsonl"
        path.write_text(json.dumps({"input_ids": [1, 2, 3, 4]}) + "\n")
        return path

    def test_spilled_activations_change_no_byte(self):
        first, _ = self.convert("moe_norm")
        second, _ = self.convert("moe_norm", "--spill", target="spilled")
        self.assertEqual(directory_tensors(first), directory_tensors(second))

    def kill_and_resume(self, model, seed, *flags):
        """One conversion, killed at a random moment again and again until it ends by itself."""
        source = random.Random(seed)
        target = self.folder / f"killed-{seed}"
        kills = 0
        while True:
            process = subprocess.Popen(
                [str(BINARY), *map(str, self.arguments(model, target, "--resume", *flags))],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                process.wait(timeout=source.uniform(0.02, 1.2) if kills < 3 else 200)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            error = process.communicate()[1].decode()
            if process.returncode == 0:
                return target, kills
            self.assertEqual(process.returncode, -signal.SIGKILL, error[-500:])
            if target.exists():  # it appears in one step, whole
                return target, kills

    def test_killed_anywhere_and_resumed_it_writes_the_same_files(self):
        for model, flags in (("moe_norm", ("--max-file-mb", 1)), ("dense_untied", ())):
            whole, _ = self.convert(model, *flags, target=f"whole-{model}")
            killed = 0
            for seed in range(KILLS):
                target, kills = self.kill_and_resume(model, seed, *flags)
                killed += kills
                names = sorted(path.name for path in whole.iterdir())
                self.assertEqual(names, sorted(path.name for path in target.iterdir()))
                for name in names:
                    self.assertEqual((whole / name).read_bytes(), (target / name).read_bytes(), name)
                shutil.rmtree(target)
            self.assertGreater(killed, 0)

    def test_another_conversion_is_not_gone_on_from(self):
        target = self.folder / "out"
        process = subprocess.Popen(
            [str(BINARY), *map(str, self.arguments("moe_norm", target, number=100))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(self.folder.glob("out.partial/layers/*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        self.assertTrue((self.folder / "out.partial/conversion.json").exists())
        error = self.refused(*self.arguments("moe_norm", target, "--resume", "--dampening-frac", 0.02, number=100))
        self.assertIn("dampening_frac", error)
        # Products are split over threads, and bits with them.
        error = self.refused(*self.arguments("moe_norm", target, "--resume", "--threads", 7, number=100))
        self.assertIn("7 threads", error)
        # What could be gone on from is still there.
        self.assertTrue((self.folder / "out.partial/conversion.json").exists())
        self.assertIn("--resume", self.refused(*self.arguments("moe_norm", target)))

    def test_a_directory_that_no_conversion_left_is_not_touched(self):
        partial = self.folder / "out.partial"
        partial.mkdir()
        (partial / "thesis.txt").write_text("three years")
        self.assertIn("conversion.json", self.refused(*self.arguments("moe_norm", self.folder / "out", "--resume")))
        self.assertEqual((partial / "thesis.txt").read_text(), "three years")

    def test_a_finished_conversion_has_nothing_to_resume(self):
        self.convert("moe_norm")
        error = self.refused(*self.arguments("moe_norm", self.folder / "out", "--resume"))
        self.assertIn("nothing is left to go on from", error)

    def test_finished_layers_outlive_a_later_error(self):
        source = shutil.copytree(MODELS / "dense_untied/bf16", self.folder / "model")
        command = ("convert", "--input-dir", source, "--output-dir", self.folder / "out", "--data-dir", self.data,
                   *samples())
        with open(source / "LICENSE", "wb") as file:
            file.truncate(300 << 20)  # a side file that is too large to be one
        self.assertIn("LICENSE", self.refused(*command))
        partial = self.folder / "out.partial"
        layers = sorted(path.name for path in (partial / "layers").iterdir())
        self.assertGreater(len(layers), 1)
        # What kills leave, and another model of the same weights.
        for name in ("model.safetensors.tmp.123", "activations.tmp", "layers/layer-00000.safetensors.tmp.9"):
            (partial / name).write_bytes(b"x" * 1000)
        (source / "LICENSE").unlink()
        config = (source / "config.json").read_text()
        (source / "config.json").write_text(json.dumps(json.loads(config) | {"rms_norm_eps": 0.5}))
        self.assertIn("input_config", self.refused(*command, "--resume"))
        (source / "config.json").write_text(config)
        report = json.loads(self.succeed(*command, "--resume", "--json"))
        self.assertEqual(report["resumed_layers"], len(layers))
        whole, _ = self.convert("dense_untied", target="whole")
        self.assertEqual(sorted(path.name for path in (self.folder / "out").iterdir()),
                         sorted(path.name for path in whole.iterdir()))
        self.assertEqual(directory_tensors(self.folder / "out"), directory_tensors(whole))

    def test_group_sizes_are_compared(self):
        out = self.succeed("convert", "--input-dir", MODELS / "dense_untied/bf16", "--data-dir", self.data,
                           *samples(), "--compare", "32,64,128", "--json")
        sizes = json.loads(out)["group_sizes"]
        self.assertEqual([size["group_size"] for size in sizes], [32, 64, 128])
        width = json.loads((MODELS / "dense_untied/bf16/config.json").read_text())["hidden_size"]
        for size in sizes:
            if width % size["group_size"] != 0:
                self.assertTrue(size["undivided"])
                continue
            self.assertGreater(size["held_out"]["kl"], 0)
        whole, report = self.convert("dense_untied", "--quant-group-size", 32)
        self.assertAlmostEqual(sizes[0]["held_out"]["kl"], report["held_out"]["kl"], places=6)
        self.assertEqual(sizes[0]["output_bytes"], report["output_bytes"])
        text = self.succeed("convert", "--input-dir", MODELS / "dense_untied/bf16", "--data-dir", self.data,
                            *samples(), "--compare", "32", "--method", "rtn")
        self.assertIn("perplexity of the original", text)
        self.assertIn(" -\n", text, "rounding looks at no outputs, and reports no error of them")
        for flags, words in ((("--compare", "32,64,32"), "32 twice"), (("--compare", "32", "--resume"), "--resume")):
            self.assertIn(words, self.refused("convert", "--input-dir", MODELS / "dense_untied/bf16",
                                              "--data-dir", self.data, *samples(), *flags))

    def test_what_makes_no_sense_is_refused(self):
        source = MODELS / "dense_untied/bf16"
        for flags, words in (
                ((), "--data-dir"),
                (("--data-dir", self.folder / "nothing"), "nothing"),
                (("--data-dir", self.data, "--num-calibration-samples", 1000000), "--num-calibration-samples"),
                (("--data-dir", self.data, "--num-calibration-samples", 0), "--num-calibration-samples"),
                (("--data-dir", self.data, "--dampening-frac", 0), "--dampening-frac"),
                (("--data-dir", self.data, "--actorder", "group"), "--actorder"),
                (("--data-dir", self.data, "--scale-search", "x"), "--scale-search"),
                (("--data-dir", self.data, "--threads", -5), "--threads"),
                (("--data-dir", self.data, "--seed", -1), "--seed"),
                (("--method", "rtn", "--held-out-samples", 4), "--held-out-samples"),
                (("--method", "rtn", "--spill"), "--spill"),
                (("--data-dir", self.data, "--max-file-mb", 2**63 - 1), "--max-file-mb"),
                (("--data-dir", self.data, "--compare", "32"), "--compare"),
                (("--data-dir", self.data, "--compare", "48"), "--compare"),
        ):
            with self.subTest(flags):
                error = self.refused("convert", "--input-dir", source, "--output-dir",
                                       self.folder / "none", *flags)
                self.assertIn(words, error)
                self.assertFalse((self.folder / "none").exists())
                self.assertFalse((self.folder / "none.partial").exists())


if __name__ == "__main__":
    unittest.main()
