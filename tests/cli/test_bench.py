"""`nibble bench`: publications between processes and the rollout engine, small ones. No times are asserted."""

import json
import math
import unittest

from nibble_cli import MODELS, CliTestCase, nibble

MOE = MODELS / "moe_norm/int4_sym7"  # eight experts, two KV heads
TIED = MODELS / "dense_tied/int4_sym7"
KEYS = ["bench", "from", "to", "receivers", "bytes", "packed_bytes", "gb_per_s",
        "wire_gb_per_s", "raw_gb_per_s", "of_raw", "wire_of_raw", "pause_ms", "max_pause_ms",
        "bound_share", "peak_extra_bytes", "bucket_kib", "direct_kib", "n"]


class BenchSync(CliTestCase):
    def bench(self, source, target, *flags, model=MOE):
        out = self.succeed("bench", "sync", "--from", source, "--to", target, "--model", model,
                           "--rounds", 2, "--json", *flags)
        self.assertEqual(out.count("\n"), 1)
        return json.loads(out)

    def refuse_layouts(self, source, target, says, model=MOE):
        self.refuse("bench", "sync", "--from", source, "--to", target, "--model", model, says=says)

    def expect_sound(self, line):
        self.assertEqual(list(line), KEYS)
        self.assertEqual((line["bench"], line["n"]), ("sync", 2))
        for key in ("gb_per_s", "wire_gb_per_s", "raw_gb_per_s"):
            self.assertGreater(line[key], 0)
        self.assertGreaterEqual(line["max_pause_ms"], line["pause_ms"])
        self.assertTrue(math.isclose(line["of_raw"], line["gb_per_s"] / line["raw_gb_per_s"]))
        # Hashes are 16 bytes a slice, which is much beside tensors as small as these.
        self.assertGreater(line["bytes"], line["packed_bytes"])
        self.assertLess(line["bytes"], 1.02 * line["packed_bytes"])

    def test_whole_models_take_the_transaction_from_any_trainers(self):
        sizes = set()
        for source, target in (("dp1", "1x"), ("dp2", "1x"), ("dp3", "3x"), ("dp2tp2", "2x"),
                               ("dp4ep2", "1x"), ("tp2ep4", "1x")):
            with self.subTest(f"{source} -> {target}"):
                line = self.bench(source, target)
                self.expect_sound(line)
                self.assertEqual((line["from"], line["to"]), (source, target))
                self.assertEqual(line["receivers"], int(target[0]))
                sizes.add(line["packed_bytes"] / line["receivers"])
        self.assertEqual(len(sizes), 1)

    def test_ranks_of_an_engine_take_their_part_in_the_same_transaction(self):
        whole = self.bench("dp1", "1x")["packed_bytes"]
        for source, target, receivers in (("dp2", "ep2", 2), ("dp2tp2", "tp2", 2),
                                          ("dp2ep2", "1xtp2ep2", 2)):
            with self.subTest(f"{source} -> {target}"):
                line = self.bench(source, target)
                self.expect_sound(line)
                self.assertEqual(line["receivers"], receivers)
                self.assertLess(line["packed_bytes"], receivers * whole)
                self.assertGreater(line["packed_bytes"], whole)

    def test_replicas_of_engines_get_a_copy_each(self):
        one = self.bench("dp2", "ep2")["packed_bytes"]
        line = self.bench("dp2", "2xep2")
        self.expect_sound(line)
        self.assertEqual((line["receivers"], line["packed_bytes"]), (4, 2 * one))

    def test_config_json_is_enough_and_flags_say_what_is_quantized(self):
        model = self.folder / "model"
        model.mkdir()
        (model / "config.json").write_bytes((TIED / "config.json").read_bytes())
        stored = self.bench("dp2", "1x", model=model)["packed_bytes"]
        self.assertEqual(self.bench("dp2", "1x", model=TIED)["packed_bytes"], stored)
        more = self.bench("dp2", "1x", "--group-size", 32, "--targets", "mlp", model=model)
        less = self.bench("dp2", "1x", "--group-size", 64, "--targets", "mlp", "--bucket-kib", 16,
                          model=model)
        self.expect_sound(less)
        self.assertLess(less["packed_bytes"], more["packed_bytes"])
        self.assertEqual(less["bucket_kib"], 16)

    def test_the_table_says_what_was_measured(self):
        text = self.succeed("bench", "sync", "--from", "dp2", "--to", "1x", "--model", TIED,
                            "--rounds", 1)
        for part in ("dp2 -> 1x", "publication", "raw Gloo send", "pause", "packed"):
            self.assertIn(part, text)

    def test_alone_it_lists_what_there_is(self):
        names = [line.split()[0] for line in self.succeed("bench").splitlines()]
        self.assertEqual(names[:5], ["decode", "prefill", "serve", "sync", "train"])
        self.assertIn("transaction", self.succeed("bench", "sync", "--help"))
        self.refuse("bench", "snyc", says=["unknown command 'snyc'", "'sync'"])
        self.refuse("bench", "sync", "--form", "dp2", says=["`bench sync`", "'--from'"])
        self.refuse("bench", "sync", "--from", "dp2", says=["--to", "bench sync --help"])

    def test_a_layout_is_refused_by_its_part(self):
        for text, part in (("dp0", "dp0"), ("dp02", "dp02"), ("dp65", "dp65"), ("dp2tp", "tp"),
                           ("dp2qp2", "qp2"), ("tp2dp2", "dp2"), ("dp2dp2", "dp2"), ("2", "2"),
                           ("2xdp2", "2x"), ("dp3ep2", "ep2"), ("dp2 ", " "), ("-dp2", "-dp2")):
            with self.subTest(text):
                self.refuse_layouts(text, "1x", [f"--from '{text}'", f"part '{part}'"])
        self.refuse_layouts("dp2", "0x", ["--to '0x'", "part '0x'"])
        self.refuse_layouts("dp2", "2x3x", ["--to '2x3x'", "part '3'"])
        self.refuse_layouts("dp2", "40xtp2", ["--to '40xtp2'", "80 ranks"])
        self.refuse_layouts("", "1x", ["--from is empty"])

    def test_a_layout_that_cannot_share_the_model_is_refused_with_the_size_at_fault(self):
        self.refuse_layouts("dp2", "2xep3", ["--to", "the number of experts = 8"])
        self.refuse_layouts("dp2tp4", "1x", ["--from", "num_key_value_heads = 2"])
        self.refuse_layouts("dp2", "ep2", ["--to", "no experts"], model=TIED)

    def test_bad_values_are_named(self):
        layouts = ("bench", "sync", "--from", "dp2", "--to", "1x", "--model")
        self.refuse(*layouts, MOE, "--rounds", 0, says=["--rounds is 0"])
        self.refuse(*layouts, MOE, "--rounds", "0x10", says=["0x10"])
        self.refuse(*layouts, MOE, "--bucket-kib", 0, says=["--bucket-kib is 0"])
        self.refuse(*layouts, MOE, "--direct-kib", 0, says=["--direct-kib is 0"])
        self.refuse(*layouts, MOE, "--group-size", 48, says=["--group-size", "48"])
        self.refuse(*layouts, self.folder, says=["config.json"])

    def test_a_rank_that_fails_is_named_and_none_is_left(self):
        for point, says in (("bench_trainer/1.publish@2=kill", "trainer 1 was killed by signal 9"),
                            ("bench_receiver/1.reserve@3=kill", "receiver 1 was killed by signal 9"),
                            ("bench_receiver/0.reserve@2=error", "receiver 0: failpoint")):
            with self.subTest(point):
                code, out, err = nibble("bench", "sync", "--from", "dp2", "--to", "2x", "--model", MOE,
                                        "--json", env={"NIBBLE_FAILPOINTS": point})
                self.assertEqual((code, out), (1, ""), err)
                lines = [line for line in err.split("\n") if line]
                self.assertTrue(lines[-1].startswith(f"nibble: {says}"), err)


