"""`nibble plan --sync`, and the clusters under configs/clusters/."""

import json
import os
import unittest

from nibble_cli import MODELS, ROOT, CliTestCase

CLUSTERS = sorted((ROOT / "configs/clusters").glob("*.yaml"))
MODEL = MODELS / "moe_norm/int4_sym7"  # eight experts, groups of 32
STRATEGIES = ["direct", "chain", "hierarchical"]


class Plan(CliTestCase):
    def plan(self, cluster, *flags, model=MODEL):
        return json.loads(self.succeed("plan", "--sync", cluster, "--model", model, "--json", *flags))

    def cluster(self, text):
        path = self.folder / "cluster.yaml"
        path.write_text(text, "utf-8")
        return path

    def test_every_shipped_cluster_is_planned_and_says_what_it_needs(self):
        self.assertGreaterEqual(len(CLUSTERS), 3)
        for path in CLUSTERS:
            with self.subTest(path.name):
                text = path.read_text("utf-8")
                self.assertTrue(text.startswith("# "))
                self.assertIn("Needs", text.partition("nodes:")[0])
                self.assertIn("Expect", text.partition("nodes:")[0])
                plan = self.plan(path)
                self.assertEqual([s["strategy"] for s in plan["strategies"]], STRATEGIES)
                self.assertIn(plan["fastest"], STRATEGIES)

    def test_edges_links_and_bound_tell_one_story(self):
        plan = self.plan(ROOT / "configs/clusters/two-plus-two-nodes.yaml")
        replicas = plan["replicas"]
        for strategy in plan["strategies"]:
            with self.subTest(strategy["strategy"]):
                rollout = {gpu: 0 for gpu, place in enumerate(plan["gpus"]) if "replica" in place}
                out = 0
                for edge in strategy["edges"]:
                    rollout[edge["to"]] += edge["bytes"]
                    out += edge["bytes"] if edge["link"] != "local" else 0
                self.assertEqual(sum(rollout.values()), replicas * plan["model_bytes"])
                self.assertEqual(out, sum(link["bytes"] for link in strategy["links"]
                                          if link["link"].endswith(" out")))
                self.assertAlmostEqual(strategy["bound_ms"],
                                       max(link["ms"] for link in strategy["links"]))
                for link in strategy["links"]:
                    self.assertAlmostEqual(link["ms"], link["bytes"] / link["gb_per_s"] / 1e6)
                self.assertGreaterEqual(strategy["expected_ms"], strategy["bound_ms"])

    def test_the_checkpoint_or_the_flags_say_what_is_quantized(self):
        cluster = CLUSTERS[0]
        stored = self.plan(cluster)
        self.assertEqual((stored["bits"], stored["group_size"]), (4, 32))
        self.assertEqual(self.plan(cluster, "--group-size", 32, "--targets", "experts"), stored)
        bf16 = MODELS / "moe_norm/bf16"
        self.assertEqual(self.plan(cluster, model=bf16)["model_bytes"], stored["model_bytes"])
        more = self.plan(cluster, "--targets", "linear")
        self.assertLess(more["model_bytes"], stored["model_bytes"])

    def test_config_json_is_enough(self):
        model = self.folder / "model"
        model.mkdir()
        (model / "config.json").write_bytes((MODEL / "config.json").read_bytes())
        self.assertEqual(self.plan(CLUSTERS[0], model=model), self.plan(CLUSTERS[0]))

    def test_the_table_names_links_and_edges(self):
        text = self.succeed("plan", "--sync", ROOT / "configs/clusters/one-node-4-4.yaml",
                            "--model", MODEL, "--all")
        for part in (*STRATEGIES, "gpu 0 nvlink out", "from GPU", "fastest: direct"):
            self.assertIn(part, text)

    def test_bad_input_is_named(self):
        self.refuse("plan", "--sync", CLUSTERS[0], says=["--model"])
        self.refuse("plan", "--sync", "none.yaml", "--model", MODEL, says=["none.yaml"])
        self.refuse("plan", "--sync", CLUSTERS[0], "--model", self.folder, says=["config.json"])
        self.refuse("plan", "job.yaml", "--sync", CLUSTERS[0], "--model", MODEL, says=["job.yaml"])
        self.refuse("plan", "--sync", CLUSTERS[0], "--model", MODEL, "--group-size", 48,
                    says=["--group-size", "48"])
        self.refuse("plan", "--sync", CLUSTERS[0], "--model", MODEL, "--targets", "all",
                    says=["all"])
        links = "links: { nvlink_gb_per_s: 380 }\n"
        path = self.cluster("nodes: [{ trainers: 4, rolout: 4 }]\n" + links)
        self.refuse("plan", "--sync", path, "--model", MODEL,
                    says=[f"{path}:1: nodes.0.rolout: unknown key", "nodes.0.rollout"])
        path = self.cluster("nodes: [{ trainers: 16, rollout: 4 }]\ntrainer: { expert: 16 }\n" + links)
        self.refuse("plan", "--sync", path, "--model", MODEL, says=[f"{path}: trainer", "expert"])

    def test_a_job_or_a_cluster_must_be_named(self):
        self.refuse("plan", code=2, says=["--sync"])
        self.refuse("plan", "none.yaml", says=["none.yaml"])


