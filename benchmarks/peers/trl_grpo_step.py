"""One job of TRL's GRPOTrainer, timed step by step; grpo_step.py runs it beside Nibble's.

    python3 trl_grpo_step.py JOB.json      JOB: see grpo_step.py; prints one JSON line

Needs trl, transformers and torch.
"""

import json
import math
import sys
import time

import datasets
import torch
import transformers
import trl


class StepTimer(transformers.TrainerCallback):
    """Seconds of each optimizer step, from its first micro-batch to its update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds.append(time.perf_counter() - self._start)


class Phases:
    """Seconds spent in methods of the trainer, by name; a method's calls are added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, owner: object, method: str, name: str, only_without_grad: bool = False) -> None:
        inner = getattr(owner, method)
        self.seconds[name] = 0.0

        def timed(*args, **kwargs):
            if only_without_grad and torch.is_grad_enabled():
                return inner(*args, **kwargs)
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        setattr(owner, method, timed)


def reward(completions: list, label: list[str], **_) -> list[float]:
    """1 where the text has the label among its words, else 0."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(answer in text.split()) for text, answer in zip(texts, label, strict=True)]


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(job["threads"])
    with open(job["data"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    batch = job["prompts"] * job["samples"]
    args = trl.GRPOConfig(
        output_dir=job["output"],
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": job["dtype"]},
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=batch // job["micro_batch"],
        num_generations=job["samples"],
        max_completion_length=job["max_new_tokens"],
        gradient_checkpointing=False,
        beta=job["kl_loss_coef"],
        learning_rate=job["lr"],
        max_steps=job["steps"],
        temperature=1.0,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        seed=1,
    )
    trainer = trl.GRPOTrainer(
        model=job["model"],
        reward_funcs=reward,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
    )
    steps = StepTimer()
    trainer.add_callback(steps)
    phases = Phases()
    phases.wrap(trainer, "_generate_single_turn", "generate")
    phases.wrap(trainer, "_get_per_token_logps_and_entropies", "reference", only_without_grad=True)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    if len(rows) != job["steps"] or not all(math.isfinite(row["loss"]) for row in rows):
        raise SystemExit(f"TRL's losses are not finite numbers: {rows}")
    tokens = [round(row["completions/mean_length"] * batch) for row in rows]
    print(
        json.dumps(
            {
                "step_s": steps.seconds,
                "generated_tokens": tokens,
                "phase_s_per_step": {
                    name: seconds / job["steps"] for name, seconds in phases.seconds.items()
                },
                "trl": trl.__version__,
                "transformers": transformers.__version__,
                "torch": torch.__version__,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
