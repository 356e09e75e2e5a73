"""Bad input (exit code 2) and faults of the machine (1): one sentence that names the thing, nothing
half-written, no process left behind."""

import json
import re
import shutil
import socket
import struct
import subprocess
import unittest
from pathlib import Path

from nibble_job import BINARY, ROOT, TINY_DENSE, TINY_MOE, JobTest, read_metrics, settings

BF16 = ROOT / "tests/oracles/models/dense_untied/bf16"
INT4 = ROOT / "tests/oracles/models/dense_untied/int4_sym7"


class BadInput(JobTest):
    def refused(self, *parts, config=TINY_DENSE, arguments=(), environment=None, code=2):
        """Runs a job that must be refused without a trace in the run directory."""
        directory = self.folder / "run"
        result = self.run_nibble("train", config, *settings(run__directory=directory), *arguments,
                                 environment=environment)
        self.expect_refusal(result, code, *parts)
        self.assertFalse(directory.exists(), "half-written")

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def model_copy(self, source, name="model"):
        return Path(shutil.copytree(source, self.folder / name))

    def weights_of(self, model):
        return max(model.glob("*.safetensors"), key=lambda path: path.stat().st_size)

    # The configuration.

    def test_a_missing_config_file(self):
        self.refused("no/such.yaml", config="no/such.yaml")

    def test_a_config_that_is_not_yaml(self):
        path = self.write("broken.yaml", "run: { steps: 3\nmodel: [\n")
        self.refused("broken.yaml", config=path)

    def test_an_unknown_key_is_named_with_its_line_and_the_nearest_one(self):
        text = (ROOT / TINY_DENSE).read_text().replace("max_new_tokens:", "max_new_token:")
        line = 1 + text[:text.index("max_new_token:")].count("\n")
        path = self.write("typo.yaml", text)
        self.refused("rollout.max_new_token", "rollout.max_new_tokens", f"typo.yaml:{line}",
                     config=path)
        self.refused("optimizer.lrr", "optimizer.lr", arguments=settings(optimizer__lrr=1))

    def test_an_unknown_key_that_resembles_nothing(self):
        self.refused("cluster.foo", "known here", arguments=settings(cluster__foo=1))
        self.refused("zz", "known here", arguments=settings(zz=1))

    def test_sizes_that_contradict_each_other_start_nothing(self):
        for key in ("max_positions", "kv_tokens"):
            self.refused(f"rollout.{key}", "max_new_tokens",
                         arguments=settings(**{f"rollout__{key}": 4}))
        self.refused("rollout.kv_tokens: 0", arguments=settings(rollout__kv_tokens=0,
                                                                 cluster__device="cpu"))
        self.refused("rollout.draft_model", "max_draft_tokens", arguments=settings(rollout__draft_model=BF16))
        self.refused("threads_per_worker", arguments=settings(cluster__threads_per_worker=100000))
        self.refused("cluster.trainers = 1000", "a core",
                     arguments=settings(cluster__trainers=1000))

    def test_a_draft_model_that_cannot_guess(self):
        def drafts(path):
            return settings(rollout__draft_model=path, rollout__max_draft_tokens=2)
        self.refused("rollout.draft_model", "no/such", arguments=drafts("no/such"))
        draft = self.model_copy(BF16)
        config = json.loads((draft / "config.json").read_text())
        (draft / "config.json").write_text(json.dumps({**config, "vocab_size": 640}))
        self.refused("rollout.draft_model", "vocab_size = 640", arguments=drafts(draft))

    def test_a_draft_head_that_cannot_guess(self):
        def heads(path, **more):
            return settings(rollout__draft_head=path, rollout__max_draft_tokens=2, **more)
        self.refused("rollout.draft_head", "max_draft_tokens", arguments=settings(rollout__draft_head="random"))
        self.refused("rollout.draft_head", "no/such", arguments=heads("no/such"))
        self.refused("rollout.draft_head", "model_type", arguments=heads(BF16))
        self.refused("rollout.draft_head", "together", arguments=heads("random", rollout__draft_model=BF16))
        self.refused("rollout.train_draft_head", "rollout.draft_head",
                     arguments=settings(rollout__train_draft_head="true"))

    def test_a_value_of_the_wrong_type(self):
        self.refused("run.steps", "'many'", arguments=settings(run__steps="many"))

    def test_a_value_out_of_range(self):
        self.refused("cluster.trainers", "0", arguments=settings(cluster__trainers=0))

    def test_wrong_batch_arithmetic_names_both_products(self):
        self.refused("optimizer.global_batch", "rollout.prompts_per_step", "16", "12",
                     arguments=settings(optimizer__global_batch=12))

    def test_qat_of_a_model_without_quantization_config(self):
        self.refused("qat.enabled", BF16, "nibble convert", arguments=settings(model__int4=BF16))

    def test_a_group_that_does_not_divide(self):
        self.refused("128", "64", "group", config=TINY_MOE,
                     environment={"OPEN_TRAINING_INT4_GROUP_SIZE": "128"})

    def test_an_unknown_reward_type(self):
        self.refused("reward.type", "'last_numbr'", "last_number",
                     arguments=settings(reward__type="last_numbr"))

    def test_an_unknown_log_level(self):
        self.refused("logging.level", "loud", arguments=settings(logging__level="loud"))

    # Files that the configuration names.

    def test_a_missing_model(self):
        for key in ("path", "int4", "reference"):
            with self.subTest(key=key):
                self.refused(f"model.{key}", "no/such/model",
                             arguments=settings(**{f"model__{key}": "no/such/model"}))

    def test_a_model_directory_without_config(self):
        empty = self.folder / "empty"
        empty.mkdir()
        self.refused(empty, "config.json", arguments=settings(model__path=empty))

    def test_a_truncated_weight_file(self):
        for key, source in (("path", BF16), ("int4", INT4)):
            with self.subTest(key=key):
                model = self.model_copy(source, key)
                weights = self.weights_of(model)
                weights.write_bytes(weights.read_bytes()[:-1000])
                self.refused(weights, arguments=settings(**{f"model__{key}": model}))

    def test_a_missing_tensor_and_one_of_the_wrong_shape(self):
        for name, change in (("missing", lambda header, key: header.update({key + "x": header.pop(key)})),
                             ("misshapen", lambda header, key: header[key]["shape"].reverse())):
            with self.subTest(name=name):
                model = self.model_copy(BF16, name)
                weights = self.weights_of(model)
                key = rewrite_header(weights, "mlp.down_proj.weight", change)
                self.refused(key, arguments=settings(model__path=model))

    def test_an_unsupported_model_type(self):
        model = self.model_copy(BF16)
        config = json.loads((model / "config.json").read_text())
        config.update(architectures=["MambaForCausalLM"], model_type="mamba")
        (model / "config.json").write_text(json.dumps(config))
        self.refused("mamba", model / "config.json",
                     arguments=settings(model__path=model, model__int4=model))

    def test_a_field_of_the_model_that_is_not_implemented(self):
        model = self.model_copy(BF16)
        config = json.loads((model / "config.json").read_text())
        config.update(attention_bias=True)
        (model / "config.json").write_text(json.dumps(config))
        self.refused("attention_bias", arguments=settings(model__path=model))

    def test_an_int4_checkpoint_of_another_model(self):
        other = ROOT / "tests/oracles/models/moe_norm/int4_sym7"
        self.refused(other, BF16, arguments=settings(model__path=BF16, model__int4=other))

    def test_a_reference_that_computes_something_else(self):
        model = self.model_copy(BF16)
        config = json.loads((model / "config.json").read_text())
        config.update(rms_norm_eps=0.001)
        (model / "config.json").write_text(json.dumps(config))
        self.refused("rms_norm_eps", model, arguments=settings(model__path=BF16, model__reference=model,
                                                               model__int4=INT4))

    def test_a_model_without_tokenizer(self):
        model = self.model_copy(BF16)
        (model / "tokenizer.json").unlink()
        self.refused(model, "tokenizer.json", arguments=settings(model__path=model))

    def test_a_bad_line_of_data_is_named_by_file_and_line(self):
        good = '{"prompt": "value 1 plus 1 is", "label": "2"}\n'
        for name, line in (("syntax", '{"prompt": \n'), ("label", '{"prompt": "value 1"}\n'),
                           ("empty", '{"prompt": "", "label": "2"}\n')):
            for key in ("data.train", "eval.data"):
                with self.subTest(line=line, key=key):
                    data = self.write(f"{name}.jsonl", good + good + line + good)
                    self.refused(f"{data}:3", arguments=["--set", f"{key}={data}"])

    def test_missing_and_empty_data(self):
        self.refused("data.train", "no/such.jsonl",
                     arguments=settings(data__train="no/such.jsonl"))
        empty = self.write("empty.jsonl", "")
        self.refused(empty, arguments=settings(data__train=empty))

    def test_a_prompt_that_cannot_fit_is_quoted(self):
        long = self.write("long.jsonl", json.dumps({"prompt": "value 7" * 200, "label": "1"}))
        for key in ("data__train", "eval__data"):
            self.refused("'value 7value", "rollout.max_positions = 64",
                         arguments=settings(**{key: long}))

    def test_held_out_sets_that_contradict_something_are_named(self):
        data = self.write("held_out.jsonl", json.dumps({"prompt": "value 7", "label": "1"}))
        long = self.write("long.jsonl", json.dumps({"prompt": "value 7" * 200, "label": "1"}))
        no_data = settings(eval__data='""')
        for sets, parts in ((f"[{{name: a, data: {data}}}, {{name: a, data: {data}}}]",
                             ["eval.sets.1.name", "'a'"]),
                            (f"[{{name: a b, data: {data}}}]", ["eval.sets.0.name", "'a b'"]),
                            ("[{name: a, data: no/such.jsonl}]", ["eval.sets.0.data", "no/such.jsonl"]),
                            (f"[{{name: a, data: {data}, max_new_tokens: 65}}]",
                             ["eval.sets.0.max_new_tokens = 65", "rollout.max_positions = 64"]),
                            (f"[{{name: a, data: {long}}}]", ["'value 7value"]),
                            (f"[{{name: a, data: {data}, sample: 2}}]", ["sample", "samples"])):
            with self.subTest(sets):
                self.refused(*parts, arguments=[*no_data, *settings(eval__sets=sets)])
        self.refused("eval.data", "eval.sets",
                     arguments=settings(eval__sets=f"[{{name: a, data: {data}}}]"))

    # The machine.

    def test_a_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.refused(f"127.0.0.1:{port}", "in use", arguments=["--port", port], code=1)

    def test_a_run_directory_that_cannot_be_made(self):
        file = self.write("file", "")
        result = self.run_nibble("train", TINY_DENSE, *settings(run__directory=file / "run"))
        self.expect_refusal(result, 2, file / "run")

    def test_a_damaged_checkpoint_is_named_on_resume(self):
        directory = self.folder / "run"
        self.train(directory, *settings(run__steps=2))
        rows = read_metrics(directory)
        checkpoint = directory / "checkpoints/step-000002"

        def refused_with(name, change, *parts):
            path = checkpoint / name
            good = path.read_bytes()
            path.write_bytes(change(good))
            result = self.run_nibble("train", TINY_DENSE, "--resume",
                                     *settings(run__directory=directory, run__steps=4))
            self.expect_refusal(result, 2, name, *parts)
            self.assertEqual(read_metrics(directory), rows)
            path.write_bytes(good)

        weights = "rank-001-of-002.safetensors"
        refused_with(weights, lambda data: data[:-1000], f"remove '{checkpoint}'")
        refused_with(weights, lambda data: data[:-7] + bytes([data[-7] ^ 1]) + data[-6:],
                     "hash differs", "tensor 'v/")
        refused_with("meta.json", lambda data: data[:20], f"remove '{checkpoint}'")
        refused_with("meta.json", lambda data: data.replace(b'"updates": ', b'"updates": 1'),
                     "damaged")
        refused_with("config.json", lambda data: data.replace(b'"rope_theta": ', b'"rope_theta": 2'),
                     "damaged")


