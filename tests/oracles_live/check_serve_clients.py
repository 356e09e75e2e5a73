#!/usr/bin/env python3
"""`nibble serve` as clients of others see it: OpenAI's Python package and lm-eval.

Needs `openai`; the interpreter that NIBBLE_LM_EVAL_PYTHON names (its own by default) needs `lm_eval[api]` and
`transformers`, whose loglikelihoods of a small local task are compared with those of `nibble logprobs`.

  NIBBLE_BINARY=build/cpu/bin/nibble python check_serve_clients.py --model models/SmolLM2-135M-Instruct-INT4-g32
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

from nibble_cli import BINARY  # noqa: E402
from serve_client import Server  # noqa: E402

QUESTION = [{"role": "user", "content": "What is 2 + 2? Answer with just the number."}]
TASK = [("The capital of France is", [" Paris", " Rome", " a banana"]),
        ("Water freezes at zero degrees", [" Celsius", " Paris"]),
        ("Two plus two is", [" four", " seven", " green"])]
TOLERANCE = 1e-4  # lm-eval sums float32 digits in double; more would be another token or place


def check(condition, what):
    if not condition:
        raise SystemExit(f"check_serve_clients: {what}")


def check_openai(server, name):
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    check([model.id for model in client.models.list()] == [name], "models.list")
    chat = {"model": name, "messages": QUESTION, "max_tokens": 24, "seed": 3}
    whole = client.chat.completions.create(**chat, n=2, logprobs=True, top_logprobs=2)
    check(len(whole.choices) == 2, "n")
    check(len(whole.choices[0].logprobs.content[0].top_logprobs) == 2, "top_logprobs")
    count = sum(len(choice.logprobs.content) for choice in whole.choices)
    check(count == whole.usage.completion_tokens, "a log-probability for each token")
    texts = ["", ""]
    usage = None
    for chunk in client.chat.completions.create(**chat, n=2, stream=True,
                                                stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    check(texts == [choice.message.content for choice in whole.choices], "a stream is the answer")
    check(usage.completion_tokens == whole.usage.completion_tokens, "usage of a stream")

    text = {"model": name, "prompt": ["The capital of France is", "1 2 3"], "temperature": 0,
            "max_tokens": 12}
    answer = client.completions.create(**text, logprobs=1, echo=True)
    for prompt, choice in zip(text["prompt"], answer.choices):
        check(choice.text.startswith(prompt), "echo")
        check(choice.logprobs.token_logprobs[0] is None, "the first token has no log-probability")
    plain = client.completions.create(**text)
    pieces = ["", ""]
    for chunk in client.completions.create(**text, stream=True):
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    check(pieces == [choice.text for choice in plain.choices], "a completion's stream")
    stopped = client.completions.create(**{**text, "prompt": "1 2 3"}, stop=[" 6"])
    check(" 6" not in stopped.choices[0].text, "stop")
    try:
        client.chat.completions.create(**chat, response_format={"type": "json_object"})
        check(False, "response_format must be refused")
    except BadRequestError as error:
        check(error.param == "response_format", error)
    print(f"openai: {whole.choices[0].message.content!r}, {plain.choices[0].text!r}: streams, n, "
          "log-probabilities, echo, stop and refusals as promised")


def write_task(folder):
    """A task of lm-eval: the likeliest of some continuations."""
    rows = [{"query": query, "choices": choices, "gold": 0} for query, choices in TASK]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "nibble_facts.yaml").write_text(f"""task: nibble_facts
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
""")


def expected_log_likelihoods(model):
    """Of each continuation, from given tokens through `nibble logprobs`."""
    texts = [query + choice for query, choices in TASK for choice in choices]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    lines += "".join(json.dumps({"text": query}) + "\n" for query, _ in TASK)
    run = subprocess.run([BINARY, "tokenize", "--model", model], input=lines, text=True,
                         capture_output=True, check=True)
    ids = [json.loads(line)["ids"] for line in run.stdout.splitlines()]
    whole, contexts = ids[:len(texts)], iter(ids[len(texts):])
    run = subprocess.run([BINARY, "logprobs", "--path", "rollout", "--model", model], text=True,
                         input="".join(json.dumps({"input_ids": row}) + "\n" for row in whole),
                         capture_output=True, check=True)
    scored = iter(json.loads(line)["logprobs"] for line in run.stdout.splitlines())
    for _, choices in TASK:
        length = len(next(contexts))
        yield [sum(next(scored)[length - 1:]) for _ in choices]


def check_lm_eval(server, model, name):
    python = os.environ.get("NIBBLE_LM_EVAL_PYTHON", sys.executable)
    has_it = [python, "-c", "import lm_eval"]
    if not shutil.which(python) or subprocess.run(has_it, capture_output=True).returncode != 0:
        raise SystemExit(f"check_serve_clients: {python} has no lm_eval: pip install "
                         "'lm_eval[api]==0.4.13' transformers==5.17.0, or give --without-lm-eval")
    with tempfile.TemporaryDirectory(prefix="nibble_lm_eval_") as name_of_folder:
        folder = Path(name_of_folder)
        write_task(folder)
        arguments = (f"model={name},base_url=http://127.0.0.1:{server.port}/v1/completions,"
                     f"tokenizer={model},num_concurrent=2,max_retries=1,max_length=1024")
        run = subprocess.run(
            [python, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments,
             "--tasks", "nibble_facts", "--include_path", str(folder), "--log_samples",
             "--output_path", str(folder / "out")], text=True, capture_output=True, timeout=600,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                 "HF_HOME": str(folder / "hf")})
        check(run.returncode == 0, f"lm-eval failed:\n{run.stdout[-2000:]}{run.stderr[-4000:]}")
        samples = [json.loads(line) for file in (folder / "out").rglob("samples_*.jsonl")
                   for line in file.read_text().splitlines()]
        results = json.loads(next((folder / "out").rglob("results_*.json")).read_text())
    samples.sort(key=lambda sample: sample["doc_id"])
    worst = 0.0
    for sample, want in zip(samples, expected_log_likelihoods(model), strict=True):
        got = [float(answer[0]) for answer in sample["filtered_resps"]]
        worst = max(worst, *(abs(a - b) for a, b in zip(got, want, strict=True)))
    check(worst <= TOLERANCE, f"log-likelihoods differ by {worst}")
    accuracy = results["results"]["nibble_facts"]["acc,none"]
    print(f"lm-eval: acc {accuracy} of {len(samples)} questions; log-likelihoods are those of "
          f"nibble logprobs within {worst:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with weights and tokenizer")
    parser.add_argument("--without-lm-eval", action="store_true", help="the OpenAI client alone")
    args = parser.parse_args()
    model = str(Path(args.model).resolve())
    with Server(model, "--max-positions", 1024) as server:
        name = Path(model).name
        check_openai(server, name)
        if not args.without_lm_eval:
            check_lm_eval(server, model, name)
        check(server.stop() == 0, "the server's exit code")


if __name__ == "__main__":
    main()
