#!/usr/bin/env python3
"""`nibble convert` beside llm-compressor, interleaved in one run on the same machine, model and data.

    python3 tools/make_random_model.py --output M --hidden 768 --layers 18 --heads 12 --kv-heads 4 --head-dim 64 \\
        --intermediate 2304 --initializer-range 0.02 --tokenizer models/SmolLM2-135M-Instruct --weights
    python3 benchmarks/peers/llmcompressor_convert.py --model M --samples 64 --length 256

A dense model, W4A16, every Linear but lm_head. Both get the same windows of tokens: one text (by default this
repository's documents), cut in order. What they wrote is compared from the files alone, in the same way for
both, on text that neither saw: relative error of the weights, of each layer's output (mean over layers) given
the original model's inputs, and KL(original || quantized) a token. Nibble's RTN must also be bit for bit what
its contract says, and GPTQ be closer than RTN, else the exit code is 1. Times are of whole processes,
llm-compressor's also without its imports; RTN stands beside `cp` of the model's files, both into a fresh folder
and synced, the source in the page cache. Prints one JSON line. Needs a Python with
tests/oracles_live/requirements.txt, accelerate==1.15.0 datasets==5.2.0 requests pillow and, without its
dependencies, llmcompressor==0.14.0.1. Nothing else should be running.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DAMPENING, BLOCK_COLUMNS, BITS = 0.01, 128, 4
HELD_OUT_WINDOWS = 8
TOOLS = ("nibble", "llmcompressor")


# ---- llm-compressor, in a process of its own

def convert_with_llmcompressor(arguments: argparse.Namespace) -> None:
    """Prints {"seconds": of loading, quantizing and saving} as the last line."""
    import datasets
    import torch
    import transformers
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    start = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    weights = QuantizationArgs(num_bits=BITS, type="int", symmetric=True, strategy="group",
                               group_size=arguments.group)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    chosen = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    if arguments.llmcompressor == "rtn":
        oneshot(model=model, recipe=QuantizationModifier(**chosen))
    else:
        windows = json.loads(arguments.windows.read_text())
        rows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows]
        oneshot(model=model, dataset=datasets.Dataset.from_list(rows), num_calibration_samples=len(rows),
                max_seq_length=arguments.length,
                recipe=GPTQModifier(**chosen, dampening_frac=DAMPENING, block_size=BLOCK_COLUMNS))
    model.save_pretrained(arguments.output, save_compressed=True)
    print(json.dumps({"seconds": time.perf_counter() - start}))


# ---- what both get

def make_data(arguments: argparse.Namespace, folder: pathlib.Path) -> list[list[int]]:
    """Writes data/text.jsonl (one record) and windows.json; returns the held-out windows."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    paths = arguments.text or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    ids = tokenizer("\n".join(path.read_text(encoding="utf-8") for path in paths))["input_ids"]
    used = arguments.samples * arguments.length
    held = HELD_OUT_WINDOWS * arguments.length
    if len(ids) < used + held + 1:
        sys.exit(f"llmcompressor_convert: the text has {len(ids)} tokens; {used + held + 1} are needed: "
                 "lower --samples or --length, or give more --text")
    # A few tokens more: the text is tokenized again, and its end may have cut a word.
    text = tokenizer.decode(ids[:used + 64])
    again = tokenizer(text)["input_ids"][:used]
    (folder / "data").mkdir()
    (folder / "data/text.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    cut = [again[i:i + arguments.length] for i in range(0, used, arguments.length)]
    (folder / "windows.json").write_text(json.dumps(cut))
    last = ids[-held:]
    return [last[i:i + arguments.length] for i in range(0, held, arguments.length)]


# ---- running and timing

# In a small process between, as a child's peak counts that of the process it was forked from.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[2:])
seconds = time.perf_counter() - start
peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "seconds": seconds, "peak_mb": peak_kb / 1000}, file)
"""


def run_measured(command: list[str], threads: int) -> dict:
    """Seconds and peak memory of one process, and what it printed."""
    with tempfile.NamedTemporaryFile("r") as file:
        run = subprocess.run([sys.executable, "-I", "-S", "-c", MEASURE, file.name, *command], check=True,
                             capture_output=True, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        measured = json.load(file)
    code = measured.pop("code")
    if code != 0:
        sys.exit(f"llmcompressor_convert: {' '.join(command[:3])} ..: exit code {code}\n{run.stderr[-3000:]}")
    return {**measured, "out": run.stdout}


def convert(tool: str, method: str, arguments: argparse.Namespace, folder: pathlib.Path) -> dict:
    output = folder / f"{tool}-{method}"
    shutil.rmtree(output, ignore_errors=True)
    if tool == "nibble":
        command = [arguments.nibble, "convert", "--method", method, "--grid", arguments.grid, "--input-dir",
                   arguments.model, "--output-dir", output, "--quant-group-size", arguments.group, "--threads",
                   arguments.threads, "--json"]
        if method == "gptq":
            command += ["--scale-search", arguments.scale_search, "--data-dir", folder / "data",
                        "--held-out-samples", "0", "--num-calibration-samples", arguments.samples,
                        "--max-sequence-length", arguments.length, "--dampening-frac", DAMPENING]
    else:
        command = [sys.executable, "-B", __file__, "--llmcompressor", method, "--model", arguments.model,
                   "--output", output, "--group", arguments.group, "--length", arguments.length, "--windows",
                   folder / "windows.json"]
    measured = run_measured([str(part) for part in command], arguments.threads)
    if tool == "llmcompressor":
        measured["seconds_without_imports"] = json.loads(measured["out"].splitlines()[-1])["seconds"]
    return measured


def copy_files(arguments: argparse.Namespace, folder: pathlib.Path) -> float:
    """Seconds of a disk-to-disk copy of the model."""
    target = folder / "copy"
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", arguments.model, target], check=True)
    subprocess.run(["sync", *target.iterdir(), target], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


# ---- what they wrote

def read_tensors(folder: pathlib.Path) -> dict:
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def dequantized(folder: pathlib.Path, group: int) -> dict:
    """Module name -> BF16 weight bf16(q * s), of every packed matrix. Codes: lowest bits first, offset by 8."""
    import torch

    tensors, weights = read_tensors(folder), {}
    for name, words in tensors.items():
        if not name.endswith(".weight_packed"):
            continue
        module = name.removesuffix(".weight_packed")
        codes = torch.stack([(words >> (BITS * k)) & 15 for k in range(32 // BITS)], -1) - 8
        rows, cols = tensors[module + ".weight_shape"].tolist()
        scale = tensors[module + ".weight_scale"].float().repeat_interleave(group, 1)
        weights[module] = (codes.reshape(rows, -1)[:, :cols].float() * scale).to(torch.bfloat16)
    return weights


def sym7(weight, group: int):
    """What Nibble's contract says of round-to-nearest (BF16 in and out)."""
    import torch

    groups = weight.float().reshape(weight.shape[0], -1, group)
    scale = (groups.abs().amax(-1, keepdim=True) / 7).to(torch.bfloat16).float()
    scale[scale < 2.0**-126] = 1
    return ((groups / scale).round().clamp(-7, 7) * scale).to(torch.bfloat16).reshape(weight.shape)


