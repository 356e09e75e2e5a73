#!/usr/bin/env python3
r"""Decoding and prefill of llama.cpp on CPU, beside `nibble bench decode`.

    pip install numpy==2.4.6 gguf==0.19.0 typing-extensions diskcache jinja2
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" \
        pip install --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
    python3 benchmarks/peers/transformers_decode.py --model M --write-reference M.npz
    python3 benchmarks/peers/llama_cpp_decode.py --model M --reference M.npz --work-dir G

decode_job.py has the job and the fields of the lines. The model is written as GGUF by gguf_writer.py and
quantized by llama.cpp's own quantizer with its defaults: Q4_0, the head Q6_K (Q8_0 where rows do not divide
by 256). The loop is llama_decode() with one token of every sequence, then argmax with numpy, which is cheaper
than llama.cpp's samplers. With --reference it first compares, in the largest batch: F32 logits must be those of
Transformers, Q4_0 ones near them, and the same with repacked and plain weights, else nothing is measured
and the exit code is 1. The first line has those errors, where the weights lie (`weights_mib`: AMX and CPU_REPACK
are repacked) and how many tensors were repacked. A KV cache of its own for each sequence (--kv split) is
llama.cpp's default and its advice for prompts that share nothing. Nothing else should be running.

On CPUs with AMX, GCC 12's _tile_loadconfig() tells the compiler of 8 of the 64 bytes that it reads: llama.cpp
then faults in its first batch. Either unpack the sdist (`pip download --no-deps --no-binary :all:`), patch
ggml_tile_config_init() in vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp and install the folder,
    sed -i 's/^    _tile_loadconfig(&tc);/    __asm__ volatile("" : : "r"(\&tc) : "memory");\n&/' mmq.cpp
or build without AMX: CMAKE_ARGS="... -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8", which repacks
for AVX-512 instead; both give the same logits. Measure both; the faster one is the peer.
"""

import argparse
import ctypes
import importlib.metadata
import json
import pathlib
import re
import sys
import tempfile
import time

import decode_job
import gguf_writer
import llama_cpp
import numpy as np

F32_TOLERANCE = 1e-4  # of the logits' standard deviation; the order of sums differs
Q4_RMS_TOLERANCE = 0.9  # over the same deviation; unrelated logits have 1.4, a tiny random model 0.6
REPACKED_TOLERANCE = 0.1  # RMS of repacked against plain weights; activations are rounded to 8 bits in both


class Log:
    """Keeps llama.cpp's log, also its debug lines. A step of decoding logs nothing, so it costs nothing."""

    def __init__(self) -> None:
        self.text = ""
        self._callback = llama_cpp.llama_log_callback(self._add)  # must live as long as llama.cpp logs
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _add(self, level: int, text: bytes, user_data: object) -> None:
        self.text += text.decode("utf-8", "replace")

    def placement(self) -> dict:
        """Where the load that was logged put the weights."""
        sizes = re.findall(r"(\S+) model buffer size = *([\d.]+) MiB", self.text)
        repacked = re.findall(r"repack tensor \S+ (?:with|of type) (\w+)", self.text)
        return {"weights_mib": {name: float(size) for name, size in sizes},
                "repacked_tensors": {kind: repacked.count(kind) for kind in sorted(set(repacked))}}


