"""Supervised jobs (algorithm.loss: sft): a model is pretrained from nothing, resumed, exported and
handed to RL."""

import json
import math
import random
import shutil
import signal
import unittest

from nibble_job import (ROOT, TINY_DENSE, JobTest, last_checkpoint, query, rank_bytes, read_metrics,
                        settings, state_sha256, wait_until)
from supervised_job import make_inputs, model_of, read_losses

FIGURES = {"loss", "entropy", "grad_norm", "lr", "tokens", "computed_tokens", "tokens_per_s",
           "step_ms", "forward_backward_ms", "optimizer_ms", "pack_ms"}
SAME_IN_EVERY_RUN = ("step", "loss", "entropy", "grad_norm", "lr", "tokens", "eval_loss")
INT4_DENSE = ROOT / "tests/oracles/models/dense_untied/int4_sym7"


def without_times(rows):
    return [{key: row[key] for key in SAME_IN_EVERY_RUN if key in row} for row in rows]


class SupervisedTest(JobTest):
    def setUp(self):
        super().setUp()
        self.config = make_inputs(self.folder)

    def train_here(self, name, *arguments):
        directory = self.folder / name
        return directory, self.train(directory, *arguments, config=self.config)


class Pretraining(SupervisedTest):
    STEPS = 60

    def check_learning(self, model):
        directory, result = self.train_here(
            "run", *model_of(self.folder, model),
            *settings(run__steps=self.STEPS, eval__every=30, checkpoint__every=30))
        steps, evals = read_losses(directory)
        self.assertEqual([row["step"] for row in steps], list(range(1, self.STEPS + 1)))
        for row in steps:
            self.assertLessEqual(FIGURES, row.keys())
            self.assertGreater(row["tokens"], 16 * 2)  # an answer and its end, at least
            self.assertLess(row["tokens"], row["computed_tokens"])
        self.assertEqual([row["step"] for row in evals], [0, 30, 60])
        self.assertEqual({row["eval_records"] for row in evals}, {24})
        # From a guess among 320 tokens to knowing what an answer looks like.
        self.assertAlmostEqual(evals[0]["eval_loss"], math.log(320), delta=0.5)
        self.assertLess(evals[-1]["eval_loss"], 1.6)
        self.assertLess(steps[-1]["loss"], 0.3 * steps[0]["loss"])
        self.assertIn(f"{self.STEPS} steps in {directory}; held-out loss {evals[0]['eval_loss']:.3f}"
                      f" -> {evals[-1]['eval_loss']:.3f}", result.out)
        self.assertRegex(result.err, r"step=60/60 loss=[\d.]+ grad=[\d.]+ lr=\S+ tokens=\d+ "
                                     r"tokens_per_s=\d+ s=[\d.]+ eta=0m00s")
        return directory, steps

    def export(self, directory, model):
        target = self.folder / f"{model}-bf16"
        result = self.run_nibble("export", "--to", "bf16", "--input-dir", last_checkpoint(directory),
                                 "--side-files", self.folder / model, "--output-dir", target)
        self.assertEqual(result.code, 0, result.err)
        return target

    def inspect(self, path):
        result = self.run_nibble("inspect", path, "--json")
        self.assertEqual(result.code, 0, result.err)
        return json.loads(result.out)

    def test_a_dense_model_learns_and_goes_on_in_rl_as_int4(self):
        directory, steps = self.check_learning("dense")
        self.assertEqual(query(directory, "SELECT count(*), min(status) FROM steps"), [(60, "done")])
        self.assertEqual(query(directory, "SELECT count(*) FROM versions"), [(0,)])
        self.assertEqual(query(directory, "SELECT value FROM metrics WHERE name = 'loss' "
                                          "ORDER BY step"), [(row["loss"],) for row in steps])
        plot = self.run_nibble("plot", directory)
        self.assertEqual((plot.code, plot.errors()), (0, []))
        self.assertEqual({path.name for path in (directory / "plots").iterdir()},
                         {"changes.png", "loss.png", "grad_norm.png", "phases.png", "summary.png"})
        shown = self.run_nibble("config", directory / "config.yaml")
        self.assertEqual(shown.out, (directory / "config.yaml").read_text(), shown.err)
        exported = self.export(directory, "dense")
        self.assertEqual(self.inspect(exported)["weights_sha256"],
                         self.inspect(last_checkpoint(directory))["weights_sha256"])
        int4 = self.folder / "dense-int4"
        result = self.run_nibble("convert", "--method", "rtn", "--quant-group-size", 32,
                                 "--input-dir", exported, "--output-dir", int4)
        self.assertEqual(result.code, 0, result.err)
        rl = self.folder / "rl"
        sums = self.folder / "sums"
        self.train(rl, *settings(run__steps=1, model__path=exported, model__int4=int4,
                                 data__train=sums / "train.jsonl", eval__data=sums / "heldout.jsonl"),
                   config=TINY_DENSE)
        self.assertEqual(read_metrics(rl)[0][0]["logprob_abs_diff_max"], 0)

    def test_a_moe_model_learns_and_is_converted(self):
        directory, _ = self.check_learning("moe")
        exported = self.export(directory, "moe")
        result = self.run_nibble("convert", "--method", "rtn", "--quant-group-size", 32,
                                 "--input-dir", exported, "--output-dir", self.folder / "int4")
        self.assertEqual(result.code, 0, result.err)
        self.assertGreater(self.inspect(self.folder / "int4")["parameters"], 100_000)

    def test_texts_and_chats_are_learned_too(self):
        lines = [json.loads(line) for line in
                 (self.folder / "sums/train.jsonl").read_text().splitlines()]
        records = []
        for number, line in enumerate(lines):
            chat = [{"role": "user", "content": line["prompt"]}]
            records.append({"text": line["prompt"] + line["response"]} if number % 2
                           else {"question": chat, "answer": line["label"]})
        data = self.folder / "mixed.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        directory, _ = self.train_here("run", *settings(
            data__train=data, eval__data=data, data__prompt_key="question",
            data__response_key="answer"))
        evals = read_losses(directory)[1]
        self.assertEqual(evals[0]["eval_records"], len(records))
        self.assertLess(evals[-1]["eval_loss"], 0.8 * evals[0]["eval_loss"])

    def test_with_qat_the_checkpoint_is_what_was_multiplied_with(self):
        model = ROOT / "tests/oracles/models/dense_untied/bf16"
        directory, _ = self.train_here("run", *settings(
            model__path=model, model__init="pretrained", model__int4=INT4_DENSE,
            qat__enabled="true", optimizer__warmup_steps=0))
        steps, evals = read_losses(directory)
        self.assertTrue(all(row["codes_changed_share"] > 0 for row in steps))
        self.assertLess(evals[-1]["eval_loss"], evals[0]["eval_loss"])
        target = self.folder / "int4"
        result = self.run_nibble("export", "--to", "int4", "--input-dir", last_checkpoint(directory),
                                 "--side-files", model, "--output-dir", target)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(self.inspect(target)["weights_sha256"],
                         self.inspect(last_checkpoint(directory))["weights_sha256"])


    def test_a_random_start_may_lie_on_the_grid_from_the_first_step_on(self):
        path = self.folder / "dense/config.json"
        config = json.loads(path.read_text())
        config["quantization_config"] = json.loads(
            (INT4_DENSE / "config.json").read_text())["quantization_config"]
        path.write_text(json.dumps(config))
        directory, _ = self.train_here("run", *settings(qat__enabled="true", run__steps=20))
        evals = read_losses(directory)[1]
        self.assertLess(evals[-1]["eval_loss"], 0.7 * evals[0]["eval_loss"])
        self.assertGreater(self.inspect(last_checkpoint(directory))["quantization"]["bits"], 0)