class Comparison:
    """Errors of several quantized versions of one model, on held-out windows."""

    def __init__(self, model: pathlib.Path, versions: dict, windows: list[list[int]]):
        import torch
        import transformers

        self.torch = torch
        self.versions, self.windows = versions, windows
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        names = set(next(iter(versions.values())))
        self.modules = {name: module for name, module in self.model.named_modules() if name in names}
        self.original = {name: module.weight.data for name, module in self.modules.items()}

    def weight_error(self, version: str) -> float:
        """RMS of the difference by RMS of the weights, over all of them."""
        wrong = sum((self.original[name] - weight.float()).square().sum().item()
                    for name, weight in self.versions[version].items())
        return (wrong / sum(weight.square().sum().item() for weight in self.original.values())) ** 0.5

    def output_errors(self) -> dict:
        """version -> mean over layers of ||X (W - W')^T||^2 / ||X W^T||^2, X of the original model."""
        wrong = {version: dict.fromkeys(self.modules, 0.0) for version in self.versions}
        size = dict.fromkeys(self.modules, 0.0)

        def hook(name):
            def add(module, inputs):
                x = inputs[0][0]
                size[name] += (x @ module.weight.T).square().sum().item()
                for version, weights in self.versions.items():
                    difference = module.weight - weights[name].float()
                    wrong[version][name] += (x @ difference.T).square().sum().item()
            return add

        hooks = [module.register_forward_pre_hook(hook(name)) for name, module in self.modules.items()]
        self.logprobs()
        for handle in hooks:
            handle.remove()
        return {version: statistics.fmean(found[name] / size[name] for name in self.modules)
                for version, found in wrong.items()}

    def logprobs(self):
        """[tokens, vocabulary], of all windows."""
        parts = [self.model(input_ids=self.torch.tensor([window]), use_cache=False).logits[0]
                 for window in self.windows]
        return self.torch.cat(parts).log_softmax(-1)

    def kl(self, version: str, want) -> float:
        for name, module in self.modules.items():
            module.weight.data = self.versions[version][name].float()
        got = self.logprobs()
        for name, module in self.modules.items():
            module.weight.data = self.original[name]
        return (want.exp() * (want - got)).sum(-1).mean().item()

    def figures(self) -> dict:
        with self.torch.no_grad():
            outputs, want = self.output_errors(), self.logprobs()
            return {version: {"weight_error": self.weight_error(version), "output_error": outputs[version],
                              "kl": self.kl(version, want)} for version in self.versions}