class MemoryReport(CliTestCase):
    """`nibble plan CONFIG`: memory and gathered bytes of a job's ranks."""

    DENSE, MOE = ROOT / "configs/ci/tiny-dense.yaml", ROOT / "configs/ci/tiny-moe.yaml"

    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(ROOT)  # the paths in these files begin there

    def plan(self, config, *flags, **keys):
        sets = [arg for key, value in keys.items() for arg in ("--set", f"{key.replace('__', '.')}={value}")]
        return json.loads(self.succeed("plan", config, "--device", "cpu", "--json", *sets, *flags))

    def test_parts_add_up_and_elements_are_the_models(self):
        for config in (self.DENSE, self.MOE):
            for trainers in (1, 2):
                with self.subTest(config=config.name, trainers=trainers):
                    plan = self.plan(config, cluster__trainers=trainers)
                    self.assertEqual(len(plan["trainers"]), trainers)
                    for rank in plan["trainers"]:
                        self.assertEqual(rank["moments_bytes"], 2 * rank["masters_bytes"])
                        self.assertEqual(rank["gradients_bytes"], rank["masters_bytes"])
                        self.assertEqual(rank["checkpoint_bytes"], 3 * rank["masters_bytes"])
                        self.assertEqual(rank["ring_bytes"] > 0, trainers > 1)
                        parts = sum(rank[f"{part}_bytes"] for part in
                                    ("masters", "moments", "gradients", "packed", "reference", "ring", "activations"))
                        self.assertEqual(rank["total_bytes"], parts)
                        gathered = rank["gathered_per_step"]
                        self.assertEqual(gathered["whole_bytes"], gathered["quantized_bytes"] +
                                         gathered["rest_bytes"] + gathered["reference_bytes"])
                        self.assertEqual(gathered["quantized_bytes"] > 0, trainers > 1)
                    for rank in plan["engine_ranks"]:
                        self.assertEqual(rank["weight_buffers"], 2)
                        self.assertEqual(rank["total_bytes"],
                                         rank["weights_bytes"] + rank["kv_cache_bytes"] + rank["buffers_bytes"])
                        self.assertEqual(rank["kv_cache_bytes"] % rank["kv_bytes_per_token"], 0)

    def test_options_that_save_memory_save_it(self):
        def rank(**keys):
            return self.plan(self.MOE, **keys)["trainers"][0]
        none, full = rank(), rank(trainer__recompute="full")
        selective = rank(trainer__recompute="selective")
        self.assertLess(full["activations_bytes"], selective["activations_bytes"])
        self.assertLess(selective["activations_bytes"], none["activations_bytes"])
        self.assertEqual(rank(optimizer__state="bf16")["moments_bytes"], none["masters_bytes"])
        mapped = rank(optimizer__mapped_in=self.folder)
        self.assertEqual(mapped["state_in"], "mapped_file")
        self.assertEqual(mapped["total_bytes"],
                         none["total_bytes"] - none["masters_bytes"] - none["moments_bytes"])
        in_place = self.plan(self.MOE, weight_sync__in_place="true")["engine_ranks"][0]
        self.assertEqual(in_place["weight_buffers"], 1)

    def test_more_micro_batches_gather_more(self):
        def gathered(count):
            plan = self.plan(self.MOE, "--micro-batches", count, cluster__trainers=2)
            return plan["trainers"][0]["gathered_per_step"]["whole_bytes"]
        self.assertLessEqual(gathered(1), gathered(2))
        self.assertEqual(gathered(3) - gathered(2), gathered(2) - gathered(1))

    def test_the_table_names_its_columns(self):
        text = self.succeed("plan", self.MOE, "--set", "cluster.trainers=2")
        for part in ("masters", "moments", "gradients", "packed", "reference", "ring", "activations",
                     "quantized", "rest", "whole", "KV cache", "buffers"):
            self.assertIn(part, text)

    def test_bad_flags_are_named(self):
        self.refuse("plan", self.MOE, "--device", "tpu", says=["--device", "tpu"])
        self.refuse("plan", self.MOE, "--micro-batches", 0, says=["--micro-batches"])
        self.refuse("plan", self.MOE, "--set", "trainer.recompute=some", says=["trainer.recompute", "selective"])
        self.refuse("plan", self.MOE, "--set", f"optimizer.mapped_in={self.folder}/none",
                    says=["optimizer.mapped_in", "none"])


if __name__ == "__main__":
    unittest.main()
