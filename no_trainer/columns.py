"""Which columns of a data set are its texts and its labels, by the flags or by a guess; checks of them."""

import argparse
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from no_trainer.checks import trains
from no_trainer.commands import quote, written
from no_trainer.glue import GLUE, is_test
from no_trainer.launch import say
from no_trainer.messages import stop, suggestion

PAIRS = [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text", "text_pair")]
ANSWERS = ("answer", "passage", "context", "document", "evidence", "sentence", "text")
PAIRS += [(first, second) for first in ("question", "query", "claim") for second in ANSWERS]
PAIRS += [(first, second) for first in ("text", "sentence", "review", "tweet") for second in ("aspect", "target")]
NAMES = [*PAIRS, ("text",), ("sentence",)]  # read if they are there, the first that fit
TEXTS = {name for names in NAMES for name in names}
ROW_NUMBERS = ("id", "idx", "index", "guid", "uuid")
ROW_NUMBERS += ("__index_level_0__", "unnamed: 0")  # written by pandas
CODES = (  # cells that are not text
    r"[-+]?[\d.,]*\d[\d.,]*(e[-+]?\d+)?\s*%?",  # numbers
    r"(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2} \w{3,9} \d{4}|\w{3,9} \d{1,2},? \d{4})([T ,]+\d{1,2}:\d\d.*)?",  # dates
    r"\w{3},? \d{1,2} \w{3} \d{4}.*|\w{3} \w{3} +\d{1,2} \d\d:\d\d.*|\d{1,2}:\d\d(:\d\d)?( [ap]m)?",  # and times
    r"\S*[\d/:_@\\#]\S*|www\.\S+",  # addresses, paths, keys: a single word with such a sign
    r"\[.*\]|\{.*\}",  # lists and objects
)
SAMPLE = 2000  # rows to look at


def choose_label_column(args: argparse.Namespace, splits: dict[str, Dataset], memory: dict[str, Any]) -> str:
    """The label column, which all but test splits must have: the flag's, the one that the model was
    trained on if the data has it, or `label`.
    """
    usual = [memory.get("label_column", "label"), "label"]
    found = {name for data in splits.values() for name in data.column_names}
    usual = [name for name in (usual[::-1] if trains(args) else usual) if name in found]
    label = args.label_column_name or next(iter(usual), "label")
    for name, data in splits.items():
        if not is_test(name):
            check_columns(data, name, [label], label, args)
        elif args.label_column_name and label not in data.column_names:
            say(f"warning: the {name} data has no column {label!r}: it is predicted, but not scored")
    return label


def choose_text_columns(args: argparse.Namespace, data: Dataset, memory: dict[str, Any], label: str) -> list[str]:
    """The columns to read: the task's, the flag's, those the model was trained on, or a guess."""
    if args.task_name:
        return GLUE["mnli" if args.task_name == "ax" else args.task_name]
    learned = memory.get("text_columns") or []
    if label in learned and not args.text_column_names:
        stop(
            f"the model was trained on the column {label} as text, which is the column of the labels here; "
            "--text_column_names says what to read instead"
        )
    missing = [column for column in learned if column not in data.column_names]
    if args.text_column_names or (learned and not missing):
        return args.text_column_names or learned
    if learned and not trains(args):
        stop(
            f"the model was trained on the column{'s' * (len(learned) > 1)} {', '.join(learned)}, "
            f"but the data has no {missing[0]!r}; its columns are {written(data.column_names)}; "
            "--text_column_names says which to read instead"
        )
    return find_text_columns(data, label)


def check_columns(data: Dataset, name: str, wanted: list[str], label: str, args: argparse.Namespace) -> None:
    """Stop unless a split has these columns."""
    if missing := [column for column in wanted if column not in data.column_names]:
        flag = "label_column_name" if missing[0] == label else "text_column_names"
        hint = suggestion(missing[0], data.column_names)
        other = f"{hint}; choose another with --{flag}" * (not args.task_name)
        of_table = any(file.lower().endswith((".csv", ".tsv")) for file in getattr(args, f"{name}_file", None) or [])
        header = " (if these are the cells of a row, give the file a first line with names)" * of_table
        if "," in missing[0] and missing[0] == label:
            stop("--label_column_name takes one column; for several classes a row, it has lists of their names")
        columns = f"its columns are {written(data.column_names)}{header}"
        stop(f"the {name} data has no column {missing[0]!r}; {columns}{other}")


def find_text_columns(data: Dataset, label: str = "label") -> list[str]:
    """The text columns by their names or, if none is known, the first one or two that look like texts.

    These are columns of sentences, if any, that neither are the same in all rows nor give the label away.
    """
    features = data.features  # once: it is copied at each look
    strings = [name for name in data.column_names if name != label and is_string(features[name])]
    named = [n for n in data.column_names if n != label and n.lower() not in ROW_NUMBERS and "label" not in n.lower()]
    if not named:
        stop(f"the data has no text column besides {label!r}; name one with --text_column_names")
    # from the whole file, which may be sorted by label, and not at equal distances: labels may alternate
    rows = np.sort(np.random.default_rng(0).permutation(len(data))[:SAMPLE])
    sample = data.select(rows).with_format("arrow")[:]
    texts = {name: sample.column(name).to_pylist() for name in strings if name in named}
    texts = {name: [cell or "" for cell in cells] for name, cells in texts.items()}
    texts = {name: cells for name, cells in texts.items() if any(map(str.strip, cells))} or texts
    telling = []
    if len(texts) > 1 and label in data.column_names:
        answers = list(map(str, sample.column(label).to_pylist()))
        telling = [name for name, cells in texts.items() if gives_away(cells, answers, name.lower() in TEXTS)]
        telling = [] if len(telling) == len(texts) else telling
    if telling:
        say(f"not read, since the label can be told from them: {', '.join(telling)}")
    texts = {name: cells for name, cells in texts.items() if name not in telling}
    others = [name for name in strings if name not in telling]
    known = {name.lower(): name for name in reversed(texts)} | {name: name for name in texts}
    if names := next((names for names in NAMES if known.keys() >= set(names)), None):
        found = [known[name] for name in names]
        tell_others(found, others)
        return found
    texts = {name: cells for name, cells in texts.items() if len(set(cells)) > 1} or texts
    texts = {name: cells for name, cells in texts.items() if not is_code(cells)} or texts
    most = max((len(set(cells)) for cells in texts.values()), default=0)  # sentences differ, kinds repeat
    varied = {name: cells for name, cells in texts.items() if 4 * len(set(cells)) >= most}
    texts = {name: cells for name, cells in varied.items() if is_sentence(cells)} or texts
    found = list(texts or named)[:2]
    if len(found) == 2:
        left = [name for name in data.column_names if name not in (*found, label)]
        rest = f" (not {', '.join(left)})" if left else ""
        say(
            f"warning: two columns are read, as a pair of texts: {found[0]} and {found[1]}{rest}; "
            f"to read one: --text_column_names {quote(written(found[:1]))}"
        )
    else:
        tell_others(found, others)
    return found


def tell_others(found: list[str], others: Iterable[str]) -> None:
    """Say from which columns the text is read, if there are others besides row numbers."""
    others = [name for name in others if name not in found and name.lower() not in ROW_NUMBERS]
    if others:
        say(f"the text is read from {written(found)}, not from {written(others)}; --text_column_names names others")


def is_string(feature: Any) -> bool:
    """Whether a column holds texts; a ClassLabel does not."""
    return isinstance(feature, Value) and "string" in feature.dtype


def is_code(cells: list[str]) -> bool:
    """Whether nearly all filled cells are numbers, or dates, or addresses, paths and keys."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    forms = [re.compile(form, re.IGNORECASE) for form in CODES]
    return any(sum(map(bool, map(form.fullmatch, filled))) > 0.95 * len(filled) for form in forms)


def is_sentence(cells: list[str]) -> bool:
    """Whether half of the filled cells have four words, or four letters of a script that has no spaces, or more."""
    filled = [cell.strip() for cell in cells if cell.strip()]

    def is_long(cell: str) -> bool:
        if len(cell.split(maxsplit=3)) > 3:
            return True
        return not cell[:20].isascii() and sum(unicodedata.category(letter) == "Lo" for letter in cell[:20]) > 3

    return 2 * sum(map(is_long, filled)) >= len(filled) > 0


def gives_away(cells: list[str], answers: list[str], exact: bool = False) -> bool:
    """Whether the column determines the label, or nearly: it has few values, and with the commonest label of each,
    there is at most a tenth of the mistakes that the commonest label of all makes; none if `exact`.
    """
    of_value: dict[str, Counter[str]] = {}
    for cell, answer in zip(cells, answers, strict=True):
        of_value.setdefault(cell, Counter())[answer] += 1
    mistakes = [found.total() - max(found.values()) for found in (Counter(answers), *of_value.values())]
    few = len(of_value) <= max(2, len(cells) // 4)
    return few and mistakes[0] > 0 and sum(mistakes[1:]) <= (0 if exact else mistakes[0] / 10)


def count_empty(data: Dataset, column: str) -> int:
    """The number of rows without a text in this column."""
    lengths = pc.utf8_length(data.with_format("arrow")[column][:])
    return len(data) - (pc.sum(pc.greater(lengths, 0)).as_py() or 0)


def first_unreadable(data: Dataset, column: str) -> tuple[int, str] | None:
    """The first row whose cell is a list or an object, and which of the two; None if no cell is."""
    kind = data.data.schema.field(column).type
    if not (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
        return None
    for row, cell in enumerate(data.with_format("arrow")[column][:]):
        value = cell.as_py()
        if isinstance(value, bytes):
            value = {b"[": [], b"{": {}}.get(value[:1])
        if isinstance(value, (list, dict)):
            return row, "a list" if isinstance(value, list) else "an object"
    return None
