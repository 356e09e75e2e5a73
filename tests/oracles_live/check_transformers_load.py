#!/usr/bin/env python3
"""Loads what `nibble convert` and `nibble export` write in Transformers and compares logits.

The converted directory must give the logits of shared fixtures' INT4 checkpoint bit for bit, and
the exported BF16 directory those of the fake-quantized weights within float32 rounding. Needs an
interpreter with torch, transformers and compressed-tensors, which the build does not install:

    NIBBLE_ORACLE_PYTHON=/path/to/python $NIBBLE_ORACLE_PYTHON tests/oracles_live/check_transformers_load.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("NIBBLE_BINARY", str(ROOT / "build/cpu/bin/nibble"))
MODELS = ROOT / "tests/oracles/models"
TOLERANCE = 5e-5  # tests/oracles/models/README.md


@torch.no_grad()
def load(directory):
    """BF16 weights as stored (INT4 ones decompressed, to BF16), computed with in float32. A tensor that is
    missing or left over is an error; Transformers itself only warns and draws it at random."""
    model, found = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True)
    wrong = {what: sorted(map(str, names)) for what, names in found.items() if names}
    if wrong:
        raise ValueError(f"{directory}: {wrong}")
    model.eval()
    model.config._experts_implementation = "eager"
    model(input_ids=torch.tensor([[1, 2]]))  # compressed-tensors decompresses at the first forward
    model.to(torch.float32)
    # Its frequencies anew: they were rounded to BF16 with the rest of the model.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model


@torch.no_grad()
def logits(model, ids):
    return model(ids.long()[None], use_cache=False).logits[0]


def run(*arguments):
    subprocess.run([BINARY, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def check(case, folder):
    name = case["name"]
    io = load_file(MODELS / name / "io.safetensors")
    converted, exported = folder / f"{name}-int4", folder / f"{name}-bf16"
    run("convert", "--method", "rtn", "--quant-group-size", case["group"], "--input-dir",
        MODELS / name / "bf16", "--output-dir", converted)
    run("export", "--input-dir", converted, "--output-dir", exported)
    ours, theirs, plain = load(converted), load(MODELS / name / "int4_sym7"), load(exported)
    worst = 0.0
    for k in range(len(case["lengths"])):
        ids = io[f"seq{k}.input_ids"]
        got = logits(ours, ids)
        if not torch.equal(got, logits(theirs, ids)):
            return f"sequence {k}: logits differ from those of the fixture's INT4 checkpoint"
        want = io[f"sym7.seq{k}.logits_fp32"]
        for other in (got, logits(plain, ids)):
            worst = max(worst, (other[-want.shape[0]:] - want).abs().max().item())
    if worst > TOLERANCE:
        return f"logits differ by {worst:.2e} from the fixture's"
    print(f"{name}: loads; converted == fixture to the bit, both within {worst:.1e} of the oracle")
    return None


def main():
    cases = json.loads((MODELS / "cases.json").read_text())
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            problem = check(case, Path(folder))
            if problem:
                problems.append(f"{case['name']}: {problem}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