class Model:
    """A GGUF file in memory. Frees it on close(); engines on it must be closed before."""

    def __init__(self, path: pathlib.Path, weights: str, log: Log):
        log.text = ""
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = weights == "repacked"
        self.pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise SystemExit(f"llama.cpp cannot load {path}:\n{log.text}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.pointer))
        self.placement = log.placement()

    def close(self) -> None:
        llama_cpp.llama_model_free(self.pointer)


class LlamaCppEngine:
    """One batch size; see decode_job.Engine. Sequences advance together, from the same length."""

    def __init__(self, model: Model, batch: int, positions: int, options: argparse.Namespace):
        self.model, self.batch, self.position, self.sample_s = model, batch, 0, 0.0
        self.logits_BV = np.empty(0)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = batch * (-(-positions // 256) * 256)  # llama.cpp pads a sequence's share to 256
        params.n_batch = max(params.n_batch, positions)
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = options.threads
        params.kv_unified = options.kv == "unified"
        if options.exact_attention:  # flash attention rounds to F16, whatever the cache
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self.context:
            raise SystemExit(f"llama.cpp gives no context of {batch} sequences of {positions} tokens")
        self.room = llama_cpp.llama_n_batch(self.context)
        self.tokens = llama_cpp.llama_batch_init(self.room, 0, 1)
        self.fields = {name: np.ctypeslib.as_array(getattr(self.tokens, name), (self.room,))
                       for name in ("token", "pos", "n_seq_id", "logits")}
        self.fields["n_seq_id"][:] = 1

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.tokens)
        llama_cpp.llama_free(self.context)

    def _decode(self, tokens_BT: np.ndarray) -> np.ndarray:
        """Appends T tokens to every sequence, in as few calls as fit; logits of the last ones."""
        length = tokens_BT.shape[1]
        rows = max(1, self.room // length)
        found = []
        for first in range(0, self.batch, rows):
            part = tokens_BT[first:first + rows]
            count = part.size
            self.tokens.n_tokens = count
            self.fields["token"][:count] = part.ravel()
            self.fields["pos"][:count] = self.position + np.arange(count) % length
            self.fields["logits"][:count] = np.arange(count) % length == length - 1
            for i in range(count):
                self.tokens.seq_id[i][0] = first + i // length
            status = llama_cpp.llama_decode(self.context, self.tokens)
            if status != 0:
                raise SystemExit(f"llama_decode of {count} tokens returned {status}")
            start = llama_cpp.llama_get_logits(self.context)
            self.logits_BV = np.ctypeslib.as_array(start, (len(part), self.model.vocabulary))
            begin = time.perf_counter()
            found.append(self.logits_BV.argmax(-1))
            self.sample_s += time.perf_counter() - begin
        self.position += length
        return np.concatenate(found).astype(np.int32)

    def prefill(self, tokens_BT: np.ndarray) -> np.ndarray:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0
        return self._decode(tokens_BT)

    def step(self, tokens_B: np.ndarray) -> np.ndarray:
        return self._decode(tokens_B[:, None])


def quantize(source: pathlib.Path, target: pathlib.Path, threads: int, log: Log) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    partial = target.with_name(target.name + ".partial")
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params))
    if status != 0:
        raise SystemExit(f"llama_model_quantize of {source} returned {status}:\n{log.text}")
    partial.replace(target)


def gguf_file(arguments: argparse.Namespace, kind: str, log: Log) -> pathlib.Path:
    """The model as GGUF of that kind in the work folder; made when missing or older than the model."""
    path = arguments.work_dir / f"{arguments.model.resolve().name}-{kind}.gguf"
    newest = max(file.stat().st_mtime for file in arguments.model.iterdir())
    if path.exists() and path.stat().st_mtime >= newest:
        return path
    if kind == "Q4_0":
        quantize(gguf_file(arguments, "BF16", log), path, arguments.threads, log)
    else:
        gguf_writer.write_gguf(arguments.model, path, kind)
    return path


def replay(path: pathlib.Path, arguments: argparse.Namespace, log: Log) -> np.ndarray:
    """Logits [N, V] of the reference's tokens, replayed as the last sequence of the largest batch."""
    reference = np.load(arguments.reference)
    model = Model(path, arguments.weights, log)
    batch, length = max(arguments.batches), len(reference["prompt"])
    prompts_BT = decode_job.random_prompts(model.vocabulary, batch + 1, length)[1:]
    prompts_BT[-1] = reference["prompt"]
    engine = LlamaCppEngine(model, batch, length + len(reference["tokens"]), arguments)
    tokens_B, logits = engine.prefill(prompts_BT), [engine.logits_BV[-1].copy()]
    for token in reference["tokens"][:-1]:
        tokens_B[-1] = token
        tokens_B = engine.step(tokens_B)
        logits.append(engine.logits_BV[-1].copy())
    engine.close()
    model.close()
    return np.stack(logits)


def check(arguments: argparse.Namespace, log: Log) -> dict:
    """Errors over the deviation of the reference's logits; too large ones end the program."""
    reference = np.load(arguments.reference)
    variants = {"F32": {"exact_attention": True, "weights": "plain"}, "Q4_0": {"weights": "repacked"},
                "Q4_0_plain": {"weights": "plain"}}
    logits, found = {"reference": reference["logits"]}, {}
    for name, options in variants.items():
        path = gguf_file(arguments, name.removesuffix("_plain"), log)
        logits[name] = replay(path, argparse.Namespace(**{**vars(arguments), **options}), log)
    for name, oracle in (("F32", "reference"), ("Q4_0", "reference"), ("Q4_0", "Q4_0_plain")):
        errors = np.abs(logits[name] - logits[oracle]) / reference["logits"].std()
        same = logits[name].argmax(-1) == logits[oracle].argmax(-1)
        found[f"{name}_off_{oracle}"] = {
            "max": round(float(errors.max()), 7), "rms": round(float(np.sqrt(np.mean(errors**2))), 7),
            "same_tokens": f"{same.sum()}/{same.size}"}  # fmt: skip
    if not found["F32_off_reference"]["max"] <= F32_TOLERANCE:
        raise SystemExit(f"llama.cpp's F32 logits are not Transformers': {found}")
    if not found["Q4_0_off_reference"]["rms"] <= Q4_RMS_TOLERANCE:
        raise SystemExit(f"llama.cpp's Q4_0 logits are far from Transformers': {found}")
    if not found["Q4_0_off_Q4_0_plain"]["rms"] <= REPACKED_TOLERANCE:
        raise SystemExit(f"repacked weights give other logits than plain ones: {found}")
    return found


def run(arguments: argparse.Namespace, log: Log) -> None:
    checked = check(arguments, log) if arguments.reference else None
    path = gguf_file(arguments, arguments.quant, log)
    model = Model(path, arguments.weights, log)
    features = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({
        "bench": "decode_setup", "engine": "llama.cpp", "model": arguments.model.resolve().name,
        "features": [name for name, value in re.findall(r"(\w+) = (\d+)", features) if value != "0"],
        "tensors": gguf_writer.tensor_types(path), **model.placement, "checked": checked,
    }), flush=True)  # fmt: skip
    labels = {
        "engine": "llama.cpp", "quant": arguments.quant, "kv": arguments.kv, "weights": arguments.weights,
        "weights_in": sorted(model.placement["weights_mib"]), "checked": checked is not None,
        "versions": {"llama-cpp-python": llama_cpp.__version__, "gguf": importlib.metadata.version("gguf")},
    }  # fmt: skip
    decode_job.print_lines(arguments, model.vocabulary, labels, lambda batch, positions: LlamaCppEngine(
        model, batch, positions, arguments))
    model.close()


def main() -> int:
    parser = decode_job.arguments_parser(__doc__.splitlines()[0], new_tokens=128, rounds=3)
    parser.add_argument("--reference", type=pathlib.Path, metavar="FILE.npz",
                        help="of transformers_decode.py --write-reference")
    parser.add_argument("--work-dir", type=pathlib.Path, metavar="DIR", help="keeps the GGUF files")
    parser.add_argument("--quant", choices=("Q4_0", "BF16", "F32"), default="Q4_0")
    parser.add_argument("--kv", choices=("split", "unified"), default="split")
    parser.add_argument("--weights", choices=("repacked", "plain"), default="repacked",
                        help="repacked: as llama.cpp does by default; plain: as in the file")
    arguments = parser.parse_args()
    arguments.exact_attention = False
    log = Log()
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        arguments.work_dir = arguments.work_dir or pathlib.Path(folder)
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
        run(arguments, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
