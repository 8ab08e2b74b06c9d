"""Reads files and named data sets; every row is kept and every cell stays as it is written."""

import dataclasses
import glob
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from datasets import ClassLabel, Dataset, Value, concatenate_datasets, load_dataset, load_dataset_builder
from datasets.info import DatasetInfosDict

from no_trainer import cells, records
from no_trainer.checks import SUFFIXES
from no_trainer.folder import checksum, to_disk
from no_trainer.labels import inner, is_list
from no_trainer.launch import say
from no_trainer.messages import some, stop, under_way

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
            other = "the data cached under this name may come from another folder"
            stop(f"--dataset_name {source}: there is no such folder, and the hub does not answer; {other}")
        say(f"warning: the hub does not answer; {source} is read from datasets' cache")
    files = getattr(builder.config, "data_files", None) or {}
    files = {str(split): list(map(str, named)) for split, named in files.items()}
    every = [Path(file) for named in files.values() for file in named]
    how: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}
    if every and all(file.exists() for file in every):
        report_files(Path(source), files, every, whole=len(builder.builder_configs) < 2)
        if kind in ("csv", "json") and not has_options(builder.config):
            info = DatasetInfosDict.from_directory(source).get(builder.config.name)
            features = (info and info.features) or {}
            return {split: described(read_files(named, []), features, source) for split, named in files.items()}
        # datasets' cache goes by the name of a folder, not by what is in its files
        content = xxhash.xxh3_64_hexdigest("".join(map(checksum, every)).encode())
        how["cache_dir"] = str(own_cache() / content)
    return dict(attempt(source, lambda: load_dataset(source, config, **how)))


def report_files(source: Path, files: dict[str, list[str]], every: list[Path], whole: bool) -> None:
    """Say which files a split has, if they are not numbered, and which none has, if `whole`: one data set only."""
    for split, named in files.items():
        if len(named) > 1 and not re.search(r"-\d+-of-\d+\.", named[0]):
            say(f"{source}: the {split} data are those of {some(map(os.path.basename, named))}")
    read, folders = set(map(os.path.realpath, every)), {source, *(file.parent for file in every)}
    there = [file for folder in folders for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and whole]
    if unread := sorted({file.name for file in there if os.path.realpath(file) not in read}):
        say(f"warning: {source}: datasets does not read {some(unread)}")


def described(data: Dataset, features: dict[str, Any], source: str) -> Dataset:
    """The data with those columns as classes and fractions that the README of `source` says are such."""
    for name, feature in features.items():
        kind = inner(feature)
        is_number = isinstance(feature, Value) and feature.dtype.startswith("float")
        if name not in data.column_names or not (is_number or isinstance(kind, ClassLabel)):
            continue
        cells = data[name][:]
        try:
            if is_number:
                values: list[Any] = [None if cell in (None, "") else float(cell) for cell in cells]
            elif is_list(feature):
                numbers = class_numbers(itertools.chain(*cells), kind.names)
                values = [[numbers[cell] for cell in row] for row in cells]
            else:
                numbers = class_numbers(cells, kind.names)
                values = [numbers[cell] for cell in cells]
        except (ValueError, TypeError) as error:
            say(f"warning: {source}: the column {name} is not what its README.md says, and read as it is: {error}")
            continue
        data = data.remove_columns(name).add_column(name, values, feature=feature)
    return data


def class_numbers(cells: Iterable[Any], names: list[str]) -> dict[Any, int]:
    """The class of each cell of a column, by its name or, unless all cells are names, by its number; -1 for none.
    Raises ValueError if there is no such class.
    """
    words = {cell: "" if cell is None else str(cell).strip() for cell in set(cells)}
    given = {cell: word for cell, word in words.items() if word}
    by_name = all(isinstance(cell, str) and word in names for cell, word in given.items())
    numbers = {cell: names.index(word) if by_name else int(word) for cell, word in given.items()}
    if wrong := [cell for cell, number in numbers.items() if not -1 <= number < len(names)]:
        raise ValueError(f"{wrong[0]!r} is none of {len(names)} classes")
    return dict.fromkeys(words, -1) | numbers


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
    cache = own_cache()
    # named after checksums of the file, its reader and the table: no stale or damaged one is used
    content = "-".join(map(checksum, map(Path, (file, __file__, cells.__file__, records.__file__))))
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


def own_cache() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "run_glue_no_trainer"


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
            read = records.read_records if file.lower().endswith(JSON) else cells.read_cells
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
