#!/usr/bin/env python3
"""Forward and backward passes of Transformers beside Nibble's, interleaved in one run on the same machine.

    python3 benchmarks/peers/transformers_train.py --model models/Qwen3-0.6B --device cpu

The same architecture with random weights, the same number of random tokens in sequences of the same length, all of
them targets. Transformers: its causal LM with SDPA, mean cross-entropy and backward(), FP32 or BF16, eager and under
torch.compile (on a GPU BF16 only, nothing recomputed). Nibble: `nibble bench train`, whose forward_backward_ms is
compared; INT4 weights with QAT, float32 activations on a CPU, BF16 on a GPU. First both compute the loss of the same weights on the same text (`nibble logprobs`), in FP32. Prints one
JSON line. Needs `pip install transformers==5.17.0 torch==2.11.0`; nothing else should be running.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_model(source: pathlib.Path, folder: pathlib.Path) -> transformers.PreTrainedModel:
    """The architecture of `source` with random weights, rounded to BF16, saved in `folder`."""
    config = transformers.AutoConfig.from_pretrained(source, local_files_only=True)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    return model


def check_loss(nibble: pathlib.Path, folder: pathlib.Path, model: transformers.PreTrainedModel) -> float:
    """Largest difference of the two sides' log-probabilities of one sequence, FP32 arithmetic on both."""
    ids = torch.randint(0, model.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model.float()(input_ids=ids).logits[0]
    theirs = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    done = subprocess.run(
        [nibble, "logprobs", "--model", folder, "--device", "cpu"], check=True,
        input=json.dumps({"input_ids": ids[0].tolist()}) + "\n", stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    ours = torch.tensor(json.loads(done.stdout)["logprobs"])
    return float((ours - theirs).abs().max())


class Peer:
    """Steps of Transformers in one type, eager or compiled."""

    def __init__(self, folder: pathlib.Path, dtype: torch.dtype, compiled: bool, tokens: int, sequence: int,
                 device: str):
        self.device = device
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, attn_implementation="sdpa").train().to(device)
        self.call = torch.compile(self.model) if compiled else self.model
        # The target of a sequence's last token is one more token.
        self.ids = torch.randint(0, self.model.config.vocab_size, (tokens // sequence, sequence + 1), device=device)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def step_s(self) -> float:
        self.model.zero_grad(set_to_none=False)
        self.wait()
        start = time.perf_counter()
        logits = self.call(input_ids=self.ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), self.ids[:, 1:].flatten())
        loss.backward()
        self.wait()
        return time.perf_counter() - start


def bench_nibble(binary: pathlib.Path, folder: pathlib.Path, tokens: int, sequence: int, device: str) -> dict:
    done = subprocess.run(
        [binary, "bench", "train", "--model", folder, "--tokens", str(tokens), "--sequence", str(sequence),
         "--max-tokens", str(tokens), "--group-size", "32", "--targets", "linear", "--rounds", "3",
         "--device", device, "--json"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)["qat"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory; config.json is enough")
    parser.add_argument("--nibble", type=pathlib.Path, default=ROOT / "build/cpu/bin/nibble")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--skip-compiled", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work)
        model = make_model(args.model, folder)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        gap = check_loss(args.nibble, folder, model)
        if not gap < 1e-3:
            raise SystemExit(f"the two sides disagree: log-probabilities differ by {gap}")
        del model
        seconds = {"nibble": []}
        for _ in range(args.rounds):
            ours = bench_nibble(args.nibble, folder, args.tokens, args.sequence, args.device)
            seconds["nibble"].append(ours["forward_backward_ms"] / 1000)
            for dtype in (torch.bfloat16,) if args.device == "cuda" else (torch.float32, torch.bfloat16):
                for compiled in (False, True):
                    if compiled and args.skip_compiled:
                        continue
                    name = f"{'compiled' if compiled else 'eager'}_{str(dtype).removeprefix('torch.')}"
                    torch.compiler.reset()
                    peer = Peer(folder, dtype, compiled, args.tokens, args.sequence, args.device)
                    peer.step_s()  # compiles, and touches memory
                    seconds.setdefault(name, []).append(min(peer.step_s(), peer.step_s()))
                    del peer
                    if args.device == "cuda":
                        torch.cuda.empty_cache()  # Nibble is another process
        medians = {name: statistics.median(all_s) for name, all_s in seconds.items()}
        print(json.dumps({
            "bench": "transformers_train", "parameters": parameters, "tokens": args.tokens,
            "sequence": args.sequence, "device": args.device, "threads": os.cpu_count(), "largest_logprob_difference": gap,
            "tokens_per_s": {name: round(args.tokens / s, 1) for name, s in medians.items()},
            "ratio": {name: round(s / medians["nibble"], 2) for name, s in medians.items() if name != "nibble"},
            "seconds_all": {name: [round(s, 2) for s in all_s] for name, all_s in seconds.items()},
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
