"""Reads .json and .jsonl files: every object is a row, and every value stays as it is written."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from no_trainer.messages import stop


def read_records(file: str) -> tuple[pa.Table, Sequence[int], list[str]]:
    """The rows of JSON lines, or of one JSON value (see `unfold`), the line on which each begins,
    and notes for the user. Missing values are null.
    """
    text = Path(file).read_bytes().decode("utf-8-sig").rstrip()
    place, rows, lines, line, before = 0, [], [], 1, 0
    decoder, space, notes = json.JSONDecoder(), re.compile(r"\s*"), []
    while place < len(text):
        begin = space.match(text, place).end()
        line, before = line + text.count("\n", before, begin), begin
        row, place = decoder.raw_decode(text, begin)
        rows.append(row)
        lines.append(line)
    if len(rows) == 1:
        rows, lines, notes = unfold(file, rows[0])
    if wrong := [number for number, row in enumerate(rows) if not isinstance(row, dict)]:
        stop(f'{file}, row {wrong[0] + 1} is not an object such as {{"text": "...", "label": "x"}}')
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = to_arrow([row.get(name) for row in rows])
        except UnicodeEncodeError:
            half = re.compile("[\ud800-\udfff]")
            texts = (json.dumps(row.get(name), ensure_ascii=False) for row in rows)
            line = next(n for n, text in zip(lines, texts, strict=True) if half.search(text))
            stop(f"{file}, line {line}: {name} holds half of a character (such as \\ud800)")
    return pa.table(columns), lines, notes


def unfold(file: str, whole: Any) -> tuple[list[Any], Sequence[int], list[str]]:
    """The rows of one JSON value: a list of objects, a list under `data`, or columns by name."""
    notes: list[str] = []
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    elif isinstance(whole, dict) and whole:
        columns = list(whole.values())
        if all(isinstance(column, dict) for column in columns):  # pandas writes {row: value}
            if any(column.keys() != columns[0].keys() for column in columns):
                stop(f"{file}: its values look like columns, but not all have the same rows")
            columns = [[column[row] for row in columns[0]] for column in columns]
        lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
        if len(lengths) == 1 and min(lengths) > 1:
            whole = [dict(zip(whole, row, strict=True)) for row in zip(*columns, strict=True)]
            notes = [f"its values are read as columns of {len(whole)} rows"]
        elif min(lengths) >= 0 and len(lengths) > 1:
            found = ", ".join(map(str, lengths))
            stop(f"{file}: its values look like columns, but have different lengths ({found})")
    rows = whole if isinstance(whole, list) else [whole]
    return rows, range(1, len(rows) + 1), notes


def to_arrow(values: list) -> pa.Array:
    """Values of one type as that type; mixtures with lists or objects as JSON bytes, others as text."""
    kinds = {type(value) for value in values} - {type(None)}
    numbers = kinds == {bool} or kinds <= {int, float}
    if kinds == {str} or (kinds and (numbers or kinds & {list, dict})):
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # too large, or mixed
            if kinds & {list, dict}:
                return pa.array([None if v is None else json.dumps(v).encode() for v in values])
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pa.array(texts, pa.string())
