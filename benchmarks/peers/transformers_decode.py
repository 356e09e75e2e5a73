#!/usr/bin/env python3
"""Decoding and prefill of Transformers on CPU, in BF16, beside `nibble bench decode`.

    python3 benchmarks/peers/transformers_decode.py --model M
    python3 benchmarks/peers/transformers_decode.py --model M --write-reference M.npz

The loop of generate() without its bookkeeping: the model with its KV cache, eager mode, SDPA, logits of the
last position only, argmax. decode_job.py has the job and the fields of the lines. --write-reference
writes, instead, a prompt, the greedy tokens after it and their logits in FP32, for llama_cpp_decode.py to
compare with. Needs `pip install transformers==5.17.0 torch==2.11.0 numpy==2.4.6`; nothing else should be running.
"""

import pathlib
import sys
import time

import decode_job
import numpy as np
import torch
import transformers

REFERENCE_PROMPT_TOKENS, REFERENCE_NEW_TOKENS = 24, 12


class TransformersEngine:
    """One batch size; see decode_job.Engine."""

    def __init__(self, model: transformers.PreTrainedModel):
        self.model, self.cache, self.sample_s = model, None, 0.0
        self.logits_BV = torch.empty(0)

    def _forward(self, tokens_BT: np.ndarray) -> np.ndarray:
        out = self.model(input_ids=torch.from_numpy(tokens_BT.astype(np.int64)), past_key_values=self.cache,
                         use_cache=True, logits_to_keep=1)
        self.cache, self.logits_BV = out.past_key_values, out.logits[:, -1]
        start = time.perf_counter()
        tokens_B = self.logits_BV.argmax(-1).numpy().astype(np.int32)
        self.sample_s += time.perf_counter() - start
        return tokens_B

    def prefill(self, tokens_BT: np.ndarray) -> np.ndarray:
        self.cache = None
        return self._forward(tokens_BT)

    def step(self, tokens_B: np.ndarray) -> np.ndarray:
        return self._forward(tokens_B[:, None])

    def close(self) -> None:
        self.cache = None


def load(folder: pathlib.Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()


def write_reference(folder: pathlib.Path, path: pathlib.Path) -> None:
    """prompt int32 [T], tokens int32 [N] (greedy), logits float32 [N, V] that they were chosen from."""
    model = load(folder, torch.float32)
    prompt = decode_job.random_prompts(model.config.vocab_size, 1, REFERENCE_PROMPT_TOKENS)
    engine = TransformersEngine(model)
    tokens = [engine.prefill(prompt)]
    logits = [engine.logits_BV.numpy()]
    for _ in range(REFERENCE_NEW_TOKENS - 1):
        tokens.append(engine.step(tokens[-1]))
        logits.append(engine.logits_BV.numpy())
    np.savez(path, prompt=prompt[0], tokens=np.concatenate(tokens), logits=np.concatenate(logits))


@torch.inference_mode()
def main() -> int:
    parser = decode_job.arguments_parser(__doc__.splitlines()[0], new_tokens=16, rounds=2)
    parser.add_argument("--write-reference", type=pathlib.Path, metavar="FILE.npz")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    if arguments.write_reference:
        write_reference(arguments.model, arguments.write_reference)
        return 0
    model = load(arguments.model, torch.bfloat16)
    labels = {"engine": "transformers", "quant": "BF16",
              "versions": {"transformers": transformers.__version__, "torch": torch.__version__}}
    decode_job.print_lines(arguments, model.config.vocab_size, labels,
                           lambda batch, positions: TransformersEngine(model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
