"""nibble convert and export against checkpoints that llm-compressor's tools wrote."""

import json
import os
import shutil
import subprocess
import unittest

from nibble_cli import BINARY, MODEL_NAMES, MODELS, CliTestCase, Safetensors, directory_tensors, nibble


def read_config(directory):
    return json.loads((directory / "config.json").read_text())


def meaning(quantization):
    """What a loader reads out of a quantization_config."""
    group = quantization["config_groups"]["group_0"]
    weights = group["weights"]
    return {
        "method": quantization["quant_method"], "format": quantization["format"],
        "status": quantization["quantization_status"], "ignore": sorted(quantization["ignore"]),
        "kv_cache": quantization["kv_cache_scheme"], "targets": group["targets"],
        "inputs": group["input_activations"],
        "weights": {key: weights[key] for key in ("num_bits", "type", "symmetric", "strategy",
                                                  "group_size", "dynamic")},
    }


class Convert(CliTestCase):
    def convert(self, source, *flags):
        target = self.folder / "out"
        out = self.succeed("convert", "--method", "rtn", "--input-dir", source, "--output-dir",
                           target, *flags)
        return target, out

    def test_every_fixture_gives_the_bytes_of_its_int4_checkpoint(self):
        cases = {case["name"]: case for case in json.loads((MODELS / "cases.json").read_text())}
        for name in MODEL_NAMES:
            with self.subTest(name):
                target, _ = self.convert(MODELS / name / "bf16", "--quant-group-size",
                                         cases[name]["group"])
                want = MODELS / name / "int4_sym7"
                self.assertEqual(directory_tensors(target), directory_tensors(want))
                ours, theirs = read_config(target), read_config(want)
                self.assertEqual(meaning(ours.pop("quantization_config")),
                                 meaning(theirs.pop("quantization_config")))
                self.assertEqual(ours, theirs)
                shutil.rmtree(target)

    def test_a_quantized_input_is_dequantized_and_said_so(self):
        source = MODELS / "dense_tied/int4_sym7"
        code, _, error = nibble("convert", "--method", "rtn", "--quant-group-size", 64, "--input-dir", source,
                                "--output-dir", self.folder / "out")
        self.assertEqual(code, 0, error)
        self.assertIn("is quantized already", error)
        exported = self.folder / "bf16"
        self.succeed("export", "--input-dir", source, "--output-dir", exported)
        self.succeed("convert", "--method", "rtn", "--quant-group-size", 64, "--input-dir", exported,
                     "--output-dir", self.folder / "again")
        self.assertEqual(directory_tensors(self.folder / "out"), directory_tensors(self.folder / "again"))

    def test_side_files_are_copied_and_the_format_is_pt(self):
        source = MODELS / "dense_untied/bf16"
        target, _ = self.convert(source)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            self.assertEqual((target / name).read_bytes(), (source / name).read_bytes())
        self.assertEqual(Safetensors(target / "model.safetensors").metadata, {"format": "pt"})

    def test_small_files_get_a_true_index_and_the_same_tensors(self):
        source = MODELS / "moe_norm/bf16"  # 1.25 MB
        sharded = self.folder / "sharded"
        self.succeed("export", "--input-dir", source, "--output-dir", sharded, "--max-file-mb", 1)
        index = json.loads((sharded / "model.safetensors.index.json").read_text())
        tensors = directory_tensors(sharded)
        self.assertGreater(len(set(index["weight_map"].values())), 1)
        self.assertEqual(index["metadata"]["total_size"],
                         sum(len(data) for _, _, data in tensors.values()))
        self.assertEqual(tensors, directory_tensors(source))

    def test_the_report_has_the_error_of_every_layer(self):
        _, out = self.convert(MODELS / "dense_tied/bf16", "--quant-group-size", 128, "--json")
        report = json.loads(out)
        self.assertEqual(len(report["layers"]), 3 * 7)
        for layer in report["layers"]:
            # Rounding of normal weights to 4 bits costs about a tenth of their size.
            self.assertGreater(layer["relative_rms_error"], 0.05)
            self.assertLess(layer["relative_rms_error"], 0.2)
        self.assertEqual(report["group_size"], 128)

    def test_eight_bits_are_stored_and_come_back_closer(self):
        four, _ = self.convert(MODELS / "dense_untied/bf16", "--json")
        shutil.rmtree(four)
        eight, out = self.convert(MODELS / "dense_untied/bf16", "--quant-type", "W8A16", "--json")
        self.assertTrue(all(layer["relative_rms_error"] < 0.01
                            for layer in json.loads(out)["layers"]))
        tensors = directory_tensors(eight)
        packed = tensors["model.layers.0.mlp.gate_proj.weight_packed"]
        self.assertEqual(packed[:2], ("I32", [256, 128 // 4]))
        weights = read_config(eight)["quantization_config"]["config_groups"]["group_0"]["weights"]
        self.assertEqual(weights["num_bits"], 8)

    def test_ignored_modules_stay_in_bf16_and_are_listed_by_full_name(self):
        target, _ = self.convert(MODELS / "dense_untied/bf16", "--ignore",
                                 r"re:^model\.layers\.0\.self_attn\..*$")
        names = directory_tensors(target)
        self.assertIn("model.layers.0.self_attn.q_proj.weight", names)
        self.assertIn("model.layers.1.self_attn.q_proj.weight_packed", names)
        ignore = read_config(target)["quantization_config"]["ignore"]
        self.assertIn("model.layers.0.self_attn.o_proj", ignore)
        self.assertFalse([entry for entry in ignore if entry.startswith("re:")])

    def test_shapes_that_marlin_cannot_serve_are_named(self):
        target = self.folder / "out"
        run = subprocess.run([BINARY, "convert", "--method", "rtn", "--input-dir",
                              MODELS / "llama_smol/bf16", "--output-dir", target],
                             capture_output=True, text=True, timeout=60)
        self.assertEqual(run.returncode, 0)
        self.assertIn("Marlin", run.stderr)
        self.assertIn("model.layers.0.self_attn", run.stderr)

    def test_export_dequantizes_and_converting_again_changes_nothing(self):
        source = MODELS / "moe_norm/int4_sym7"
        bf16 = self.folder / "bf16"
        self.succeed("export", "--to", "bf16", "--input-dir", source, "--output-dir", bf16)
        self.assertNotIn("quantization_config", read_config(bf16))
        self.assertEqual({dtype for dtype, _, _ in directory_tensors(bf16).values()}, {"BF16"})
        again, _ = self.convert(bf16)
        self.assertEqual(directory_tensors(again), directory_tensors(source))

    def test_export_of_bf16_changes_no_byte(self):
        source = MODELS / "dense_untied/bf16"
        target = self.folder / "copy"
        self.succeed("export", "--input-dir", source, "--output-dir", target)
        self.assertEqual(directory_tensors(target), directory_tensors(source))
        self.assertEqual(read_config(target), read_config(source))

    def test_resume_replaces_what_an_interrupted_run_left(self):
        leftover = self.folder / "out.partial"
        leftover.mkdir()
        (leftover / "model.safetensors.tmp.1").write_text("half")
        self.refuse("convert", "--method", "rtn", "--input-dir", MODELS / "dense_untied/bf16",
                    "--output-dir", self.folder / "out", says=["out.partial", "--resume"])
        self.assertTrue(leftover.exists(), "somebody else may be writing there")
        target, _ = self.convert(MODELS / "dense_untied/bf16", "--resume")
        self.assertFalse(leftover.exists())
        self.assertTrue((target / "config.json").exists())

    def test_a_full_disk_is_said_and_leaves_nothing(self):
        script = (f"mount -t tmpfs -o size=256k none {self.folder} && "
                  f"{{ {BINARY} convert --method rtn --input-dir {MODELS}/dense_untied/bf16 "
                  f"--output-dir {self.folder}/out; echo $? $(ls -A {self.folder} | wc -l); }}")
        run = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True,
                             text=True, timeout=60)
        if "unshare" in run.stderr or "mount" in run.stderr:
            self.skipTest("this machine lets nobody mount a small disk")
        self.assertEqual(run.stdout.split(), ["1", "0"], run.stderr)
        self.assertIn("MB free", run.stderr)

    def test_a_custom_code_checkpoint_needs_consent_and_loses_the_code(self):
        source = self.copy_model("dense_untied/bf16")
        config = read_config(source)
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Model"}
        (source / "config.json").write_text(json.dumps(config))
        self.refuse("convert", "--method", "rtn", "--input-dir", source, "--output-dir",
                    self.folder / "out", says=["auto_map", "--trust-remote-code"])
        target, _ = self.convert(source, "--trust-remote-code")
        self.assertNotIn("auto_map", read_config(target))

    def test_the_result_does_not_depend_on_threads_or_instruction_set(self):
        wanted = None
        for flags, env in ((["--threads", 1], {}), (["--threads", 2], {}),
                           ([], {"NIBBLE_CPU_ISA": "scalar"})):
            target = self.folder / "out"
            out = self.succeed("convert", "--method", "rtn", "--input-dir",
                               MODELS / "moe_norm/bf16", "--output-dir", target, "--json",
                               *flags, env={**os.environ, **env})
            report = json.loads(out)
            report.pop("elapsed_ms")
            got = (report, directory_tensors(target))
            wanted = wanted or got
            self.assertEqual(got, wanted)
            shutil.rmtree(target)


if __name__ == "__main__":
    unittest.main()
