"""nibble logprobs against Transformers (tests/oracles/models), both paths, and against each other."""

import json
import unittest

from nibble_cli import MODEL_NAMES, MODELS, CliTestCase, Safetensors

TOLERANCE = 5e-5  # float32; tests/oracles/models/README.md


class Fixture:
    def __init__(self, name):
        self.name = name
        self.io = Safetensors(MODELS / name / "io.safetensors")
        self.ids = []
        while f"seq{len(self.ids)}.input_ids" in self.io.tensors:
            self.ids.append(self.io.values(f"seq{len(self.ids)}.input_ids"))

    def stdin(self):
        return "".join(json.dumps({"input_ids": ids}) + "\n" for ids in self.ids)


class LogProbs(CliTestCase):
    def run_path(self, fixture, path, *flags, variant="bf16"):
        return self.succeed("logprobs", "--model", MODELS / fixture.name / variant, "--path", path,
                            *flags, stdin=fixture.stdin())

    def expect_close(self, text, fixture, prefix):
        lines = text.splitlines()
        self.assertEqual(len(lines), len(fixture.ids))
        for k, line in enumerate(lines):
            got = json.loads(line)["logprobs"]
            self.assertEqual(len(got), len(fixture.ids[k]) - 1)
            key = f"{prefix}seq{k}.logprobs_fp32"
            want = fixture.io.values(key) if got else []
            self.assertEqual(len(got), len(want))
            for a, b in zip(got, want):
                self.assertAlmostEqual(a, b, delta=TOLERANCE)

    def test_both_paths_give_what_transformers_gives_and_equal_bits(self):
        for name in MODEL_NAMES:
            fixture = Fixture(name)
            for variant, prefix in (("bf16", ""), ("int4_sym7", "sym7.")):
                with self.subTest(name=name, variant=variant):
                    trainer = self.run_path(fixture, "trainer", variant=variant)
                    rollout = self.run_path(fixture, "rollout", "--chunk-tokens", 7,
                                            variant=variant)
                    self.expect_close(trainer, fixture, prefix)
                    self.assertEqual(trainer, rollout)

    def test_fake_quantization_equals_the_converted_checkpoint(self):
        for name, group in (("dense_untied", 32), ("dense_tied", 128), ("moe_mixed", 32)):
            with self.subTest(name):
                fixture = Fixture(name)
                fake = self.run_path(fixture, "trainer", "--fake-quant", group)
                real = self.run_path(fixture, "rollout", variant="int4_sym7")
                self.assertEqual(fake, real)

    def test_targets_choose_what_is_rounded(self):
        fixture = Fixture("moe_mixed")
        outputs = {self.run_path(fixture, "trainer", "--fake-quant", 32, "--targets", targets)
                   for targets in ("experts", "mlp", "linear")}
        self.assertEqual(len(outputs), 3)

    def test_paths_agree_to_the_bit_in_bfloat16_and_at_other_temperatures(self):
        fixture = Fixture("moe_norm")
        for flags in (["--dtype", "bfloat16"], ["--temperature", "0.7"]):
            trainer = self.run_path(fixture, "trainer", *flags)
            self.assertEqual(trainer, self.run_path(fixture, "rollout", "--chunk-tokens", 5, *flags))
            self.assertNotEqual(trainer, self.run_path(fixture, "trainer"))

    def test_threads_and_chunks_change_no_bit(self):
        fixture = Fixture("dense_untied")
        want = self.run_path(fixture, "rollout")
        for flags in (["--threads", 2], ["--chunk-tokens", 1], ["--numerics", "fast"]):
            self.assertEqual(self.run_path(fixture, "rollout", *flags), want)

    def test_routes_are_those_of_transformers_for_every_token(self):
        for name in ("moe_norm", "moe_nonorm", "moe_mixed"):
            fixture = Fixture(name)
            text = self.run_path(fixture, "rollout", "--routes")
            self.assertEqual(text, self.run_path(fixture, "trainer", "--routes"))
            for k, line in enumerate(text.splitlines()):
                routes = json.loads(line)["routes"]
                keys = sorted((key for key in fixture.io.tensors
                               if key.startswith(f"seq{k}.layer") and
                               key.endswith(".topk_indices")),
                              key=lambda key: int(key.split(".layer")[1].split(".")[0]))
                self.assertEqual(len(routes), len(fixture.ids[k]))
                for layer, key in enumerate(keys):
                    want = fixture.io.values(key)
                    top_k = len(want) // len(fixture.ids[k])
                    for t, token in enumerate(routes):
                        self.assertEqual(len(token), len(keys))
                        self.assertEqual(set(token[layer]), set(want[t * top_k:(t + 1) * top_k]))

    def test_an_output_file_appears_whole(self):
        fixture = Fixture("dense_tied")
        source, target = self.folder / "in.jsonl", self.folder / "out.jsonl"
        source.write_text(fixture.stdin())
        self.succeed("logprobs", "--model", MODELS / "dense_tied/bf16", "--input", source,
                     "--output", target)
        self.assertEqual(target.read_text(), self.run_path(fixture, "trainer"))


if __name__ == "__main__":
    unittest.main()
