#!/usr/bin/env python3
"""Writes a model and a draft for it whose guesses are as good as one likes, to measure what a draft model gains.

    python3 tools/make_random_model.py --weights --hidden 1024 --layers 24 ... --output base
    python3 benchmarks/make_draft_pair.py --base base --layers 3 --epsilon 0.1 --model M --draft D

The draft is the first layers of the model. What the model's other layers add to the residual stream is multiplied by
--epsilon: with 0 both compute the same. --sharpen multiplies the last norm, so that few tokens are likely. The base is
a BF16 Hugging Face directory, as make_random_model.py writes it. Needs numpy.
"""

import argparse
import json
import pathlib
import shutil
import struct

import numpy


def read_safetensors(path):
    """name -> (dtype, shape, bytes)"""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[start + entry["data_offsets"][0]:start + entry["data_offsets"][1]])
            for name, entry in header.items()}


def write_safetensors(path, tensors):
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def scaled(data, factor):
    """BF16 values times a factor, rounded to nearest even."""
    values = (numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
    bits = (values * numpy.float32(factor)).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16).tobytes()


def write_model(base, tensors, output, num_layers, args):
    output.mkdir(parents=True)
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            shutil.copy(path, output)
    kept = {}
    for name, (dtype, shape, data) in tensors.items():
        layer = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else -1
        if layer >= num_layers:
            continue
        if layer >= args.layers and ("o_proj" in name or "down_proj" in name):
            data = scaled(data, args.epsilon)
        if name == "model.norm.weight":
            data = scaled(data, args.sharpen)
        kept[name] = (dtype, shape, data)
    write_safetensors(output / "model.safetensors", kept)
    config = json.loads((base / "config.json").read_text())
    config["num_hidden_layers"] = num_layers
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:num_layers]
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory to make")
    parser.add_argument("--draft", type=pathlib.Path, required=True, help="directory to make")
    parser.add_argument("--layers", type=int, default=3, help="of the draft")
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--sharpen", type=float, default=12.0)
    args = parser.parse_args()
    tensors = {}
    for path in sorted(args.base.glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    num_layers = json.loads((args.base / "config.json").read_text())["num_hidden_layers"]
    write_model(args.base, tensors, args.model, num_layers, args)
    write_model(args.base, tensors, args.draft, args.layers, args)


if __name__ == "__main__":
    main()
