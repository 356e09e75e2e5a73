#!/usr/bin/env python3
"""Converts a BF16 Hugging Face directory to INT4: command lines of Miles and slime go on working.

    python3 tools/convert_hf_to_int4.py --input-dir Qwen3-30B-A3B --output-dir Qwen3-30B-A3B-int4 \\
        --data-dir wikitext --quant-group-size 128

Every flag goes to `nibble convert` as it is, also those that only `nibble convert` has (--method rtn,
--targets, ..), and its exit code comes back. What differs from their tool of this name:

  --quant-group-size   The number of weights that share a scale: 32, 64 or 128; by default 32. There the
                       flag only sets how many columns GPTQ treats as one block, and scales are shared
                       by 128 weights. For groups as there: 128.
  --data-dir           Any *.jsonl or *.parquet in it, with a column `text` or chat `messages`; there
                       it must hold train-00000-of-00001.parquet. --method rtn needs none.
  --trust-remote-code  Accepts a checkpoint that brings code; the code is never run.
  what is quantized    Experts where the model has them, as there. In a dense model every Linear but
                       lm_head; there nothing. --targets and --ignore choose.
  grid                 Codes -7..7, scale absmax/7: what Nibble trains (--grid sym7). There codes -8..7,
                       scale absmax/7.5 (--grid sym7p5).
  samples              Chosen by --seed; there they differ from run to run.

The binary is $NIBBLE_BIN, or else the first of build/cuda/bin/nibble and build/cpu/bin/nibble of this
checkout and `nibble` in PATH. `nibble convert --help` describes all flags. Needs Python only.
"""

import os
import pathlib
import shutil
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
BUILT = [CHECKOUT / "build" / preset / "bin" / "nibble" for preset in ("cuda", "cpu")]
EXIT_NO_BINARY = 127  # a shell's code for a command that is not found


class NoBinary(Exception):
    """Where was looked, and what to do."""


def find_binary() -> str:
    """The program to run. A NIBBLE_BIN that names no program is an error, not passed over."""
    named = os.environ.get("NIBBLE_BIN")
    if named:
        found = shutil.which(named)
        if found is None:
            raise NoBinary(f"NIBBLE_BIN is {named!r}, which is no program")
        return found
    for candidate in (*map(str, BUILT), "nibble"):
        found = shutil.which(candidate)
        if found is not None:
            return found
    raise NoBinary(f"no nibble binary: not {' or '.join(map(str, BUILT))}, and none in PATH; "
                   "build it (README.md) or set NIBBLE_BIN")


def main() -> int:
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    try:
        binary = find_binary()
    except NoBinary as error:
        print(f"convert_hf_to_int4: {error}", file=sys.stderr)
        return EXIT_NO_BINARY
    # In place of this process: signals, output and exit code are the command's own.
    os.execv(binary, [binary, "convert", *arguments])


if __name__ == "__main__":
    sys.exit(main())
