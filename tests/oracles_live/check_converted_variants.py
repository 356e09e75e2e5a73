#!/usr/bin/env python3
"""Every kind of directory that `nibble convert` writes, loaded by Transformers with compressed-tensors.

Per case: no tensor is missing or left over; every weight, decompressed by compressed-tensors, has the bits
of the directory that `nibble export --to bf16` makes of it; logits of the two are equal to the bit; and
`nibble logprobs` of an INT4 directory, as trainer and as rollout, is within float32 rounding of Transformers
(8 bits are for other loaders). Not here: BF16 experts in one layer and packed ones in another, which Transformers
5.17 refuses from llm-compressor too. Needs the interpreter of requirements.txt and the binary in NIBBLE_BINARY.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from check_transformers_load import BINARY, MODELS, ROOT, TOLERANCE, load, logits, run

# Model, bits, group, further flags. Experts of moe_norm have 64 intermediate channels, those of moe_nonorm 32.
RANDOM_MOE = "random qwen3_moe"
CASES = (
    *(("dense_untied", bits, group, ()) for bits in (4, 8) for group in (32, 64, 128)),
    ("dense_tied", 4, 128, ()),
    ("dense_tied", 8, 32, ()),
    ("dense_tied", 4, 64, ("--targets", "mlp")),
    ("dense_untied", 4, 32, ("--grid", "sym7p5")),
    ("dense_untied", 4, 32, ("--ignore", r"re:^model\.layers\.0\.self_attn\..*$")),
    ("llama_smol", 8, 32, ()),
    *(("moe_norm", bits, group, ()) for bits in (4, 8) for group in (32, 64)),
    ("moe_norm", 4, 64, ("--targets", "linear")),
    ("moe_nonorm", 4, 32, ("--targets", "mlp")),
    ("moe_mixed", 4, 32, ("--targets", "mlp")),
    ("moe_mixed", 8, 32, ("--targets", "linear")),
    (RANDOM_MOE, 4, 128, ()),
    (RANDOM_MOE, 8, 128, ("--targets", "linear")),
)
LENGTHS = (2, 37)
LEFT_BESIDE = (".weight_scale", ".weight_shape")  # of a decompressed weight


def make_random_moe(folder):
    subprocess.run([sys.executable, "-B", ROOT / "tools/make_random_model.py", "--output", folder,
                    "--architecture", "qwen3_moe", "--layers", "2", "--experts", "6", "--weights",
                    "--initializer-range", "0.1"], check=True, stdout=subprocess.DEVNULL)
    return folder


def different_weights(one, other):
    one, other = ({name: tensor for name, tensor in model.state_dict().items()
                   if not name.endswith(LEFT_BESIDE)}
                  for model in (one, other))
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [name for name in one if not torch.equal(one[name], other[name])]


def nibble_logprobs(directory, sequences, path):
    rows = "".join(json.dumps({"input_ids": ids.tolist()}) + "\n" for ids in sequences)
    out = subprocess.run([BINARY, "logprobs", "--model", directory, "--device", "cpu", "--path", path],
                         input=rows, check=True, capture_output=True, text=True).stdout
    return [torch.tensor(json.loads(line)["logprobs"]) for line in out.splitlines()]


def check(source, bits, group, flags, folder):
    """The largest difference of log-probabilities; None for 8 bits, which Nibble does not run. Throws
    ValueError on what has to be equal."""
    int4, bf16 = folder / "int4", folder / "bf16"
    run("convert", "--method", "rtn", "--input-dir", source, "--output-dir", int4, "--quant-type",
        f"W{bits}A16", "--quant-group-size", group, *flags)
    run("export", "--to", "bf16", "--input-dir", int4, "--output-dir", bf16)
    ours, plain = load(int4), load(bf16)
    names = different_weights(ours, plain)
    if names:
        raise ValueError(f"{len(names)} weights differ, such as {names[0]}")
    if not different_weights(plain, load(source)):
        raise ValueError("no weight was quantized")
    draw = torch.Generator().manual_seed(bits * group)
    sequences = [torch.randint(plain.config.vocab_size, (length,), generator=draw) for length in LENGTHS]
    want = []
    for ids in sequences:
        got = logits(ours, ids)
        if not torch.equal(got, logits(plain, ids)):
            raise ValueError("logits differ from those of the exported directory")
        want.append(got[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0])
    if bits == 8:
        return None
    gaps = [(x - y).abs().max().item() for path in ("trainer", "rollout")
            for x, y in zip(nibble_logprobs(int4, sequences, path), want, strict=True)]
    if not max(gaps) < TOLERANCE:
        raise ValueError(f"log-probabilities differ by {max(gaps):.1e}")
    return max(gaps)


def main():
    num_failed = 0
    with tempfile.TemporaryDirectory() as name:
        random_moe = make_random_moe(Path(name) / "moe")
        for k, (model, bits, group, flags) in enumerate(CASES):
            case = " ".join((f"{model}: W{bits}A16, groups of {group}", *flags))
            folder = Path(name) / str(k)
            folder.mkdir()
            source = random_moe if model == RANDOM_MOE else MODELS / model / "bf16"
            try:
                gap = check(source, bits, group, flags, folder)
                print(f"{case}: weights and logits equal to the bit",
                      "" if gap is None else f", log-probabilities within {gap:.1e}", sep="")
            except ValueError as error:
                num_failed += 1
                print(f"{case}: {error}", file=sys.stderr)
    print(f"{len(CASES) - num_failed} of {len(CASES)} cases hold")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