class BenchEngine(CliTestCase):
    def test_decoding_prints_a_line_for_each_batch(self):
        out = self.succeed("bench", "decode", "--model", MOE, "--batch", "1,3", "--prompt-tokens", 5,
                           "--new-tokens", 9, "--rounds", 2, "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([line["batch"] for line in lines], [1, 3])
        for line in lines:
            self.assertEqual((line["bench"], line["device"], line["n"]), ("decode", "cpu", 2))
            self.assertGreater(line["tokens_per_s"], 0)
            self.assertGreater(line["swap_ms"], 0)
            self.assertTrue(math.isclose(line["share_of_stream"],
                                         line["weight_gb_per_s"] / line["stream_gb_per_s"]))
            self.assertNotIn("guessed_tokens", line)

    def test_a_greedy_second_round_is_guessed_right(self):
        out = self.succeed("bench", "decode", "--model", TIED, "--batch", 2, "--prompt-tokens", 5, "--new-tokens", 40,
                           "--rounds", 3, "--temperature", 0, "--max-draft-tokens", 4, "--json")
        line = json.loads(out)
        self.assertGreater(line["accepted_tokens"], 0)
        self.assertGreaterEqual(line["guessed_tokens"], line["accepted_tokens"])
        self.assertGreater(line["tokens_per_sample_step"], 1)

    def test_the_model_as_its_own_draft_is_always_right(self):
        out = self.succeed("bench", "decode", "--model", TIED, "--batch", "1,5", "--prompt-tokens", 5, "--new-tokens", 26,
                           "--rounds", 2, "--max-draft-tokens", 4, "--draft-model", TIED, "--guess-always", "--json")
        for line in map(json.loads, out.splitlines()):
            # The first token comes with the prompt; then one and four guesses a step.
            self.assertEqual(line["tokens_per_sample_step"], 5)
            self.assertEqual(line["accepted_tokens"], line["guessed_tokens"])
            self.assertEqual(line["guessed_tokens"], 2 * line["batch"] * 20)
            self.assertGreater(line["draft_ms_per_step"], 0)

    def test_a_draft_head_guesses(self):
        line = json.loads(self.succeed("bench", "decode", "--model", TIED, "--batch", 3, "--prompt-tokens", 5, "--new-tokens", 26,
                                       "--rounds", 2, "--max-draft-tokens", 2, "--draft-head", "random", "--guess-always",
                                       "--json"))
        self.assertGreater(line["guessed_tokens"], 50)
        self.assertGreater(line["draft_ms_per_step"], 0)

    def test_prompts_alone(self):
        line = json.loads(self.succeed("bench", "prefill", "--model", TIED, "--prompt-tokens", 17, "--rounds", 2,
                                       "--json"))
        self.assertEqual((line["bench"], line["prompt_tokens"], line["n"]), ("prefill", 17, 2))
        self.assertGreater(line["tokens_per_s"], 0)

    def test_what_makes_no_sense_is_refused(self):
        for flags, says in ((("--batch", 0), "--batch"), (("--new-tokens", 0), "--new-tokens"),
                            (("--prompt-tokens", 1 << 19), "--prompt-tokens"), (("--rounds", 0), "--rounds"),
                            (("--max-draft-tokens", -1), "--max-draft-tokens"),
                            (("--draft-model", TIED), "--max-draft-tokens"),
                            (("--draft-model", self.folder, "--max-draft-tokens", 2), "--draft-model")):
            with self.subTest(flags):
                self.refuse("bench", "decode", "--model", TIED, *flags, says=says)


class BenchTrain(CliTestCase):
    def bench(self, *flags, model=MODELS / "dense_untied/bf16"):
        return json.loads(self.succeed("bench", "train", "--model", model, "--tokens", 96,
                                       "--sequence", 24, "--rounds", 2, "--json", *flags))

    def test_steps_of_one_rank_and_of_two(self):
        losses = []
        for flags, ranks in (((), 1), (("--ranks", 2), 2), (("--ranks", 2, "--tensor", 2), 2)):
            with self.subTest(flags):
                line = self.bench("--qat", "on", *flags)
                self.assertEqual((line["bench"], line["ranks"], line["rounds"]), ("train", ranks, 2))
                qat = line["qat"]
                self.assertNotIn("bf16", line)
                for key in ("tokens_per_s", "step_ms", "forward_backward_ms", "optimizer_ms"):
                    self.assertGreater(qat[key], 0, key)
                self.assertGreater(line["peak_rss_bytes"], line["peak_bytes"])
                self.assertGreater(line["peak_bytes"], 1 << 20)
                self.assertEqual(qat["gathered_quantized_bytes"] > 0, flags == ("--ranks", 2))
                losses.append(qat["loss"])
        self.assertAlmostEqual(losses[0], losses[1], delta=1e-4)
        self.assertAlmostEqual(losses[0], losses[2], delta=1e-4)

    def test_what_is_computed_again_is_not_allocated_and_changes_no_bit(self):
        none, full = self.bench(), self.bench("--recompute", "full")
        self.assertEqual((none["recompute"], full["recompute"]), ("none", "full"))
        self.assertLess(full["peak_bytes"], none["peak_bytes"])
        self.assertEqual(full["qat"]["loss"], none["qat"]["loss"])
        self.assertLess(self.bench("--state", "bf16")["peak_bytes"], none["peak_bytes"])

    def test_both_in_turn_and_what_int4_saves_in_gathers(self):
        line = self.bench("--qat", "both", "--ranks", 2, "--group-size", 32)
        both = line["qat_to_bf16"]
        self.assertEqual(both["pairs"], 2)
        self.assertLessEqual(both["ratio"], both["upper_95"])
        # 16 bits a weight against 4 and a scale of 16 for 32.
        self.assertAlmostEqual(both["gathered_bf16_to_int4"], 16 / 4.5, places=6)
        self.assertEqual(line["bf16"]["gathered_quantized_bytes"], 0)

    def test_experts_and_a_random_start(self):
        model = self.folder / "model"
        model.mkdir()
        (model / "config.json").write_bytes((MODELS / "moe_norm/bf16/config.json").read_bytes())
        text = self.succeed("bench", "train", "--model", model, "--tokens", 64, "--sequence", 16,
                            "--rounds", 1, "--ranks", 2, "--expert", 2)
        self.assertIn("peak memory", text)
        self.assertIn("tokens/s", text)

    def test_what_makes_no_sense_is_refused(self):
        train = ("bench", "train", "--model", MODELS / "dense_tied/bf16")
        self.refuse(*train, "--qat", "maybe", says=["--qat is 'maybe'"])
        self.refuse(*train, "--ranks", 0, says=["--ranks is 0"])
        self.refuse(*train, "--recompute", "some", says=["--recompute is 'some'", "selective"])
        self.refuse(*train, "--state", "int8", says=["--state is 'int8'", "bf16"])
        self.refuse(*train, "--tokens", 0, says=["--tokens is 0"])
        self.refuse(*train, "--tokens", 64, "--sequence", 64, "--ranks", 2,
                    says=["--tokens 64", "too few for 2 ranks"])
        self.refuse(*train, "--ranks", 3, "--tensor", 2, says=["--tensor"])
        self.refuse(*train, "--ranks", 2, "--device", "cuda", says=["--device cuda", "one rank"])
        self.refuse("bench", "train", "--model", self.folder, says=["config.json"])


if __name__ == "__main__":
    unittest.main()
