#!/usr/bin/env python3
"""A GRPO step of Nibble beside TRL's, interleaved in one run on the same machine.

    python3 benchmarks/peers/grpo_step.py --tokenizer models/SmolLM2-135M-Instruct

Both train the same randomly initialised Llama (0.16 B parameters, hidden 768, 18 layers) on the
same prompts: 8 prompts x 8 samples x 64 new tokens, KL to a reference, AdamW. Nibble trains INT4
with QAT (g=32, every projection) and serves it; TRL trains and generates in the dtype given. Prints
one JSON line. Needs a Python with `pip install trl==1.16.0 transformers==5.17.0 torch==2.11.0`;
nothing else should be running.
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

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS, SAMPLES, NEW_TOKENS = 8, 8, 64
LR, KL_LOSS_COEF = 1e-6, 0.001
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def make_model(directory: pathlib.Path, tokenizer: pathlib.Path) -> int:
    """Writes a random BF16 Llama with the tokenizer's vocabulary; returns its parameters."""
    import torch
    import transformers

    base = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    config = transformers.LlamaConfig(
        vocab_size=base["vocab_size"],
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=18,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=base["bos_token_id"],
        eos_token_id=base["eos_token_id"],
    )
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, directory / name)
    return sum(parameter.numel() for parameter in model.parameters())


def write_prompts(path: pathlib.Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            question = f"What is {i % 20 + 1} + {i * 7 % 20 + 1}? Answer with just the number."
            prompt = [{"role": "user", "content": question}]
            file.write(json.dumps({"prompt": prompt, "label": str(i % 20 + i * 7 % 20 + 2)}) + "\n")


class Nibble:
    """`nibble train` on the same job, in a run directory of its own for each round."""

    def __init__(self, binary: pathlib.Path, work: pathlib.Path, steps: int):
        self.binary, self.work, self.steps, self.rounds = binary, work, steps, 0
        subprocess.run(
            [binary, "convert", "--method", "rtn", "--quant-group-size", "32", "--targets",
             "linear", "--input-dir", work / "model", "--output-dir", work / "int4"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        config = {
            "run": {"steps": steps, "seed": 1},
            "model": {"path": str(work / "model"), "int4": str(work / "int4")},
            "qat": {"enabled": True},
            "data": {"train": str(work / "prompts.jsonl")},
            "rollout": {
                "prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES,
                "max_new_tokens": NEW_TOKENS, "max_running": PROMPTS * SAMPLES,
                "max_positions": 256, "kv_tokens": 8192,
            },
            "algorithm": {"kl_estimator": "k3", "kl_loss_coef": KL_LOSS_COEF},
            "optimizer": {"lr": LR, "global_batch": PROMPTS * SAMPLES},
            "parallel": {"max_tokens_per_device": 2048},
            "checkpoint": {"every": steps},
        }  # fmt: skip
        (work / "job.yaml").write_text(json.dumps(config), encoding="utf-8")

    def run(self) -> dict:
        self.rounds += 1
        run = self.work / f"run-{self.rounds}"
        subprocess.run(
            [self.binary, "train", self.work / "job.yaml", "--set", f"run.directory={run}"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        shutil.rmtree(run)
        gap = max(row["logprob_abs_diff_max"] for row in rows)
        if len(rows) != self.steps or gap != 0:
            raise SystemExit(f"Nibble made {len(rows)} steps; its largest gap is {gap}, not 0")
        phases = ("generate", "reference", "forward_backward", "optimizer", "pack", "sync")
        return {
            "step_s": [row["step_ms"] / 1000 for row in rows],
            "generated_tokens": [row["generated_tokens"] for row in rows],
            "phase_s_per_step": {
                phase: statistics.fmean(row[phase + "_ms"] for row in rows) / 1000
                for phase in phases
            },
        }


def run_trl(work: pathlib.Path, steps: int, dtype: str, micro_batch: int) -> dict:
    job = {
        "model": str(work / "model"), "data": str(work / "prompts.jsonl"),
        "output": str(work / "trl"), "prompts": PROMPTS, "samples": SAMPLES,
        "max_new_tokens": NEW_TOKENS, "kl_loss_coef": KL_LOSS_COEF, "lr": LR, "steps": steps,
        "dtype": dtype, "micro_batch": micro_batch, "threads": os.cpu_count(),
    }  # fmt: skip
    (work / "trl.json").write_text(json.dumps(job), encoding="utf-8")
    script = pathlib.Path(__file__).with_name("trl_grpo_step.py")
    done = subprocess.run(
        [sys.executable, "-B", script, work / "trl.json"],
        check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(rounds: list[dict]) -> dict:
    """Medians over all steps of all rounds, the first step of each included."""
    steps = [seconds for one in rounds for seconds in one["step_s"]]
    return {
        "step_s": round(statistics.median(steps), 2),
        "step_s_all": [round(seconds, 2) for seconds in steps],
        "generated_tokens": round(statistics.fmean(sum((r["generated_tokens"] for r in rounds), []))),
        "phase_s": {
            name: round(statistics.fmean(one["phase_s_per_step"][name] for one in rounds), 2)
            for name in rounds[0]["phase_s_per_step"]
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--nibble", type=pathlib.Path, default=ROOT / "build/cpu/bin/nibble")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--nibble-steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--trl-steps", type=int, default=1, help="steps of a round")
    parser.add_argument("--trl-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--trl-micro-batch", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        parameters = make_model(work / "model", args.tokenizer)
        write_prompts(work / "prompts.jsonl", PROMPTS * max(args.nibble_steps, args.trl_steps))
        nibble = Nibble(args.nibble.resolve(), work, args.nibble_steps)
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(nibble.run())
            theirs.append(run_trl(work, args.trl_steps, args.trl_dtype, args.trl_micro_batch))
    mine, peer = summary(ours), summary(theirs)
    per_token = peer["step_s"] / peer["generated_tokens"] * mine["generated_tokens"]
    print(
        json.dumps(
            {
                "bench": "grpo_step", "parameters": parameters, "prompts": PROMPTS,
                "samples": SAMPLES, "max_new_tokens": NEW_TOKENS, "threads": os.cpu_count(),
                "nibble": mine, "trl": peer,
                "trl_options": {"dtype": args.trl_dtype, "micro_batch": args.trl_micro_batch},
                "versions": {k: theirs[0][k] for k in ("trl", "transformers", "torch")},
                "ratio": round(peer["step_s"] / mine["step_s"], 2),
                "ratio_per_token": round(per_token / mine["step_s"], 2),
            }
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