class RanksAndResume(SupervisedTest):
    def test_two_ranks_train_as_one(self):
        meshes = {"dense": ({}, {"parallel__tensor": 2}),
                  "moe": ({}, {"parallel__tensor": 2}, {"parallel__expert": 2},
                          {"parallel__tensor": 2, "parallel__expert": 2})}
        for model, mesh in [(model, mesh) for model in meshes for mesh in meshes[model]]:
            with self.subTest(model, **mesh):
                one, two = self.folder / f"{model}1", self.folder / f"{model}2"
                if not one.exists():
                    self.train_here(one.name, *model_of(self.folder, model))
                shutil.rmtree(two, ignore_errors=True)
                self.train_here(two.name, *model_of(self.folder, model),
                                *settings(cluster__trainers=2, **mesh))
                first, second = read_losses(one), read_losses(two)
                self.assertAlmostEqual(first[0][0]["grad_norm"], second[0][0]["grad_norm"],
                                       delta=1e-5 * first[0][0]["grad_norm"])
                self.assertEqual(first[0][0]["computed_tokens"], second[0][0]["computed_tokens"])
                # The same random weights and log-probabilities; their sum has another order.
                self.assertAlmostEqual(first[1][0]["eval_loss"], second[1][0]["eval_loss"], places=12)
                for a, b in zip(first[0], second[0]):
                    self.assertEqual(a["tokens"], b["tokens"])
                    self.assertAlmostEqual(a["loss"], b["loss"], delta=1e-3)
                self.assertEqual(len(rank_bytes(last_checkpoint(two))), 2)

    def expect_same_run(self, directory, reference):
        for mine, theirs in zip(read_losses(directory), read_losses(reference)):
            self.assertEqual(without_times(mine), without_times(theirs))
        self.assertEqual(rank_bytes(last_checkpoint(directory)),
                         rank_bytes(last_checkpoint(reference)))
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))

    def test_a_killed_job_resumes_to_the_state_of_an_uninterrupted_one(self):
        draw = random.Random(3)
        for trainers, after in ((1, 3), (2, 5)):
            with self.subTest(trainers=trainers):
                ranks = settings(cluster__trainers=trainers, run__steps=8)
                reference = self.train_here(f"whole{trainers}", *ranks)[0]
                directory = self.folder / f"killed{trainers}"
                job = self.start_train(directory, *ranks, config=self.config)
                job.wait_for_log(f"step={after}/8 ")
                wait_until(lambda: draw.random() < 0.3, 5, "a moment")
                job.signal(signal.SIGKILL)
                job.wait()
                self.expect_nothing_left(job)
                self.train(directory, *ranks, "--resume", config=self.config)
                self.expect_same_run(directory, reference)

    def test_ctrl_c_ends_the_step_and_keeps_it(self):
        length = settings(run__steps=400, eval__every=1000, checkpoint__every=1000)
        directory = self.folder / "stopped"
        job = self.start_train(directory, *length, config=self.config)
        job.wait_for_log(r"step=2/400 ")
        job.signal(signal.SIGINT)
        result = job.wait()
        self.expect_nothing_left(job)
        self.assertEqual(result.code, 1)
        self.assertEqual(len(result.errors()), 1, result.err)
        self.assertRegex(result.errors()[0], r"interrupted after step \d+; `--resume`")
        steps = read_losses(directory)[0]
        last = last_checkpoint(directory)
        self.assertEqual(last.name, f"step-{steps[-1]['step']:06}")
        more = settings(run__steps=steps[-1]["step"] + 1, eval__every=1000)
        self.train(directory, *more, "--resume", config=self.config)
        self.assertEqual(read_losses(directory)[0][:-1], steps)


