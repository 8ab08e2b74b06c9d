"""What a column of labels means: which kind of values, which classes, in which order."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value
from transformers import PretrainedConfig

from no_trainer.glue import Task
from no_trainer.launch import say
from no_trainer.messages import stop

NUMBERS = {  # as labels in a .csv; 007 is a word
    "int64": r"-?(0|[1-9]\d{0,17})",
    "float64": r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?",
}


def numbers(data: Dataset, column: str) -> np.ndarray:
    """A column of numbers, [rows]; where there are no rows, there need not be the column."""
    if not len(data):
        return np.zeros(0, np.int64)
    return data.with_format("numpy")[column][:]  # without [:], each row would be read on its own


def cast(data: Dataset, column: str, kind: str, name: str) -> Dataset:
    """The data with this column as values of this kind."""
    try:
        return data.cast_column(column, Value(kind))
    except (TypeError, ValueError, pa.ArrowInvalid, NotImplementedError):
        stop(f"the {name} data: column {column} holds {data.features[column]}, which is not {kind}")


def check_labels(data: Dataset, name: str) -> None:
    """Whether each row has a label that can be one."""
    kind = getattr(data.features["label"], "dtype", "list")
    if not kind.startswith(("string", "large_string", "int", "uint", "float", "bool")):
        stop(f"the labels of the {name} data are of type {kind}; take words, numbers, or true and false")
    if {None, ""} & set(data.unique("label")):
        row = next(row for row, label in enumerate(data["label"][:]) if label in (None, ""))
        stop(f"row {row + 1} of the {name} data has no label")


def name_labels(data: Dataset) -> Dataset:
    """A ClassLabel's numbers, which mean something in their own split only, as the words that they stand for."""
    if not isinstance(feature := data.features["label"], ClassLabel):
        return data
    words = dict(enumerate(feature.names))
    return data.remove_columns("label").add_column(
        "label", [words.get(label, str(label)) for label in data["label"][:]]
    )


def type_labels(splits: dict[str, Dataset], as_text: bool) -> dict[str, Dataset]:
    """Labels in .csv and .tsv (`as_text`) that are written as numbers are numbers: whole ones classes, others for
    regression.

    True and false, in files that know them, become words.
    """
    first = next(iter(splits.values()))
    kind = first.features["label"].dtype
    if kind == "string" and as_text:
        written = first.unique("label")
        fits = [n for n, form in NUMBERS.items() if all(re.fullmatch(form, x.strip(), re.ASCII) for x in written)]
        kind = fits[0] if fits else kind
    if kind == "bool" or kind in ("large_string", "string_view"):
        kind = "string"
    typed = {}
    for name, data in splits.items():
        if kind in NUMBERS and data.features["label"].dtype == "string":
            labels = data["label"][:]
            for row, label in enumerate(labels):
                if not re.fullmatch(NUMBERS[kind], label.strip(), re.ASCII):
                    kinds = "whole numbers" if kind == "int64" else "numbers"
                    stop(f"row {row + 1} of the {name} data has the label {label!r}; the training labels are {kinds}")
            data = data.remove_columns("label").add_column("label", np.array(labels, object).astype(kind))
        elif data.features["label"].dtype != kind:
            data = cast(data, "label", kind, name)
        typed[name] = data
    return typed


def find_classes(data: Dataset) -> tuple[list[Any] | None, list[str] | None]:
    """The values of column `label` and their names, by class id; None and None where they are numbers to learn."""
    feature = data.features["label"]
    if isinstance(feature, ClassLabel):
        return list(range(len(feature.names))), list(feature.names)
    if feature.dtype.startswith("float"):
        return None, None
    values = sorted(data.unique("label"))
    labels = [str(value) for value in values]
    if len(values) < 2:
        stop(f"the training data has only one class, {labels[0]!r}: there is nothing to tell apart")
    warn_of_labels(Counter(map(str, data["label"][:])))
    return values, labels


def warn_of_labels(counts: Counter[str]) -> None:
    """Say what in a column of classes has often been a mistake; `counts` are the rows of each."""
    if twice := [name for name, times in Counter(label.lower().strip() for label in counts).items() if times > 1]:
        say(f"warning: some labels differ only in capitals or spaces, such as those of {twice[0]!r}")
    if all(re.fullmatch(r"-?\d+,\d+", label) for label in counts):
        say("warning: the labels look like numbers; with a decimal point, as in 1.5, they are numbers to predict")
    elif len(counts) > 8 and all(re.fullmatch(r"-?\d+", label) for label in counts):
        say("warning: whole numbers are classes; with a decimal point, as in 4.0, they are numbers to predict")
    if rare := sorted(label for label in counts if counts[label] < 10):
        some = ", ".join(rare[:5]) + f" and {len(rare) - 5} more" * (len(rare) > 5)
        say(f"warning: fewer than ten rows of the training data have the label {some}")


def check_values(data: Dataset, name: str, values: list[Any] | None) -> None:
    """Whether each label is one of the classes' `values` or, where there are none, a number to learn."""
    found = set(data.unique("label"))  # numbers up to 1e18: their squares fit float32
    known = set(values) if values else {x for x in found if not isinstance(x, str) and abs(x) <= 1e18}
    if unknown := found - known:
        row = next(row for row, label in enumerate(data["label"][:]) if label in unknown or label != label)
        why = "is not a number to learn (from -1e18 to 1e18)" if values is None else "was never trained"
        stop(f"row {row + 1} of the {name} data has the label {data[row]['label']!r}, which {why}")


def match_labels(labels: list[str], data: Dataset | None) -> list[Any]:
    """What the data calls the classes of a model: their names in any case, or their numbers."""
    written = data.unique("label") if data else []
    if all(isinstance(label, int) for label in written) and written:
        known = {name: int(name) for name in labels if re.fullmatch(r"-?\d+", name)}
        known |= {name.lower(): number for number, name in enumerate(getattr(data.features["label"], "names", []))}
        return [known.get(name.lower(), index) for index, name in enumerate(labels)]
    spelled = {str(label).lower(): label for label in written}
    return [spelled.get(name.lower(), name) for name in labels]


def in_models_order(task: Task, config: PretrainedConfig) -> Task:
    """The task with its classes in the order that the model was trained with, if it knows them by name."""
    if not task.labels:
        return task
    known = {str(label).lower(): index for index, label in config.id2label.items()}
    if sorted(known) == sorted(label.lower() for label in task.labels):
        order = sorted(range(len(task.labels)), key=lambda index: known[task.labels[index].lower()])
        values, words = ([of[index] for index in order] for of in (task.values, task.words or task.labels))
        labels = [str(label) for _, label in sorted(config.id2label.items())]
        return replace(task, values=values, words=words, labels=labels)
    if not all(re.fullmatch(r"label_\d+", label) for label in known):
        names = ", ".join(str(label) for label in config.id2label.values())
        say(
            f"warning: the model's labels ({names}) are not the data's ({', '.join(task.labels)}); the data's are used"
        )
    return task