def compare(arguments: argparse.Namespace, folder: pathlib.Path,
            windows: list[list[int]]) -> tuple[dict, list[str]]:
    """Figures of every version, and what is wrong."""
    versions = {f"{tool}-{method}": dequantized(folder / f"{tool}-{method}", arguments.group)
                for method in arguments.methods for tool in TOOLS}
    shapes = {version: {name: tuple(weight.shape) for name, weight in weights.items()}
              for version, weights in versions.items()}
    first = next(iter(shapes))
    problems = [f"{version} and {first} quantized different matrices" for version in shapes
                if shapes[version] != shapes[first]]
    if problems or not shapes[first]:
        return {}, problems or ["nothing was quantized"]
    if "rtn" in arguments.methods and arguments.grid == "sym7":
        original = read_tensors(arguments.model)
        problems += [f"nibble-rtn: {name} is not what the contract says"
                     for name, weight in versions["nibble-rtn"].items()
                     if not weight.equal(sym7(original[name + ".weight"], arguments.group))]
    figures = Comparison(arguments.model, versions, windows).figures()
    if {"rtn", "gptq"} <= set(arguments.methods):
        problems += [f"{tool}: GPTQ's output error is not below RTN's" for tool in TOOLS
                     if not figures[f"{tool}-gptq"]["output_error"] < figures[f"{tool}-rtn"]["output_error"]]
    return figures, problems


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=pathlib.Path, help="dense BF16 directory with a tokenizer")
    parser.add_argument("--nibble", default=ROOT / "build/cpu/bin/nibble", type=pathlib.Path)
    parser.add_argument("--methods", default="rtn,gptq", type=lambda text: text.split(","))
    parser.add_argument("--grid", default="sym7", help="Nibble's; llm-compressor's is sym7p5")
    parser.add_argument("--scale-search", default="none", help="Nibble's with gptq: none or mse")
    parser.add_argument("--group", default=32, type=int)
    parser.add_argument("--samples", default=64, type=int)
    parser.add_argument("--length", default=256, type=int, help="tokens of a sample")
    parser.add_argument("--rounds", default=3, type=int, help="of RTN and of the copy")
    parser.add_argument("--gptq-rounds", default=1, type=int)
    parser.add_argument("--threads", default=os.cpu_count(), type=int)
    parser.add_argument("--text", action="append", type=pathlib.Path, help="may be repeated")
    parser.add_argument("--work-dir", type=pathlib.Path, help="where the folder with everything written is made")
    for name in ("--llmcompressor", "--output", "--windows"):  # this script as llm-compressor's process
        parser.add_argument(name, help=argparse.SUPPRESS, type=str if name == "--llmcompressor" else pathlib.Path)
    return parser.parse_args()


def measure(arguments: argparse.Namespace, folder: pathlib.Path) -> tuple[dict, list[float]]:
    """tool-method -> runs, and seconds of the copies. Tools take turns."""
    runs, copies = {}, []
    for k in range(max(arguments.rounds, arguments.gptq_rounds)):
        for method in arguments.methods:
            if k >= (arguments.gptq_rounds if method == "gptq" else arguments.rounds):
                continue
            for tool in TOOLS:
                runs.setdefault(f"{tool}-{method}", []).append(convert(tool, method, arguments, folder))
        if k < arguments.rounds:
            copies.append(copy_files(arguments, folder))
    return runs, copies


def report(arguments: argparse.Namespace, runs: dict, copies: list[float], figures: dict) -> dict:
    megabytes = sum(path.stat().st_size for path in arguments.model.iterdir()) / 1e6
    result = {"bench": "convert", "machine": platform.machine(), "cpus": os.cpu_count(),
              "threads": arguments.threads, "model_mb": megabytes, "group": arguments.group,
              "grid": arguments.grid, "scale_search": arguments.scale_search,
              "samples": arguments.samples, "length": arguments.length,
              "held_out_tokens": HELD_OUT_WINDOWS * arguments.length}
    for version, found in runs.items():
        medians = {key: statistics.median(run[key] for run in found) for key in found[0] if key != "out"}
        result[version] = {**medians, "n": len(found), **figures.get(version, {})}
    for method in arguments.methods:
        ours, theirs = (result[f"{tool}-{method}"] for tool in TOOLS)
        result[f"{method}_speedup"] = theirs["seconds"] / ours["seconds"]
        result[f"{method}_speedup_without_imports"] = theirs["seconds_without_imports"] / ours["seconds"]
        if figures:
            result[f"{method}_output_error_ratio"] = ours["output_error"] / theirs["output_error"]
    if "rtn" in arguments.methods:
        seconds = result["nibble-rtn"]["seconds"]
        result |= {"copy_seconds": statistics.median(copies), "rtn_mb_per_s": megabytes / seconds,
                   "copy_mb_per_s": megabytes / statistics.median(copies),
                   "rtn_of_copy": statistics.median(copies) / seconds}
    return result


def main() -> int:
    arguments = parse_arguments()
    if arguments.llmcompressor:
        convert_with_llmcompressor(arguments)
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as name:
        folder = pathlib.Path(name)
        windows = make_data(arguments, folder)
        runs, copies = measure(arguments, folder)
        figures, problems = compare(arguments, folder, windows)
    print(json.dumps(report(arguments, runs, copies, figures) | {"correct": not problems}))
    for problem in problems:
        print(f"llmcompressor_convert: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
