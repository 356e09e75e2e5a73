"""Every mistake: its exit code, one line that names it, and nothing left on disk."""

import json
import shutil
import subprocess
import unittest

from nibble_cli import BINARY, MODELS, ROOT, CliTestCase, Safetensors, write_safetensors

MODEL = MODELS / "dense_tied/bf16"


class BadInput(CliTestCase):
    def refuse_convert(self, source, *flags, says=()):
        target = self.folder / "out"
        self.refuse("convert", "--method", "rtn", "--input-dir", source, "--output-dir", target,
                    *flags, says=says)
        self.assertEqual(list(self.folder.glob("out*")), [])

    def change_config(self, **changes):
        model = self.copy_model()
        config = json.loads((model / "config.json").read_text())
        config.update(changes)
        (model / "config.json").write_text(json.dumps(config))
        return model

    def change_tensors(self, change):
        model = self.copy_model("dense_untied/int4_sym7")
        tensors = Safetensors(model / "model.safetensors").tensors
        change(tensors)
        write_safetensors(model / "model.safetensors", tensors)
        return model

    def test_commands_and_flags(self):
        self.refuse("convrt", says=["unknown command 'convrt'", "'convert'"])
        self.refuse("zzzzzz", says=["unknown command 'zzzzzz'", "--help"])
        self.refuse(says=["no command"])
        self.refuse("inspect", MODEL, "--jsn", says=["'--jsn'", "'--json'"])
        self.refuse("--colour", "inspect", MODEL, says=["--colour"])
        self.refuse("convert", "--input-dir", MODEL, says=["--output-dir"])
        self.refuse("logprobs", "--model", MODEL, "--threads", "many", says=["--threads"])
        self.refuse("--log-level", "loud", "inspect", MODEL, says=["loud"])

    def test_missing_things(self):
        self.refuse_convert(self.folder / "none", says=["none"])
        self.refuse("inspect", self.folder / "none", says=["none"])
        self.refuse("inspect", self.folder, says=["config.json"])
        self.refuse("tokenize", "--model", self.folder / "none", says=["none"])
        self.refuse("plot", self.folder / "none", says=["none"])
        self.refuse("plot", self.folder, says=["metrics.jsonl", "run.directory"])
        self.refuse("logprobs", "--model", MODEL, "--input", self.folder / "in.jsonl",
                    says=["in.jsonl"])
        model = self.copy_model()
        for path in model.glob("*.safetensors"):
            path.unlink()
        self.refuse_convert(model, says=["safetensors"])

    def test_a_missing_tensor_is_named(self):
        model = self.change_tensors(lambda tensors: tensors.pop("model.norm.weight"))
        for command in (["inspect", model], ["logprobs", "--model", model],
                        ["export", "--input-dir", model, "--output-dir", self.folder / "out"]):
            self.refuse(*command, says=["model.norm.weight"])
        self.assertEqual(list(self.folder.glob("out*")), [])

    def test_truncated_weights(self):
        model = self.copy_model()
        weights = next(model.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-100])
        self.refuse_convert(model, says=[weights.name])
        weights.write_bytes(b"\x10\0\0\0\0\0\0\0{")
        self.refuse_convert(model, says=[weights.name])

    def test_wrong_shape(self):
        model = self.change_config(intermediate_size=512)
        self.refuse_convert(model, says=["mlp", "512"])
        self.refuse("inspect", model, says=["mlp", "512"])

    def test_a_tensor_without_a_place_is_named(self):
        def add(tensors):
            tensors["model.layers.0.extra.weight"] = ("BF16", [1], b"\0\0")
        model = self.change_tensors(add)
        for command in (["export", "--input-dir", model, "--output-dir", self.folder / "out"],
                        ["inspect", model], ["logprobs", "--model", model],
                        ["generate", "--model", model]):
            self.refuse(*command, says=["model.layers.0.extra.weight", "config.json"])

    def test_a_config_of_another_model_is_refused(self):
        for changes, named in (({"num_hidden_layers": 1, "layer_types": ["full_attention"]},
                                "model.layers.1."),
                               ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
                                "_norm.weight")):
            with self.subTest(changes):
                model = self.change_config(**changes)
                for command in ("logprobs", "generate"):
                    self.refuse(command, "--model", model, says=[named, "config.json"])
                self.refuse_convert(model, says=[named])
                shutil.rmtree(model)

    def test_unknown_architecture_and_fields(self):
        self.refuse_convert(self.change_config(model_type="mamba", architectures=["Mamba"]),
                            says=["mamba"])
        shutil.rmtree(self.folder / "model")
        self.refuse_convert(self.change_config(attention_softcap=30.0), says=["attention_softcap"])

    def test_a_chat_that_its_template_refuses_is_named(self):
        model = MODELS / "llama_smol/bf16"
        self.refuse("generate", "--model", model, stdin='{"messages": []}\n',
                    says=["stdin line 1", "llama_smol", "chat template"])
        self.refuse("tokenize", "--model", model, stdin='{"messages": []}\n',
                    says=["stdin line 1", "chat template"])

    def test_a_config_may_name_what_is_still_to_be_made(self):
        job = self.folder / "job.yaml"
        text = (ROOT / "configs/ci/tiny-dense.yaml").read_text()
        job.write_text(text.replace("tests/oracles/models/dense_untied/bf16", "not/yet"))
        self.assertIn("path: not/yet", self.succeed("config", job))
        self.refuse("train", job, "--set", f"run.directory={self.folder / 'run'}",
                    says=["model.path", "not/yet"])

    def test_groups_and_options(self):
        source = MODELS / "llama_smol/bf16"  # 96 inputs
        self.refuse_convert(source, "--quant-group-size", 64, says=["model.layers.0", "96", "64"])
        self.refuse_convert(MODEL, "--quant-group-size", 48, says=["48", "128"])
        self.refuse_convert(MODEL, "--targets", "norms", says=["norms", "experts"])
        self.refuse_convert(MODEL, "--targets", "experts", says=["--targets (linear"])
        self.refuse_convert(MODEL, "--grid", "sym8", says=["sym8"])
        self.refuse_convert(MODEL, "--quant-type", "W3A16", says=["W3A16"])
        self.refuse_convert(MODEL, "--quant-type", "W8A16", "--grid", "sym7p5", says=["sym7p5"])
        self.refuse_convert(MODEL, "--ignore", "model.layers.9.mlp", says=["model.layers.9.mlp"])
        self.refuse_convert(MODEL, "--ignore", "re:^(", says=["re:^("])
        self.refuse_convert(MODEL, "--ignore", "model.layers.0.self_attn.q_proj",
                            says=["q_proj", "fused"])
        self.refuse("convert", "--input-dir", MODEL, "--output-dir", self.folder / "out",
                    says=["gptq", "rtn"])
        self.refuse("export", "--to", "gguf", "--input-dir", MODEL, "--output-dir",
                    self.folder / "out", says=["gguf"])

    def test_an_output_in_use_is_left_alone(self):
        target = self.folder / "taken"
        target.mkdir()
        (target / "mine.txt").write_text("keep")
        self.refuse("convert", "--method", "rtn", "--input-dir", MODEL, "--output-dir", target,
                    says=["taken", "not empty"])
        self.assertEqual([path.name for path in self.folder.iterdir()], ["taken"])
        self.assertEqual((target / "mine.txt").read_text(), "keep")

    def test_weights_that_are_no_numbers_are_placed(self):
        model = self.copy_model("dense_untied/bf16")
        name = "model.layers.1.mlp.up_proj.weight"
        index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
        path = model / index[name]
        tensors = Safetensors(path).tensors
        dtype, shape, data = tensors[name]
        at = 2 * (3 * shape[1] + 70)  # row 3, column 70: group 2 of 32
        tensors[name] = (dtype, shape, data[:at] + b"\xc0\x7f" + data[at + 2:])
        write_safetensors(path, tensors)
        for flags in ([], ["--grid", "sym7p5"], ["--quant-type", "W8A16"]):
            self.refuse_convert(model, *flags, says=[name, "row 3", "column 70", "NaN"])
        for command in ("logprobs", "generate"):
            self.refuse(command, "--model", model, says=[name, "row 3", "column 70", "NaN"])

    def test_bad_lines_are_named_and_leave_no_output(self):
        cases = [('{"input_ids": [1, 2]}\n{"input_ids": [1,\n', ["line 2"]),
                 ('\n[1]\n', ["line 2", "object"]),
                 ('{"input_ids": []}\n', ["line 1", "empty"]),
                 ('{"ids": [1]}\n', ["line 1", "'ids'"]),
                 ('{}\n', ["line 1", "input_ids"]),
                 ('{"input_ids": [1, 512]}\n', ["line 1", "512", "511"]),
                 ('{"input_ids": [1, -1]}\n', ["line 1", "-1"]),
                 ('{"input_ids": [1, 2.5]}\n', ["line 1", "2.5"]),
                 ('{"input_ids": [18446744073709551615]}\n', ["line 1"]),
                 ('{"input_ids": "12"}\n', ["line 1", "array"]),
                 (json.dumps({"input_ids": [1] * 2000}) + "\n", ["line 1", "2000", "1024"])]
        for i, (text, says) in enumerate(cases):
            with self.subTest(text[:40]):
                self.refuse("logprobs", "--model", MODEL, "--path", ("trainer", "rollout")[i % 2],
                            "--output", self.folder / "out.jsonl", stdin=text, says=says)
                self.assertEqual(list(self.folder.iterdir()), [])

    def test_bad_lines_to_tokenize(self):
        cases = [('{"text": 5}\n', ["line 1", "text"]),
                 ('{"text": "a", "ids": [1]}\n', ["line 1", "exactly one"]),
                 ('{"text": "a"}\n{"text": "b", "extra": 1}\n', ["line 2", "extra"]),
                 ('{"messages": "hi"}\n', ["line 1", "messages"]),
                 ('{"messages": [], "add_generation_prompt": 3}\n', ["add_generation_prompt"]),
                 ('{"text": "\\ud800"}\n', ["line 1"]),
                 ('{"text": "a", "text": "b"}\n', ["line 1", "duplicate"])]
        for text, says in cases:
            with self.subTest(text):
                self.refuse("tokenize", "--model", MODEL, stdin=text, says=says)

    def test_paths_of_the_wrong_kind_say_what_to_do(self):
        self.refuse("inspect", MODEL / "config.json", says=["is a file", "directory"])
        self.refuse("plot", self.folder, "--output", self.folder / "a.jpg", says=["a.jpg", ".png"])
        self.refuse("plot", self.folder, "--output", self.folder / "none" / "a.png",
                    says=["none", "create it first"])
        self.refuse("logprobs", "--model", MODEL, "--fake-quant", 32, "--targets", "experts",
                    says=["--targets linear"])
        self.refuse("worker", "--join", "127.0.0.1:9", says=["127.0.0.1:9", "nibble coordinator"],
                    code=1)
        checkpoint = self.folder / "step-000001"
        checkpoint.mkdir()
        for name in ("config.json", "meta.json"):
            (checkpoint / name).write_text("{}")
        self.refuse("logprobs", "--model", checkpoint, says=["nibble export", "step-000001"])

    def test_logprobs_options(self):
        for flags in (["--path", "both"], ["--dtype", "float16"], ["--numerics", "quick"],
                      ["--fake-quant", "48"], ["--targets", "mlp"], ["--temperature", "0"],
                      ["--chunk-tokens", "0"], ["--device", "gpu"], ["--device", "cuda"],
                      ["--device", "cuda", "--dtype", "float32"]):
            with self.subTest(flags):
                self.refuse("logprobs", "--model", MODEL, *flags, says=[flags[0]])

    def test_bad_metrics(self):
        rows = self.folder / "metrics.jsonl"
        for text, says in (("", ["no rows"]), ('{"step": 1}\n{"step": \n', ["line 2"]),
                           ('{"loss": 1}\n', ["line 1", "step"]),
                           ('{"step": 1, "other": 2}\n', ["reward"])):
            with self.subTest(text):
                rows.write_text(text)
                self.refuse("plot", self.folder, says=says)
                self.assertEqual(list(self.folder.glob("**/*.png")), [])
        self.refuse("plot", self.folder, self.folder, says=["--output"])

    def test_a_full_stdout_is_a_failure(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            run = subprocess.run([BINARY, "inspect", MODEL], stdout=full, stderr=subprocess.PIPE,
                                 text=True, timeout=60)
        self.assertEqual(run.returncode, 1)
        self.assertIn("cannot write", run.stderr)


if __name__ == "__main__":
    unittest.main()
