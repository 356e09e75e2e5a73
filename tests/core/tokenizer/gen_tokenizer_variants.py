"""Writes tests/oracles/tokenizer_variants/cases.jsonl: what `tokenizers` makes of variants of smollm2_style.

    pip install tokenizers==0.23.3
    python3 tests/core/tokenizer/gen_tokenizer_variants.py

Each variant replaces top-level keys of tests/oracles/tokenizer/smollm2_style/tokenizer.json.
"""
import json
import pathlib

from tokenizers import Tokenizer

ORACLES = pathlib.Path(__file__).resolve().parents[2] / "oracles"
BASE = json.loads((ORACLES / "tokenizer/smollm2_style/tokenizer.json").read_text())
NEXT_ID = 1 + max(BASE["model"]["vocab"].values())


def added(*tokens):
    out = list(BASE["added_tokens"])
    for offset, (content, flags) in enumerate(tokens):
        out.append({"id": NEXT_ID + offset, "content": content, "single_word": "w" in flags, "lstrip": "l" in flags,
                    "rstrip": "r" in flags, "normalized": "n" in flags, "special": "s" in flags})
    return out


def byte_level(prefix, regex):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def digits(individual):
    return {"type": "Digits", "individual_digits": individual}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def template(single, names):
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in names.items()}}


A = {"Sequence": {"id": "A", "type_id": 0}}
IM_START = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
IM_END = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
NAMES = {"<|im_start|>": 1, "<|im_end|>": 2}

VARIANTS = [
    ({"added_tokens": added(("[L]", "l"), ("[R]", "rs"), ("[LR]", "lr"), ("[LRX]", ""), ("w\u00e9", "w"))},
     ["a [L] b", "a  [L][L]b", "x \u3000[R] \n y", "[R] [L] z", " [LR]  [LR] q", "[LRX[LR", "[LRX]a", "aw\u00e9 w\u00e9 w\u00e9! w\u00e9\u0301",
      "w\u00e9", "_w\u00e9", "w\u00e9w\u00e9", "\u00e9w\u00e9", "1w\u00e9 \u4f60w\u00e9", "[R]", " [L]", "[L] ", "w\u00e9\u200d w\u00e9\u24b6 w\u00e9-"]),
    ({"normalizer": {"type": "NFC"}, "added_tokens": added(("caf\u00e9", "n"), ("e\u0301t", "n"), ("n\u0303", ""), ("qzj", "n"), ("qzjk", ""))},
     ["caf\u00e9", "cafe\u0301!", "\u00e9t e\u0301t", "n\u0303 \u00f1", "qzjk qzj qzjkqzj", "xe\u0301<|im_end|>\u0301", "cafe\u0301t", "\u212b\u1112\u1161\u11ab",
      "q\u0307\u0323 q\u0323\u0307"]),
    ({"added_tokens": added(("<|im", "n"), ("im_end", "nw"), ("\u0120qzx", "n"), ("a b", ""), (" x", ""))},
     ["<|im_end|> <|im_x", "im_end im_ends", "\u0120qzx", "a b", "a  b", "a x b", "<|im <|im_en", "xim_end"]),
    ({"pre_tokenizer": byte_level(True, True)}, ["", "a", " a", "a b", "<|im_end|>a", "<|im_end|> a<|im_end|>", "\n", "a1 2"]),
    ({"pre_tokenizer": byte_level(False, False)}, ["hello world it's", "a b<|im_end|>c d", "  \n 12"]),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits(False), byte_level(True, True)]}},
     ["ab12cd 3", "12", "1a2b 34 5\u0664\u00bd", "x\u2167y", " 1"]),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits(True), byte_level(True, True)]}}, ["ab12cd 3", "12 34"]),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\s+|,"), split("[aeiou]+"), byte_level(False, False)]}},
     ["hello, world  queue", ",,a b\u00a0c\u0085d\u180ee", "\u3000\u2003"]),
    ({"post_processor": template([IM_START, A, IM_END, IM_END], NAMES)}, ["", "a b"]),
    ({"post_processor": {"type": "Sequence", "processors": [byte_level(True, True), template([A, IM_END], NAMES), template([IM_START, A], NAMES)]}},
     ["", "a b"]),
    ({"post_processor": byte_level(True, False)}, ["a b"]),
]


def main():
    lines = []
    for patch, texts in VARIANTS:
        tokenizer = Tokenizer.from_str(json.dumps({**BASE, **patch}))
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            lines.append({"patch": patch, "text": text, "ids": ids, "ids_with_special": tokenizer.encode(text).ids,
                          "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (ORACLES / "tokenizer_variants/cases.jsonl").write_text(text)
    print(f"{len(lines)} cases")


if __name__ == "__main__":
    main()
