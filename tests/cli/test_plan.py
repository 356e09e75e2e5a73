"""`nibble plan --sync`, and the clusters under configs/clusters/."""

import json
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

    def test_memory_planning_is_said_to_be_missing(self):
        self.refuse("plan", says=["memory is not planned yet", "--sync"])
        self.refuse("plan", "job.yaml", says=["memory is not planned yet"])

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


if __name__ == "__main__":
    unittest.main()
