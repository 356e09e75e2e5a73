"""What llama_cpp_decode.py and transformers_decode.py measure, and the lines that they print.

Every sequence of a batch gets its own random prompt, the same for every engine. A round prefills
the batch and then makes `new_tokens` steps of one token a sequence, greedily, whatever the token.
A step is the engine's pass and the choice of every sequence's next token. One line a batch:

    {"bench": "decode", "engine", "model", "quant", "batch", "prompt_tokens", "new_tokens", "threads",
     "tokens_per_s": batch * new_tokens / seconds of the steps, median of the rounds,
     "prefill_tokens_per_s": batch * prompt_tokens / seconds of the batch's prefill, median,
     "step_ms_median", "step_ms_p90": of all steps of all rounds; "sample_ms_median": part of a step,
     "rounds", and labels of the engine}

and one for a long prompt alone: "bench": "prefill", batch 1, no steps. A round of each comes first
and is not counted. Needs numpy only.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np


class Engine(Protocol):
    """One batch size of one engine. `sample_s` grows by the time spent choosing tokens."""

    sample_s: float

    def prefill(self, tokens_BT: np.ndarray) -> np.ndarray:
        """Forgets everything, reads the prompts and returns the likeliest next tokens, int32 [B]."""

    def step(self, tokens_B: np.ndarray) -> np.ndarray:
        """Appends a token to every sequence and returns the likeliest next ones, int32 [B]."""

    def close(self) -> None: ...


def arguments_parser(description: str, new_tokens: int, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=pathlib.Path, required=True, metavar="DIR",
                        help="Hugging Face directory, BF16, Llama or dense Qwen3")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=new_tokens)
    parser.add_argument("--prefill-tokens", type=int, default=512, help="of the long prompt; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def random_prompts(vocabulary: int, batch: int, tokens: int) -> np.ndarray:
    """int32 [batch, tokens]; the first prompts of a larger batch are those of a smaller one."""
    return np.random.default_rng(1).integers(0, vocabulary, (batch, tokens), np.int32)


def run_round(engine: Engine, tokens_BT: np.ndarray, new_tokens: int) -> dict:
    start = time.perf_counter()
    tokens_B = engine.prefill(tokens_BT)
    found = {"prefill_s": time.perf_counter() - start, "step_s": [], "sample_s": []}
    for _ in range(new_tokens):
        sampled = engine.sample_s
        start = time.perf_counter()
        tokens_B = engine.step(tokens_B)
        found["step_s"].append(time.perf_counter() - start)
        found["sample_s"].append(engine.sample_s - sampled)
    return found


def measure(engine: Engine, tokens_BT: np.ndarray, new_tokens: int, rounds: int) -> dict:
    """The measured fields of a line."""
    batch, prompt_tokens = tokens_BT.shape
    run_round(engine, tokens_BT, min(new_tokens, 4))
    found = [run_round(engine, tokens_BT, new_tokens) for _ in range(rounds)]
    prefill_s = statistics.median(one["prefill_s"] for one in found)
    fields = {"prefill_tokens_per_s": round(batch * prompt_tokens / prefill_s, 2)}
    if new_tokens > 0:
        steps_s = [seconds for one in found for seconds in one["step_s"]]
        sample_s = [seconds for one in found for seconds in one["sample_s"]]
        total_s = statistics.median(sum(one["step_s"]) for one in found)
        fields = {
            "tokens_per_s": round(batch * new_tokens / total_s, 2), **fields,
            "step_ms_median": round(1e3 * statistics.median(steps_s), 3),
            "step_ms_p90": round(1e3 * float(np.quantile(steps_s, 0.9)), 3),
            "sample_ms_median": round(1e3 * statistics.median(sample_s), 3),
        }  # fmt: skip
    return fields


def print_lines(arguments: argparse.Namespace, vocabulary: int, labels: dict,
                open_engine: Callable[[int, int], Engine]) -> None:
    """`open_engine` gets the batch and the positions of a sequence; `labels` go into every line."""
    jobs = [("decode", batch, arguments.prompt_tokens, arguments.new_tokens) for batch in arguments.batches]
    if arguments.prefill_tokens > 0:
        jobs.append(("prefill", 1, arguments.prefill_tokens, 0))
    for bench, batch, prompt_tokens, new_tokens in jobs:
        engine = open_engine(batch, prompt_tokens + new_tokens)
        prompts_BT = random_prompts(vocabulary, batch, prompt_tokens)
        fields = measure(engine, prompts_BT, new_tokens, arguments.rounds)
        engine.close()
        print(json.dumps({
            "bench": bench, "engine": labels["engine"], "model": arguments.model.resolve().name,
            "quant": labels["quant"], "batch": batch, "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens, "threads": arguments.threads, **fields,
            "rounds": arguments.rounds, **labels,
        }), flush=True)  # fmt: skip
