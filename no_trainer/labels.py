"""Checks a column of labels and turns it into words, numbers or lists of words."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, LargeList, List, Value

from no_trainer.glue import NUMBER, ROW, SEVERAL, Task
from no_trainer.launch import say
from no_trainer.messages import many, some, stop

WHOLE = r"-?(0|[1-9]\d*)"  # a whole number that is written as text; 007 is a word
NUMBERS = {"int64": WHOLE, "float64": r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?"}
LISTS = (List, LargeList)
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
    return inner(feature.feature) if isinstance(feature, LISTS) else feature


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
    if is_list(feature):
        return check_lists(data, name, where)
    if not kind.startswith(("string", "large_string", "int", "uint", "float", "bool")):
        stop(
            f"the labels of the {name} data are of type {kind}; "
            "they may be words, numbers, true and false, or lists of them"
        )
    labels = data["label"][:]
    if missing := [row for row, label in enumerate(labels) if label is None or str(label).strip() == ""]:
        places = some([where(name, row) for row in missing[:5]], len(missing))
        stop(f"{places} {'has' if len(missing) == 1 else 'have'} no label")
    if isinstance(feature, ClassLabel) and (none := sum(label == -1 for label in labels)):
        say(f"{many(none, 'row')} of the {name} data left out: the label -1 means no label")
        kept = [row for row, label in enumerate(labels) if label != -1]
        data = data.select(kept).add_column(ROW, np.array(kept))
    if not len(data):
        stop(f"no row of the {name} data has a label")
    return data


def check_lists(data: Dataset, name: str, where: Where) -> Dataset:
    """The data with lists as labels; those of a ClassLabel become lists of words. Stops as `check_labels` does."""
    feature = data.features["label"]
    if isinstance(feature.feature, LISTS) or not hasattr(inner(feature), "dtype"):
        stop(f"the labels of the {name} data are lists of {feature.feature}; they may be lists of words")
    labels, names = data["label"][:], inner(feature)
    for row, label in enumerate(labels):
        if label is None or any(word is None or str(word).strip() == "" for word in label):
            stop(f"{where(name, row)} has no label, or an empty one in its list; a row of no class has []")
        wrong = [x for x in label if isinstance(names, ClassLabel) and not 0 <= x < len(names.names)]
        if wrong:
            stop(f"{where(name, row)} has the label {wrong[0]}; its data set names {len(names.names)} classes")
    if isinstance(names, ClassLabel):
        words = [[names.names[number] for number in label] for label in labels]
        return data.remove_columns("label").add_column("label", words, feature=List(Value("string")))
    widths, values = {len(label) for label in labels}, {value for label in labels for value in label}
    repeats = any(len(set(label)) < len(label) for label in labels)
    # such as [0, 1] and [1, 0]
    alike = name == "train" and len(labels) > 1 and all(len(set(label)) == 2 for label in labels)
    flags = len(widths) == 1 and values <= {0, 1} and (repeats or alike)
    if flags or any(isinstance(x, bool) or (isinstance(x, float) and not x.is_integer()) for x in values):
        stop(f"the labels of the {name} data look like a 0 or 1 for each class; give the names of a row's classes")
    return data.cast_column("label", List(Value("string"))) if names.dtype == "null" else data


def name_labels(data: Dataset, column: str = "label") -> Dataset:
    """The data with a ClassLabel's numbers, which are valid in one split only, as words (-1: as null)."""
    feature = data.features[column]
    if not isinstance(feature, ClassLabel):
        return data
    words = [None if number in (None, -1) else feature.names[number] for number in data[column][:]]
    return data.remove_columns(column).add_column(column, words)


def type_labels(splits: dict[str, Dataset], where: Where, as_numbers: bool = False) -> dict[str, Dataset]:
    """The splits with numeric labels as numbers: int64 if all are whole (classes), else float64.

    True, false and the values in lists become words. With `as_numbers`, labels become float64.
    """
    first = next(iter(splits.values()))
    if is_list(first.features["label"]):
        if as_numbers:
            stop("--do_regression: the labels are lists, not numbers")
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
    if kind.startswith(("int", "uint")) and kind != "uint64":
        kind = "int64"
    if as_numbers:
        kind = "float64"
    typed = {}
    for name, data in splits.items():
        if kind in NUMBERS and "string" in getattr(data.features["label"], "dtype", ""):
            labels = data["label"][:]
            for row, label in enumerate(labels):
                too_long = kind == "int64" and len(label.strip()) > 18
                if too_long or not re.fullmatch(NUMBERS[kind], label.strip(), re.ASCII):
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


