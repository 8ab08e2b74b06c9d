"""Own files as data sets of the hub's kind: every row of a file is a row, every cell is read as it is written."""

import contextlib
import csv
import glob
import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset

from no_trainer.folder import checksum
from no_trainer.messages import stop


def read(source: str, *args: str, **options: Any) -> DatasetDict | Dataset:
    """`load_dataset(*args, **options)`, which names `source` where it cannot be read."""
    try:
        return load_dataset(*args, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        stop(f"{source} could not be read: {error.__cause__ or error}")


def read_files(files: list[str], columns: list[str]) -> Dataset:
    """The rows of all files, one after the other; with several files, only `columns` of them, if those are known."""
    parts = [read_file(file) for file in files]
    if columns and len(files) > 1:
        parts = [part.select_columns([name for name in part.column_names if name in columns]) for part in parts]
    for file, part in zip(files, parts, strict=True):
        if part.features != parts[0].features:  # such as whole numbers in one and fractions in the other
            hint = "" if columns else "; --text_column_names says which are needed"
            stop(f"{file} has the columns {part.features}, but {files[0]} has {parts[0].features}{hint}")
    return concatenate_datasets(parts)


def read_file(file: str) -> Dataset:
    """One file; it is parsed once, with every cell of a .csv or .tsv as text, and kept in datasets' cache."""
    path = Path(file)
    if path.suffix.lower() == ".parquet":
        return read(file, "parquet", data_files=glob.escape(file), split="train")
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "run_glue_no_trainer"
    parse = parse_json if path.suffix.lower() in (".json", ".jsonl") else parse_csv
    # this module is in the name, or nobody would see what becomes of an edit of it
    cached = cache / f"{checksum(path)}-{checksum(Path(__file__))}{path.suffix.lower()}.arrow"
    if not cached.exists():
        try:
            table = parse(file)
        except UnicodeError as error:
            stop(f"{file} is not UTF-8: {error}; save it as UTF-8")
        except (ValueError, RecursionError) as error:  # of JSON
            stop(f"{file}: {error}")
        if not table.num_rows:
            stop(f"{file} has no rows")
        aside = cached.with_suffix(f".{os.getpid()}")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with pa.ipc.new_stream(str(aside), table.schema) as writer:
                writer.write_table(table, max_chunksize=1000)
            aside.replace(cached)
        except OSError as error:
            no_cache(error)
    return Dataset.from_file(str(cached))


def no_cache(error: OSError) -> NoReturn:
    """Stop where datasets' cache cannot be written."""
    stop(f"the cache of datasets cannot be written: {error}; HF_HOME names a folder for it")


def parse_csv(file: str) -> pa.Table:
    """The cells of a comma- or tab-separated file, as text: NA, 007 and 1e5 stay what they are."""
    separator = "\t" if file.lower().endswith(".tsv") else ","
    csv.field_size_limit(2**31 - 1)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            if header and not header[0]:
                header[0] = "Unnamed: 0"  # as pandas calls the index that it writes so
            if len(header) == 1 and (other := re.search(r"[;\t|]", header[0])):
                stop(
                    f"{file} has its columns separated by {other[0]!r}: save it with commas, or as .tsv with tabs "
                    f"(its first line is {header[0]!r})"
                )
            if twice := [name for name in header if header.count(name) > 1 or not name]:
                what = f"two columns {twice[0]!r}" if twice[0] else "a column without a name"
                stop(f"{file}: the header has {what}")
            columns: list[list[str]] = [[] for _ in header]
            for row in filter(None, reader):  # an empty line is no row
                if len(row) != len(header):
                    stop(
                        f"{file}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)} "
                        f"({', '.join(header)}); put cells that hold a separator in double quotes"
                    )
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell)
        except csv.Error as error:
            stop(f"{file}, line {reader.line_num}: {error}; a double quote inside a quoted cell is written twice")
    return pa.table(columns, header)


def parse_json(file: str) -> pa.Table:
    """The values of JSON lines, of a list of objects, or of one under `data`; null where missing."""
    text, place, rows = Path(file).read_text(encoding="utf-8-sig").rstrip(), 0, []
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")
    while place < len(text):
        row, place = decoder.raw_decode(text, space.match(text, place).end())
        rows.append(row)
    if len(rows) == 1:
        inner = rows[0].get("data") if isinstance(rows[0], dict) else rows[0]
        rows = inner if isinstance(inner, list) else rows
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        stop(f'{file}, row {wrong[0]} is not an object such as {{"text": "...", "label": "..."}}')
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: to_arrow([row.get(name) for row in rows]) for name in names})


def to_arrow(values: list) -> pa.Array:
    """Booleans, whole numbers and numbers where all values are such; everything else as text."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds in ({bool}, {str}) or (kinds and kinds <= {int, float}):
        with contextlib.suppress(pa.ArrowInvalid, OverflowError):  # a whole number that is too large
            return pa.array(values)
    return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())
