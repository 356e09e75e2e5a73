#!/usr/bin/env python3
"""Writes tests/core/parquet/fixtures: small Parquet files, and the same records as JSON lines.

    pip install pyarrow==26.0.1        (scripts/bootstrap.sh does)
    python3 tests/core/parquet/gen_fixtures.py

texts.jsonl and chats.jsonl hold what texts_*.parquet and chats_*.parquet hold.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).resolve().parent / "fixtures"
WORDS = "weights rows tokens scale group code error column sample layer Größe 模型 \U0001f600 \"quoted\"\n".split(" ")


def make_texts():
    return [" ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(5 + i % 9)) for i in range(300)]


def make_chats():
    chats = []
    for i in range(90):
        chat = [{"role": "system", "content": f"rule {i % 3}"}] if i % 3 == 0 else []
        for turn in range(1 + i % 2):
            chat.append({"role": "user", "content": f"question {i}.{turn}?"})
            chat.append({"role": "assistant", "content": " ".join(WORDS[(i + k) % len(WORDS)] for k in range(4))})
        if i % 10 == 0:
            chat[-1]["name"] = "helper"  # null in the other rows of a column
        chats.append(chat)
    return chats


def write_jsonl(name, records):
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (FOLDER / name).write_text("".join(lines), encoding="utf-8")


def write(name, columns, **options):
    pq.write_table(pa.table(columns), FOLDER / name, **{"row_group_size": 70, "compression": "none", **options})


def main():
    FOLDER.mkdir(exist_ok=True)
    texts, chats = make_texts(), make_chats()
    numbers = list(range(len(texts)))

    write_jsonl("texts.jsonl", [{"text": text} for text in texts])
    for codec in ("none", "snappy", "zstd", "gzip", "lz4", "brotli"):
        # Many small pages in a row group; no dictionary, so that the codec has work to do.
        write(f"texts_{codec}.parquet", {"id": numbers, "text": texts}, compression=codec, use_dictionary=False,
              data_page_size=1024)
    write("texts_dictionary.parquet", {"text": pa.array(texts).dictionary_encode()}, compression="zstd")
    write("texts_large.parquet", {"text": pa.array(texts, pa.large_string())})
    write("texts_view.parquet", {"text": pa.array(texts, pa.string_view())})
    write("texts_delta.parquet", {"text": texts}, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"},
          data_page_version="2.0", write_page_checksum=True)
    write("texts_and_chats.parquet", {"messages": [[] for _ in texts], "text": texts}, compression="zstd")

    write_jsonl("chats.jsonl", [{"messages": chat} for chat in chats])
    kinds = {
        "nested": pa.array(chats),
        "large": pa.array(chats, pa.large_list(pa.struct([(key, pa.large_string()) for key in ("role", "content", "name")]))),
        "dictionary": pa.array(chats, pa.list_(pa.struct([("role", pa.dictionary(pa.int32(), pa.string())), ("content", pa.string()),
                                                          ("name", pa.string())]))),
        "json": pa.array([json.dumps(chat) for chat in chats]),
    }
    for kind, column in kinds.items():
        write(f"chats_{kind}.parquet", {"messages": column, "source": ["made"] * len(chats)}, row_group_size=40)

    write("bad_null.parquet", {"text": ["a", None, "c"]})
    write("bad_empty_text.parquet", {"text": ["a", "b", ""]})
    write("bad_type.parquet", {"text": [1, 2, 3]})
    write("bad_binary.parquet", {"text": pa.array([b"a", b"b"])})
    write("bad_columns.parquet", {"prompt": ["a"], "answer": ["b"]})
    write("bad_utf8.parquet", {"text": pa.array([b"fine", b"\xff\xfe"]).view(pa.string())})
    write("bad_chat.parquet", {"messages": pa.array([[{"role": "user"}]])})
    write("bad_json.parquet", {"messages": ['[{"role": "user", "content": "a"}]', "[{"]})
    write("no_rows.parquet", {"text": pa.array([], pa.string())})
    # 17 MiB in one row, a few kilobytes in the file.
    write("bad_long_row.parquet", {"text": ["short", "x" * (17 << 20)]}, compression="zstd", use_dictionary=False)


if __name__ == "__main__":
    main()
