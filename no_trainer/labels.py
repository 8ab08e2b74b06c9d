"""Checks a column of labels and turns it into words, numbers or lists of words."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, List, Sequence, Value

from no_trainer.launch import say
from no_trainer.messages import many, some, stop

WHOLE = r"-?(0|[1-9]\d*)"  # a whole number that is written as text; 007 is a word
NUMBERS = {"int64": WHOLE, "float64": r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?"}
Where = Callable[[str, int], str]  # (split, row counted from 0): where that row is, in words


def numbers(data: Dataset, column: str) -> np.ndarray:
    """A column of numbers, [rows] or [rows, classes]; data without rows need not have it."""
    if not len(data):
        return np.zeros(0, np.int64)
    return data.with_format("numpy")[column][:]  # without [:], each row would be read on its own


def cast(data: Dataset, column: str, kind: str, name: str) -> Dataset:
    """The data with this column cast to `kind`."""
    try:
        return data.cast_column(column, Value(kind))
    except (TypeError, ValueError, pa.ArrowInvalid, NotImplementedError):
        stop(f"the {name} data: column {column} holds {data.features[column]}, not {kind}")


def inner(feature: Any) -> Any:
    """The feature of the values in a list; a feature that is not a list is returned itself."""
    return inner(feature.feature) if isinstance(feature, (List, Sequence)) else feature


def is_list(feature: Any) -> bool:
    """Whether a row has a list of labels."""
    return inner(feature) is not feature


def check_labels(data: Dataset, name: str, where: Where) -> Dataset:
    """The data without the rows labelled -1; lists of ClassLabels become lists of words.

    Raises:
        SystemExit: 2, if labels are missing or of a type that cannot be a label.
    """
    feature = data.features["label"]
    kind = getattr(inner(feature), "dtype", "object")
    if not kind.startswith(("string", "large_string", "int", "uint", "float", "bool")):
        stop(
            f"the labels of the {name} data are of type {kind}; "
            "they may be words, numbers, true and false, or lists of them"
        )
    labels = data["label"][:]
    if missing := [row for row, label in enumerate(labels) if label is None or label == ""]:
        places = some([where(name, row) for row in missing[:5]], len(missing))
        stop(f"{places} {'has' if len(missing) == 1 else 'have'} no label")
    if isinstance(feature, ClassLabel) and (none := sum(label == -1 for label in labels)):
        say(f"{many(none, 'row')} of the {name} data left out: the label -1 means no label")
        data = data.select([row for row, label in enumerate(labels) if label != -1])
    if is_list(feature) and isinstance(names := inner(feature), ClassLabel):
        words = [[names.names[number] for number in row] for row in labels]
        data = data.remove_columns("label").add_column("label", words)
    return data


def name_labels(data: Dataset) -> Dataset:
    """The data with a ClassLabel's numbers, which are valid in one split only, as words."""
    if not isinstance(feature := data.features["label"], ClassLabel):
        return data
    words = [feature.names[label] for label in data["label"][:]]
    return data.remove_columns("label").add_column("label", words)


def type_labels(splits: dict[str, Dataset], where: Where, as_numbers: bool = False) -> dict[str, Dataset]:
    """The splits with numeric labels as numbers: int64 if all are whole (classes), else float64.

    True, false and the values in lists become words. With `as_numbers`, labels become float64.
    """
    first = next(iter(splits.values()))
    if is_list(first.features["label"]):
        return {name: listed(data, name) for name, data in splits.items()}
    kind = first.features["label"].dtype
    if "string" in kind:
        written = [text.strip() for text in first.unique("label")]
        forms = {name: re.compile(form, re.ASCII) for name, form in NUMBERS.items()}
        fits = [name for name, form in forms.items() if all(map(form.fullmatch, written))]
        kind = fits[0] if fits else "string"
        if kind == "int64" and max(map(len, written)) > 18:
            kind = "string"  # such as ids, too long for int64
    if kind == "bool":
        kind = "string"
    if as_numbers:
        kind = "float64"
    typed = {}
    for name, data in splits.items():
        if kind in NUMBERS and "string" in getattr(data.features["label"], "dtype", ""):
            labels = data["label"][:]
            for row, label in enumerate(labels):
                if not re.fullmatch(NUMBERS[kind], label.strip(), re.ASCII):
                    kinds = "whole numbers" if kind == "int64" else "numbers"
                    stop(f"{where(name, row)} has the label {label!r}; the training labels are {kinds}")
            values = np.array(labels, object).astype(kind)
            data = data.remove_columns("label").add_column("label", values)
        elif getattr(data.features["label"], "dtype", None) != kind:
            data = cast(data, "label", kind, name)
        typed[name] = data
    return typed


def listed(data: Dataset, name: str) -> Dataset:
    """The data with lists of words as its labels."""
    if not is_list(data.features["label"]):
        stop(f"the labels of the {name} data are not lists, as those of the training data are")
    if getattr(inner(data.features["label"]), "dtype", None) == "string":
        return data
    return data.cast_column("label", List(Value("string")))


def check_values(data: Dataset, name: str, values: list[Any] | None, where: Where) -> None:
    """Stop unless each label is one of `values` or, if they are None, a number up to 1e18."""
    several = is_list(data.features["label"])
    labels = data["label"][:]
    found = {value for row in labels for value in row} if several else set(data.unique("label"))
    known = set(values) if values else {x for x in found if not isinstance(x, str) and abs(x) <= 1e18}
    if unknown := found - known:  # the square of 1e18 still fits float32
        rows = enumerate(labels if several else [[label] for label in labels])
        of_row = ((row, value) for row, label in rows for value in label)
        row, value = next((n, x) for n, x in of_row if x in unknown or x != x)
        why = "is not a number from -1e18 to 1e18" if values is None else "was never trained"
        stop(f"{where(name, row)} has the label {value!r}, which {why}")
