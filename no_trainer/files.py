"""Own files, and data sets by name, as splits: every row of a file is a row, every cell is read as it is written."""

import glob
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pyarrow as pa
from datasets import Dataset, Value, concatenate_datasets, load_dataset, load_dataset_builder

from no_trainer import cells
from no_trainer.folder import checksum, to_disk
from no_trainer.launch import say
from no_trainer.messages import stop, under_way

Parsed = tuple[pa.Table, Sequence[int], list[str]]  # the columns, the line of each row, what to say of the reading


def read_dataset(source: str, config: str | None) -> dict[str, Dataset]:
    """The splits of a data set of the hub or of a folder; the cells of .csv and .json files are as in own files."""
    builder = attempt(source, lambda: load_dataset_builder(source, config))
    kind = type(builder).__module__.rpartition(".")[2]
    if kind == "cache":  # the hub does not answer
        if "/" not in source:
            stop(
                f"--dataset_name {source}: there is no such folder, and the hub does not answer; what datasets' cache "
                "has under this name may be another folder's"
            )
        say(f"warning: the hub does not answer; {source} is read from datasets' cache")
    files = getattr(builder.config, "data_files", None) or {}
    local = all(os.path.exists(file) for named in files.values() for file in named)
    if kind in ("csv", "json") and local and not builder.info.features:
        return {str(split): read_files([str(file) for file in named], []) for split, named in files.items()}
    options = {"keep_default_na": False} if kind == "csv" else {}
    return dict(attempt(source, lambda: load_dataset(source, config, **options)))


def attempt(source: str, load: Callable[[], Any]) -> Any:
    """What `load` loads; stops, and names the `source`, where it cannot."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, TypeError, datasets.exceptions.DatasetsError) as error:
        stop(f"{source} could not be read: {error.__cause__ or error}")


def read_files(files: list[str], columns: list[str]) -> Dataset:
    """The rows of all files, one after the other; with several files, only `columns` of them, if those are known."""
    parts = [read_file(file) for file in files]
    if columns and len(files) > 1:
        parts = [part.select_columns([name for name in part.column_names if name in columns]) for part in parts]
    for name in parts[0].column_names:  # whole numbers in one file and fractions in another are numbers in both
        kinds = {part.features[name].dtype for part in parts if isinstance(part.features.get(name), Value)}
        if kinds == {"int64", "float64"}:
            parts = [part.cast_column(name, Value("float64")) for part in parts]
    for file, part in zip(files, parts, strict=True):
        if part.features != parts[0].features:
            hint = "" if columns else "; --text_column_names says which are needed"
            stop(f"{file} has the columns {part.features}, but {files[0]} has {parts[0].features}{hint}")
    return concatenate_datasets(parts)


def read_file(file: str) -> Dataset:
    """One file; it is parsed once, with every cell of a .csv or .tsv as text, and kept in datasets' cache."""
    if file.lower().endswith(".parquet"):
        return attempt(file, lambda: load_dataset("parquet", data_files=glob.escape(file), split="train"))
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "run_glue_no_trainer"
    # what is read and what reads it is in the name, and so is the sum of what was read, which tells a damaged file
    content = "-".join(map(checksum, (Path(file), Path(__file__), Path(cells.__file__))))
    name = f"{content}-{os.path.splitext(file)[1].lower()[1:]}"
    found = (kept for kept in cache.glob(f"{name}-*.arrow") if kept.stem.endswith(checksum(kept)))
    cached = next(found, None) or keep(parse(file)[0], cache, name)
    with pa.ipc.open_stream(str(cached)) as stream:
        notes = json.loads((stream.schema.metadata or {}).get(b"notes", b"[]"))
    for note in notes:
        say(f"{file}: {note}")
    return Dataset.from_file(str(cached))


def keep(table: pa.Table, cache: Path, name: str) -> Path:
    """Write a table into the cache, whole or not at all; returns its file."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=cache)
        os.close(descriptor)
        with pa.ipc.new_stream(aside, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        to_disk(Path(aside))
        return Path(aside).replace(cache / f"{name}-{checksum(Path(aside))}.arrow")
    except OSError as error:
        no_cache(error)


def no_cache(error: OSError) -> NoReturn:
    """Stop where datasets' cache cannot be written."""
    stop(f"the cache of datasets cannot be written: {error}; HF_HOME names a folder for it")


def parse(file: str) -> Parsed:
    """The table in a .csv, .tsv, .json or .jsonl file."""
    try:
        with under_way(f"reading {file}"):
            table, lines, notes = (parse_json if ".json" in file.lower()[-6:] else cells.read_cells)(file)
    except UnicodeDecodeError as error:
        stop(f"{file} is not UTF-8: {error}; save it as UTF-8")
    except (ValueError, RecursionError) as error:  # of JSON
        stop(f"{file}: {error}")
    if not table.num_rows:
        stop(f"{file} has no rows")
    return table.replace_schema_metadata({"notes": json.dumps(notes)}), lines, notes


def place_of(files: list[str], row: int) -> str:
    """Where a row of `read_files` stands, in words: the file and its line, counted with the header."""
    for file in files:
        is_table = file.lower().endswith(".parquet")
        lines = range(1, len(read_file(file)) + 1) if is_table else parse(file)[1]
        if row < len(lines):
            return f"{file}, {'row' if isinstance(lines, range) else 'line'} {lines[row]}"
        row -= len(lines)
    raise IndexError(row)


def parse_json(file: str) -> Parsed:
    """The values of JSON lines, of a list of objects or one under `data`, or of columns; null where missing."""
    text, place, rows, lines, line, before = Path(file).read_bytes().decode("utf-8-sig").rstrip(), 0, [], [], 1, 0
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
        stop(f'{file}, row {wrong[0] + 1} is not an object such as {{"text": "...", "label": "..."}}')
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = to_arrow([row.get(name) for row in rows])
        except UnicodeEncodeError:
            halves = (number for number, row in enumerate(rows) if re.search("[\ud800-\udfff]", str(row.get(name))))
            stop(f"{file}, line {lines[next(halves)]}: {name} holds half of a character (such as \\ud800)")
    return pa.table(columns), lines, notes


def unfold(file: str, whole: Any) -> tuple[list[Any], Sequence[int], list[str]]:
    """The rows of a file that is one JSON value: a list of objects, one under `data`, or columns by name."""
    notes: list[str] = []
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    elif isinstance(whole, dict) and whole:
        columns = list(whole.values())
        if all(isinstance(column, dict) for column in columns):  # as pandas writes them, by row number
            columns = [list(column.values()) for column in columns]
        lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
        if len(lengths) == 1 and min(lengths) > 1:
            whole = [dict(zip(whole, row, strict=True)) for row in zip(*columns, strict=True)]
            notes = [f"its values are read as columns of {len(whole)} rows"]
        elif min(lengths) >= 0 and len(lengths) > 1:
            stop(f"{file}: its values look like columns, but have different lengths ({', '.join(map(str, lengths))})")
    rows = whole if isinstance(whole, list) else [whole]
    return rows, range(1, len(rows) + 1), notes


def to_arrow(values: list) -> pa.Array:
    """Booleans, whole numbers, numbers and lists where all values are such; objects as they are; the rest as text."""
    kinds = {type(value) for value in values} - {type(None)}
    numbers = kinds == {bool} or kinds <= {int, float}
    if kinds == {str} or (kinds and (numbers or kinds & {list, dict})):
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # a whole number that is too large; a mixture
            if kinds & {list, dict}:
                return pa.array([None if value is None else json.dumps(value).encode() for value in values])
    return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())