def check_values(data: Dataset, name: str, values: list[Any] | None, several: bool, where: Where) -> None:
    """Stop unless each label, or each in its list of `several`, is one of `values`; if None, a number up to 1e18."""
    if is_list(data.features["label"]) != several:
        expected = "takes lists of them" if several else "takes one for each row"
        stop(f"the labels of the {name} data are {'words or numbers' if several else 'lists'}; the model {expected}")
    labels = data["label"][:]
    found = {value for row in labels for value in row} if several else set(data.unique("label"))
    known = set(values) if values else {x for x in found if not isinstance(x, str) and abs(x) <= 1e18}
    unknown = found - known  # the square of 1e18 still fits float32
    for row, label in enumerate(labels if unknown else []):
        for value in label if several else [label]:
            is_nan = value != value
            if value in unknown or is_nan:
                why = "is not a number from -1e18 to 1e18" if values is None else "was never trained"
                place = where(name, data[ROW][row] if ROW in data.column_names else row)
                stop(f"{place} has the label {value!r}, which {why}")


def to_number(label: Any) -> float:
    """A label as a number to predict; raises ValueError if it is none that training would take."""
    written = str(label).strip()
    if not re.fullmatch(NUMBERS["float64"], written, re.ASCII) or abs(float(written)) > 1e18:
        raise ValueError(label)
    return float(written)


def to_word(label: Any) -> str:
    """A label of one class as a word: true and false as in training, and 1.0 as 1."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).lower() if isinstance(label, bool) else str(label)


def keep_answers(data: Dataset, name: str, task: Task) -> Dataset:
    """A test split, with its labels only if each row has one that the model could predict."""
    if "label" not in data.column_names:
        return data
    labels = given_labels(data, no_answer="-1" not in map(str, task.values or []))
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        say(f"the {name} data is not scored: {unlabelled} of its {many(len(labels), 'row')} have no label")
    if unlabelled:
        return data.remove_columns("label")
    try:
        if is_list(data.features["label"]) != (task.problem_type == SEVERAL):
            raise TypeError("a word would be read by its letters")
        if task.problem_type == NUMBER:
            answers = [to_number(label) for label in labels]
        elif task.problem_type == SEVERAL:
            lists = [list(map(str, label)) for label in labels]
            known = values_of({word for words in lists for word in words}, task)
            answers = [[known[word] for word in words] for words in lists]
        else:
            words = list(map(to_word, labels))
            known = values_of(set(words), task)
            answers = [known[word] for word in words]
    except (TypeError, ValueError, KeyError):
        say(f"the {name} data is not scored: the model does not know all of its labels")
        return data.remove_columns("label")
    return data.remove_columns("label").add_column("label", answers)


def values_of(words: set[str], task: Task) -> dict[str, Any]:
    """The value in `task.values` of each label of a column, which is read in one way as a whole.

    The labels are all names of classes, names as the training data spells them, or values; as they are
    written, or but for spaces around them and capitals. Raises KeyError if no way fits.
    """
    for fold in (str, str.strip, lambda word: word.strip().lower()):
        for names in (task.labels, task.words or task.labels, task.values):
            table = {fold(str(name)): value for name, value in zip(names, task.values, strict=True)}
            if len(table) == len(names) and {fold(word) for word in words} <= table.keys():
                return {word: table[fold(word)] for word in words}
    raise KeyError(words)


def given_labels(data: Dataset, no_answer: bool) -> list[Any]:
    """The labels of a test split, those of a ClassLabel as words, and None for each row without one.

    A ClassLabel's -1 means no label; so do other labels that are all -1, if `no_answer`.
    """
    feature, labels = data.features["label"], data["label"][:]
    if isinstance(feature, ClassLabel):
        return [None if label in (None, -1) else feature.names[label] for label in labels]
    if isinstance(names := inner(feature), ClassLabel):
        return [None if label is None or -1 in label else [names.names[n] for n in label] for label in labels]
    hidden = no_answer and all(label == -1 for label in labels)
    return [None if hidden or str(label).strip() == "" else label for label in labels]
