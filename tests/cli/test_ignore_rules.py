"""The ignore list that `nibble convert` writes means the same to vLLM, SGLang and Transformers.

The three rules are stated here in a line each, for the commit tier; tests/oracles_live asks the real ones.
"""

import json
import re
import shutil
import unittest

from nibble_cli import MODELS, CliTestCase, directory_tensors

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
CASES = (
    ("dense_untied",), ("dense_tied",), ("llama_smol",), ("moe_norm",), ("moe_nonorm",), ("moe_mixed",),
    ("dense_tied", "--targets", "mlp"),
    ("moe_mixed", "--targets", "mlp"),
    ("moe_norm", "--targets", "linear"),
    ("dense_untied", "--ignore", "model.layers.1.mlp.down_proj"),
    ("dense_untied", "--ignore", r"re:^.*\.(gate|up)_proj$"),
    ("dense_tied", "--ignore", "re:model.layers.1"),  # not anchored, written out by name
    ("moe_norm", "--ignore", r"re:^model\.layers\.0\.mlp\.experts\..*$"),
    ("moe_mixed", "--targets", "linear", "--ignore", r"re:^model\.layers\.\d+\.self_attn\..*$"),
)


def vllm_ignores(module, entry):
    return re.match(entry[3:], module) is not None if entry.startswith("re:") else entry == module


def sglang_ignores(module, entry):
    return vllm_ignores(module, entry) or module.endswith("." + entry)


def transformers_ignores(module, entry):  # compressed-tensors: a class's name too
    return vllm_ignores(module, entry) or entry == "Linear"


RULES = (vllm_ignores, sglang_ignores, transformers_ignores)


def fused_layer(module):
    """What an engine builds for it, of all its parts."""
    if ".experts." in module:
        return module[:module.index(".experts.")] + ".experts"
    parent, _, last = module.rpartition(".")
    return next((f"{parent}.{'+'.join(parts)}" for parts in FUSED if last in parts), module)


class IgnoreRules(CliTestCase):
    def converted(self, model, *flags):
        """The ignore list, and module -> whether it is packed, of every Linear."""
        target = self.folder / "out"
        self.succeed("convert", "--method", "rtn", "--input-dir", MODELS / model / "bf16", "--output-dir",
                     target, *flags)
        ignore = json.loads((target / "config.json").read_text())["quantization_config"]["ignore"]
        packed = {"lm_head": False}  # a module of the other loaders also where the embedding is tied
        for name, (_, shape, _) in directory_tensors(target).items():
            module, _, kind = name.rpartition(".")
            if kind == "weight_packed" or kind == "weight" and len(shape) == 2 and "embed" not in module:
                packed[module] = kind == "weight_packed"
        shutil.rmtree(target)
        return ignore, packed

    def test_every_loader_ignores_exactly_what_is_stored_in_bf16(self):
        for case in CASES:
            ignore, packed = self.converted(*case)
            self.assertGreater(sum(packed.values()), 0, case)
            for rule in RULES:
                for module, is_packed in packed.items():
                    ignored = any(rule(module, entry) for entry in ignore)
                    self.assertEqual(ignored, not is_packed, f"{case}: {rule.__name__}: {module}")
            answers = {}
            for module, is_packed in packed.items():
                answers.setdefault(fused_layer(module), set()).add(is_packed)
            self.assertEqual([name for name, found in answers.items() if len(found) > 1], [], case)

    def test_half_a_fused_layer_is_refused(self):
        source = MODELS / "moe_norm/bf16"
        for entry in (r"re:^.*\.self_attn\.q_proj$", r"re:^.*\.mlp\.experts\.3\..*$",
                      r"re:^.*\.mlp\.experts\.\d+\.down_proj$", r"re:^.*\.mlp\.experts\.0\.up_proj$"):
            self.refuse("convert", "--method", "rtn", "--targets", "linear", "--input-dir", source,
                        "--output-dir", self.folder / "out", "--ignore", entry,
                        says=["shards of one fused layer"])


if __name__ == "__main__":
    unittest.main()