class Mounts(JobTest):
    """Runs in a mount namespace of its own, so that a small or read-only file system is nobody
    else's and goes away by itself."""

    def in_namespace(self, script):
        place = self.folder / "mounted"
        place.mkdir()
        self.mounts = ["unshare", "--mount", "--map-root-user", "sh", "-ec",
                       f'PLACE="{place}"; {script}']
        probe = subprocess.run([*self.mounts, "sh", "true"], capture_output=True, text=True,
                               check=False)
        if probe.returncode != 0:
            self.skipTest(f"no mounts here: {probe.stderr.strip()}")
        return place

    def test_a_read_only_run_directory(self):
        place = self.in_namespace('mount -t tmpfs -o size=8m none "$PLACE"; '
                                  'mount -o remount,ro "$PLACE"; exec "$@"')
        result = self.run_nibble("train", TINY_DENSE, *settings(run__directory=place / "run"),
                                 wrapper=[*self.mounts, "sh"])
        self.expect_refusal(result, 2, place / "run", "Read-only file system")

    def full_disk(self, size_kib, *arguments):
        """Outcome of a job on a disk of `size_kib`, and the files that are on it then."""
        place = self.in_namespace(f'mount -t tmpfs -o size={size_kib}k none "$PLACE"; '
                                  'code=0; "$@" || code=$?; find "$PLACE" -type f; exit $code')
        result = self.run_nibble("train", TINY_DENSE, *settings(run__directory=place / "run"),
                                 *arguments, wrapper=[*self.mounts, "sh"])
        files = [Path(line) for line in result.out.splitlines() if line.startswith(str(place))]
        return place, result, files

    def test_a_disk_that_fills_up_while_a_checkpoint_is_written(self):
        place, result, files = self.full_disk(1024)
        self.expect_refusal(result, 1, place, "No space left on device")
        self.assertTrue(files, "the run had not begun")
        checkpoints = [path for path in files if "checkpoints" in path.parts]
        half = [path for path in checkpoints if re.search(r"\.partial|\.tmp\.", str(path))]
        self.assertEqual(half, [], "half-written")
        for path in checkpoints:  # what is there is whole
            self.assertIn(path.parent / "meta.json", checkpoints)

    def test_a_disk_without_room_for_the_run_store(self):
        place, result, files = self.full_disk(40)
        self.expect_refusal(result, 1, place)
        self.assertEqual([path for path in files if ".tmp." in path.name], [])

    def test_the_same_job_fits_on_a_larger_disk(self):
        result = self.full_disk(65536)[1]
        self.assertEqual(result.code, 0, result.err[-2000:])


def rewrite_header(file, name_part, change):
    """Applies `change(header, key)` for the first tensor whose name holds `name_part`."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    key = next(name for name in header if name_part in name)
    change(header, key)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length:])
    return key


if __name__ == "__main__":
    unittest.main()