class BadInput(SupervisedTest):
    def refused(self, *parts, arguments=(), config=None):
        directory = self.folder / "refused"
        result = self.run_nibble("train", config or self.config,
                                 *settings(run__directory=directory), *arguments)
        self.expect_refusal(result, 2, *parts)
        self.assertFalse((directory / "metrics.jsonl").exists())

    def test_what_a_supervised_job_would_not_look_at_is_refused(self):
        for key, value in (("cluster.rollout_workers", 1), ("algorithm.kl_loss_coef", 0.1),
                           ("algorithm.advantage", "rloo"), ("algorithm.reference", "always"),
                           ("rollout.temperature", 0.7), ("rollout.samples_per_prompt", 4),
                           ("reward.type", "exact"), ("data.label_key", "answer"),
                           ("eval.samples", 2), ("optimizer.steps_per_rollout", 2),
                           ("algorithm.aggregation", "seq-mean-token-mean"),
                           ("model.reference", self.folder / "dense")):
            with self.subTest(key):
                self.refused(key, f"--set {key}", "sft", arguments=["--set", f"{key}={value}"])

    def test_what_only_a_supervised_job_has_is_refused_elsewhere(self):
        for key, value in (("model.init", "random"), ("data.text_key", "body"),
                           ("data.response_key", "answer"), ("cluster.rollout_workers", 0)):
            with self.subTest(key):
                self.refused(key, f"--set {key}", "sft", config=TINY_DENSE,
                             arguments=["--set", f"{key}={value}"])

    def test_a_bad_record_is_named_by_file_and_line(self):
        good = '{"prompt": "What is 1 + 1?", "response": " 2"}\n'
        for name, line in (("syntax", '{"prompt": \n'), ("label", '{"prompt": "a", "label": "2"}\n'),
                           ("both", '{"prompt": "a", "response": "b", "text": "c"}\n'),
                           ("empty", '{"text": ""}\n'), ("long", '{"text": "%s"}\n' % ("x" * 65)),
                           ("short", '{"text": "x"}\n')):
            for key in ("data.train", "eval.data"):
                with self.subTest(name, key=key):
                    data = self.folder / f"{name}.jsonl"
                    data.write_text(good + good + line + good)
                    self.refused(f"{data}:3", arguments=["--set", f"{key}={data}"])

    def test_a_model_without_weights_must_be_asked_for(self):
        self.refused("dense", "model.safetensors", arguments=settings(model__init="pretrained"))
        self.refused("qat.enabled", "quantization_config", arguments=settings(qat__enabled="true"))

    def test_a_vocabulary_smaller_than_the_tokenizer(self):
        path = self.folder / "dense/config.json"
        config = json.loads(path.read_text())
        config["vocab_size"] = 256
        path.write_text(json.dumps(config))
        self.refused(path, "vocab_size", "259")

    def test_an_initializer_range_that_is_none(self):
        path = self.folder / "dense/config.json"
        config = json.loads(path.read_text())
        config["initializer_range"] = 0
        path.write_text(json.dumps(config))
        self.refused(path, "initializer_range")


if __name__ == "__main__":
    unittest.main()
