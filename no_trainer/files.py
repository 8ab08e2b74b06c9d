"""Reads files and named data sets; every row is kept and every cell stays as it is written."""

import dataclasses
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
import pyarrow.parquet as pq
from datasets import Dataset, Value, concatenate_datasets, load_dataset, load_dataset_builder

from no_trainer import cells
from no_trainer.folder import checksum, to_disk
from no_trainer.launch import say
from no_trainer.messages import stop, under_way

JSON = (".json", ".jsonl")  # the ends of such a file's name
Parsed = tuple[pa.Table, Sequence[int], list[str]]  # columns, line of each row, notes for the user


def read_dataset(source: str, config: str | None) -> dict[str, Dataset]:
    """The splits of a data set on the hub or in a folder; `read_files` reads its .csv and .json."""
    if any((Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json")):
        stop(f"--dataset_name {source} was written by save_to_disk; write its splits with to_parquet instead")
    builder = attempt(source, lambda: load_dataset_builder(source, config))
    kind = type(builder).__module__.rpartition(".")[2]
    if kind == source and not os.path.exists(source):
        stop(f"--dataset_name {source} is the name of a file format; give files with --train_file")
    if kind == "cache":  # the hub does not answer
        if "/" not in source:
            stop(
                f"--dataset_name {source}: there is no such folder, and the hub does not answer; "
                "the data cached under this name may come from another folder"
            )
        say(f"warning: the hub does not answer; {source} is read from datasets' cache")
    files = getattr(builder.config, "data_files", None) or {}
    local = all(os.path.exists(file) for named in files.values() for file in named)
    if kind in ("csv", "json") and local and not has_options(builder.config):
        return {str(split): read_files(list(map(str, named)), []) for split, named in files.items()}
    how = {"keep_default_na": False} if kind == "csv" else {}
    return dict(attempt(source, lambda: load_dataset(source, config, **how)))


def has_options(config: datasets.BuilderConfig) -> bool:
    """Whether a README says more of the files than their names (of .tsv files: tabs), such as `skiprows: 1`."""
    tabs = ["sep"] * (vars(config).get("sep") == "\t")
    usual = ["name", "version", "data_dir", "data_files", "description", *tabs]
    return any(getattr(config, f.name) != f.default for f in dataclasses.fields(config) if f.name not in usual)


def attempt(source: str, load: Callable[[], Any]) -> Any:
    """What `load` returns; if it fails, the run stops with a message that names `source`."""
    try:
        return load()
    except MemoryError:
        raise
    except Exception as error:  # datasets runs over whatever the files and a README hold
        cause = error.__cause__ or error
        known = isinstance(error, (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError))
        stop(f"{source} could not be read: {'' if known else f'{type(cause).__name__}: '}{str(cause)[:500]}")


def read_files(files: list[str], columns: list[str]) -> Dataset:
    """The rows of all files in order. Of several files, only `columns` are kept, if given."""
    parts = [read_file(file) for file in files]
    if columns and len(files) > 1:
        kept = [[name for name in part.column_names if name in columns] for part in parts]
        parts = [part.select_columns(names) for part, names in zip(parts, kept, strict=True)]
    features = [part.features for part in parts]  # once: they are copied at each look
    for name in parts[0].column_names if len(parts) > 1 else []:
        found = [feature.get(name) for feature in features]
        kinds = {feature.dtype for feature in found if isinstance(feature, Value)}
        if kinds == {"int64", "float64"}:  # in one file, in another: all float64
            parts = [part.cast_column(name, Value("float64")) for part in parts]
    for file, part in zip(files, parts, strict=True):
        if part.features != parts[0].features:
            hint = "" if columns else "; --text_column_names says which are needed"
            first = f"{files[0]} has {parts[0].features}"
            stop(f"{file} has the columns {part.features}, but {first}{hint}")
    return concatenate_datasets(parts)


def read_file(file: str) -> Dataset:
    """The rows of one file, parsed once and then cached; cells of .csv and .tsv files are text."""
    if file.lower().endswith(".parquet"):
        check_parquet(file)
        name = checksum(Path(file))  # datasets alone goes by the time at which the file was written
        return attempt(file, lambda: load_dataset("parquet", name, data_files=glob.escape(file), split="train"))
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "run_glue_no_trainer"
    # named after checksums of the file, its reader and the table: no stale or damaged one is used
    content = "-".join(map(checksum, (Path(file), Path(__file__), Path(cells.__file__))))
    name = f"{content}-{os.path.splitext(file)[1].lower()[1:]}"
    found = (kept for kept in cache.glob(f"{name}-*.arrow") if kept.stem.endswith(checksum(kept)))
    try:
        cached = next(found, None) or keep(parse(file)[0], cache, name)
    except pa.ArrowInvalid as error:  # lists in lists in lists
        stop(f"{file}: {error}")
    with pa.ipc.open_stream(str(cached)) as stream:
        notes = json.loads((stream.schema.metadata or {}).get(b"notes", b"[]"))
    for note in notes:
        say(f"{file}: {note}")
    return Dataset.from_file(str(cached))


def keep(table: pa.Table, cache: Path, name: str) -> Path:
    """Write a table to the cache atomically; returns its file."""
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
    """Stop because the datasets cache cannot be written."""
    stop(f"the cache of datasets cannot be written: {error}; HF_HOME names a folder for it")


def check_parquet(file: str) -> None:
    """Stop unless a .parquet file is whole, has rows, and has no two columns of one name."""
    try:
        about = pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        stop(f"{file} could not be read: {error}")
    names = about.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        stop(f"{file} has two columns {twice!r}")
    if not names or not about.metadata.num_rows:
        stop(f"{file} has no rows")


def check_content(file: str) -> None:
    """Stop if the first bytes of a file are those of another format than its name says."""
    with open(file, "rb") as content:
        head = content.readline(1 << 16)
    if head[:2] == b"\x1f\x8b" or head[:4] == b"PK\x03\x04":
        stop(f"{file} is compressed; unpack it first")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        stop(f"{file} is UTF-16; save it as UTF-8")
    if file.lower().endswith(JSON):
        return
    if b"\0" in head:
        stop(f"{file}: its header has a null character; remove it")
    if head.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"{", b"[{")):
        stop(f"{file} holds JSON; let its name end in .json or .jsonl")


def parse(file: str) -> Parsed:
    """The table in a .csv, .tsv, .json or .jsonl file."""
    check_content(file)
    try:
        with under_way(f"reading {file}"):
            read = parse_json if file.lower().endswith(JSON) else cells.read_cells
            table, lines, notes = read(file)
    except UnicodeDecodeError as error:
        stop(f"{file} is not UTF-8: {error}; save it as UTF-8")
    except (ValueError, RecursionError) as error:  # of JSON
        stop(f"{file}: {error}")
    if not table.num_rows:
        stop(f"{file} has no rows")
    if odd := [name for name in table.column_names if "\0" in name]:
        stop(f"{file}: the column {odd[0]!r} has a null character in its name")
    return table.replace_schema_metadata({"notes": json.dumps(notes)}), lines, notes


def place_of(files: list[str], row: int) -> str:
    """The file and line (header included) of a row of `read_files`, for messages."""
    for file in files:
        is_table = file.lower().endswith(".parquet")
        lines = range(1, len(read_file(file)) + 1) if is_table else parse(file)[1]
        if row < len(lines):
            return f"{file}, {'row' if isinstance(lines, range) else 'line'} {lines[row]}"
        row -= len(lines)
    raise IndexError(row)


def parse_json(file: str) -> Parsed:
    """The rows of JSON lines, or of one JSON value (see `unfold`); missing values are null."""
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
