"""rollout.draft_model: a small model that guesses is published with the model; engines have it from
nowhere else, it travels to each of them once, and what is drawn stays what it was."""

import unittest

from nibble_job import JobTest, last_checkpoint, query, read_metrics, settings, state_sha256

STEPS = 6
MODELS = "tests/oracles/models/dense_untied"
# Next to nothing is learned, so that a draft model that began as the model still is as good as the model.
FEW_STEPS = settings(run__steps=STEPS, eval__every=100, checkpoint__every=100, optimizer__lr=1e-6)


def drafts(directory=f"{MODELS}/int4_sym7"):
    return settings(rollout__draft_model=directory, rollout__max_draft_tokens=3,
                    rollout__draft_adapts="false")


class DraftModel(JobTest):
    def reference(self, *arguments):
        directory = self.folder / "reference"
        self.train(directory, *FEW_STEPS, *arguments)
        return directory

    def expect_run_of(self, directory, reference):
        """The same samples and state, drawn with guesses that come true: with the model's weights as they
        are served, in every step. Other weights would guess one in 512, and look-up guesses little in
        answers of 8 tokens."""
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))
        rows = read_metrics(directory)[0]
        self.assertEqual(len(rows), STEPS)
        for row in rows:
            self.assertGreater(row["guessed_tokens"], 40)
            self.assertGreater(row["accepted_tokens"], 0.8 * row["guessed_tokens"], row["step"])

    def sync_bytes(self, directory):
        return [row["sync_bytes"] for row in read_metrics(directory)[0]]

    def test_it_travels_with_the_first_version_whatever_the_layout(self):
        reference = self.reference()
        plain = self.sync_bytes(reference)
        for name, extra in (("int4", ()),
                            ("in_place", settings(weight_sync__in_place="true")),
                            ("three_trainers", settings(cluster__trainers=3)),
                            ("tensor", settings(rollout__tensor=2))):
            with self.subTest(name):
                directory = self.folder / name
                # Other numbers of trainers round the sums over samples otherwise.
                own = reference if name != "three_trainers" else self.folder / "three_reference"
                if name == "three_trainers":
                    self.train(own, *FEW_STEPS, *extra)
                self.train(directory, *FEW_STEPS, *drafts(), *extra)
                self.expect_run_of(directory, own)
                if name == "int4":
                    # Versions of steps are later ones.
                    self.assertEqual(self.sync_bytes(directory), plain)

    def test_bf16_weights_are_rounded_as_the_models_are(self):
        reference = self.reference()
        directory = self.folder / "run"
        self.train(directory, *FEW_STEPS, *drafts(f"{MODELS}/bf16"))
        self.expect_run_of(directory, reference)

    def test_an_unchanged_draft_model_costs_a_delta_nothing(self):
        deltas = settings(weight_sync__delta="true", weight_sync__whole_every=100)
        reference = self.reference(*deltas)
        directory = self.folder / "run"
        self.train(directory, *FEW_STEPS, *deltas, *drafts())
        self.expect_run_of(directory, reference)
        whole = self.folder / "whole"
        self.train(whole, *FEW_STEPS)
        for found, plain, all_of_it in zip(self.sync_bytes(directory), self.sync_bytes(reference),
                                           self.sync_bytes(whole)):
            # It came with the first version.
            self.assertLess(found - plain, 0.01 * all_of_it)

    def test_workers_that_are_trainers_too(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                self.fresh_folder()
                placed = settings(cluster__placement="colocated", cluster__trainers=ranks,
                                  cluster__rollout_workers=ranks)
                reference = self.reference(*placed)
                directory = self.folder / "run"
                self.train(directory, *FEW_STEPS, *placed, *drafts())
                self.expect_run_of(directory, reference)

    def test_an_engine_that_was_left_behind_gets_it_from_the_other(self):
        reference = self.reference()
        directory = self.folder / "run"
        fault = "rollout/1.receive@3=error"
        job = self.start_train(directory, *FEW_STEPS, *drafts(),
                               environment={"NIBBLE_FAILPOINTS": fault})
        result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        self.assertIn("goes on without rollout/1", result.err)
        self.assertEqual(query(directory, "SELECT count(*) FROM events WHERE kind = "
                                          "'engine_caught_up'"), [(1,)])
        self.expect_run_of(directory, reference)

    def test_a_model_that_serves_bf16_and_one_that_is_trained_otherwise(self):
        for values in (dict(qat__enabled="false", rollout__quantize="false"),
                       dict(qat__enabled="false")):
            with self.subTest(values):
                self.fresh_folder()
                reference = self.reference(*settings(**values))
                directory = self.folder / "run"
                own = "bf16" if "rollout__quantize" in values else "int4_sym7"
                self.train(directory, *FEW_STEPS, *settings(**values), *drafts(f"{MODELS}/{own}"))
                self.expect_run_of(directory, reference)

    def test_groups_of_another_size_are_refused_with_both(self):
        draft = self.folder / "draft"
        made = self.run_nibble("convert", "--input-dir", f"{MODELS}/bf16", "--output-dir", draft,
                               "--method", "rtn", "--quant-group-size", 64)
        self.assertEqual(made.code, 0, made.err)
        result = self.start_train(self.folder / "run", *FEW_STEPS, *drafts(draft)).wait()
        self.assertNotEqual(result.code, 0)
        for word in ("rollout.draft_model", "groups of 64", "--quant-group-size 32"):
            self.assertIn(word, result.err)


if __name__ == "__main__":
    unittest.main()
