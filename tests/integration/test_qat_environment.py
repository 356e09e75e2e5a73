"""The two environment variables of existing job scripts override the configuration."""

import json
import unittest

from nibble_job import (TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, read_metrics, settings)

FLAG = "OPEN_TRAINING_INT4_FAKE_QAT_FLAG"
GROUP = "OPEN_TRAINING_INT4_GROUP_SIZE"


class QatEnvironment(JobTest):
    def shown(self, environment, *arguments):
        """Section qat of the effective configuration."""
        result = self.run_nibble("config", TINY_DENSE, *arguments, environment=environment)
        self.assertEqual(result.code, 0, result.err)
        section = result.out.split("\nqat:", 1)[1].split("\nlora:", 1)[0]
        return {line.split("#")[0].split(":")[0].strip(): line.split("#")[0].split(":")[1].strip()
                for line in section.splitlines()[1:]}

    def test_config_shows_what_the_variables_say(self):
        self.assertEqual(self.shown({}), {"enabled": "true", "group_size": "null", "start": "rtn", "masters": "shifted",
                                          "rescale_every": "0"})
        self.assertEqual(self.shown({FLAG: "0"})["enabled"], "false")
        self.assertEqual(self.shown({FLAG: "1"}, "--set", "qat.enabled=false")["enabled"], "true")
        self.assertEqual(self.shown({GROUP: "64"})["group_size"], "64")
        self.assertEqual(self.shown({GROUP: "32"}, "--set", "qat.group_size=64")["group_size"],
                         "32")
        self.assertEqual(self.shown({FLAG: "", GROUP: ""}), self.shown({}))

    def test_the_flag_0_trains_without_fake_quantization(self):
        directory = self.folder / "run"
        self.train(directory, *settings(rollout__quantize="false", run__steps=1),
                   environment={FLAG: "0"})
        row = read_metrics(directory)[0][0]
        self.assertEqual(row["kl_reference"], 0)
        self.assertEqual(row["gathered_quantized_bytes"], 0)

    def test_the_flag_1_trains_with_fake_quantization(self):
        directory = self.folder / "run"
        self.train(directory, *settings(qat__enabled="false", run__steps=1),
                   environment={FLAG: "1"})
        row = read_metrics(directory)[0][0]
        self.assertGreater(row["kl_reference"], 0)
        self.assertGreater(row["gathered_quantized_bytes"], 0)
        self.assertEqual(row["logprob_abs_diff_max"], 0)

    def test_a_group_size_is_trained_served_and_kept_in_the_checkpoint(self):
        moved = {}
        for size in (32, 64):
            for config in (TINY_DENSE, TINY_MOE):
                directory = self.folder / f"{size}-{config.split('/')[-1]}"
                self.train(directory, *settings(run__steps=1), config=config,
                           environment={GROUP: str(size)})
                row = read_metrics(directory)[0][0]
                self.assertEqual(row["logprob_abs_diff_max"], 0)
                moved[config, size] = row["sync_bytes"]
                written = json.loads((last_checkpoint(directory) / "config.json").read_text())
                group = written["quantization_config"]["config_groups"]["group_0"]
                self.assertEqual(group["weights"]["group_size"], size)
        for config in (TINY_DENSE, TINY_MOE):  # half as many scales
            self.assertLess(moved[config, 64], moved[config, 32])

    def test_a_value_out_of_range_is_refused(self):
        for name, value in ((FLAG, "2"), (FLAG, "true"), (GROUP, "48"), (GROUP, "32x")):
            with self.subTest(name=name, value=value):
                result = self.run_nibble("train", TINY_DENSE,
                                         *settings(run__directory=self.folder / "run"),
                                         environment={name: value})
                self.expect_refusal(result, 2, name, f"'{value}'")
                self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
    unittest.main()
