"""Finds the classes of the data, and matches them with those of a model."""

import itertools
import re
import unicodedata
from collections import Counter
from dataclasses import replace
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PretrainedConfig

from no_trainer.glue import METRICS, NUMBER, Task
from no_trainer.labels import NUMBERS, is_list
from no_trainer.launch import say
from no_trainer.messages import some, stop

# what programs and people write for no value
MISSING = ("nan", "NaN", "NAN", "null", "NULL", "n/a", "N/A", "#N/A", "<NA>", "NA", "NaT", "None", "-", "?")


def find_classes(data: Dataset, told: bool = False) -> tuple[list[Any] | None, list[str] | None]:
    """The values of column `label` and their names, by class id; None and None for regression.

    Warns of numbers that look like classes, unless the user has `told` that they are not.
    """
    feature = data.features["label"]
    found = [] if is_list(feature) else data.unique("label")
    if len(found) == 1:
        only = feature.names[found[0]] if isinstance(feature, ClassLabel) else str(found[0])
        stop(f"the training data has only one class, {only!r}; is it another column? --label_column_name names it")
    if isinstance(feature, ClassLabel):
        return list(range(len(feature.names))), list(feature.names)
    labels = data["label"][:]
    if is_list(feature):
        one_each = all(len(row) == 1 for row in labels)
        labels = [value for row in labels for value in row]
        if not labels:
            stop("the training data has no class at all: every list of labels is empty")
        if one_each:
            say("warning: every row has a list of one class; to predict exactly one for each row, write no lists")
    elif feature.dtype.startswith("float"):
        if not told:
            warn_of_numbers(found)
        return None, None
    values = sorted(set(labels))
    warn_of_labels(Counter(map(str, labels)))
    return values, [str(value) for value in values]


def warn_of_numbers(found: list[float]) -> None:
    """Warn that labels with a decimal point are numbers to predict, if they look like classes."""
    if len(found) <= 11 and all(float(value).is_integer() for value in found):
        written = some(map(str, sorted(found)))
        say(
            f"warning: the labels {written} have a decimal point, so they are numbers to predict; "
            "to have classes, write 0, 1 ..."
        )


def warn_of_labels(counts: Counter[str]) -> None:
    """Warn of common mistakes in a column of classes; `counts` has the number of rows of each."""
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        seen = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")
        alike.setdefault(" ".join(seen.lower().split()), []).append(repr(label))
    for names in alike.values():
        if len(names) > 1:
            same = " and ".join(names)
            say(f"warning: the labels {same} differ only in capitals or spaces, or in how they are encoded")
    joined = (label for label in counts if "|" in label and counts.keys() & set(label.split("|")))
    parts = ((label, [part.strip() for part in re.split("[,;#/]", label)]) for label in counts)
    several = [label for label, words in parts if len(words) > 1 and counts.keys() >= set(words)]
    listed = (label for label in counts if re.fullmatch(r"\[.*\]|\{.*\}", label.strip()))
    of_two = several[0] if len(several) > 1 else None  # a single one may be a name, such as OS/2
    if example := next(joined, None) or of_two or next(listed, None):
        say(f"warning: {example!r} is one class here; a row with several takes a list of them, in JSON or parquet")
    number = re.compile(NUMBERS["float64"])
    odd = sorted(repr(label) for label in counts if not number.fullmatch(label.strip()))
    marked = re.compile(r"([$€£¥]\s?)?-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(\s*[%$€£¥])?")
    example = next((label for label in counts if re.search("[,%$€£¥]", label)), None)
    if example and all(marked.fullmatch(word) or number.fullmatch(word) for word in map(str.strip, counts)):
        say(f"warning: labels such as {example!r} are classes; to predict numbers, write 1200 or 0.15")
    elif all(re.fullmatch(r"-?\d+,\d+", label) for label in counts):
        say("warning: labels with a decimal comma are classes; to predict numbers, write 1.5")
    elif len(counts) > 8 and all(re.fullmatch(r"-?\d+", label) for label in counts):
        say("warning: whole numbers are classes; --do_regression predicts them as numbers")
    elif 0 < len(odd) * 4 < len(counts):
        say(f"warning: most labels are numbers; because of {some(odd)}, all are classes")
    real = {"-"} if "+" in counts else {"?"} if counts.keys() & {".", "!"} else set()  # signs are classes here
    unknown = {"-1"} if {"-1", "0", "1", "2"} <= counts.keys() and "-2" not in counts else set()
    if absent := sorted(label for label in counts if label.strip() in {*MISSING, *unknown} - real):
        say(f"warning: {some(map(repr, absent))} among the classes; if this means no label, leave out these rows")
    if rare := sorted(label for label in counts if counts[label] < 10):
        listed = some(rare)
        say(f"warning: fewer than ten rows of the training data have the label {listed}")


def warn_of_limit(data: Dataset, kept: Dataset, task: Task, name: str) -> None:
    """Warn if the first rows of a split, which are `kept`, lack a class or have the lowest or highest numbers only."""
    if len(kept) == len(data):
        return
    flag, lost = "--max_train_samples" if name == "train" else "--max_eval_samples", []
    labels = data["label"][:]
    first, others = labels[: len(kept)], labels[len(kept) :]
    if task.problem_type == NUMBER:
        lost = ["low numbers"] * (max(others) < min(first)) + ["high numbers"] * (min(others) > max(first))
    else:
        if task.several:
            first, others = itertools.chain(*first), itertools.chain(*others)
        gone = set(others) - set(first)
        lost = [str(label) for value, label in zip(task.values, task.labels, strict=True) if value in gone]
    if lost:
        say(f"warning: {flag} leaves no row of {some(lost)} in the {name} data; if the file is sorted, shuffle it")


def match_labels(names: list[str], data: Dataset | None) -> list[Any]:
    """The data's label for each class of a model: its name in any case, or a number."""
    written = data.unique("label") if data and not is_list(data.features["label"]) else []
    if not written or not all(isinstance(label, int) for label in written):
        return spelled_alike(names, {str(label): label for label in written})
    if own := getattr(data.features["label"], "names", None):
        return spelled_alike(names, {name: number for number, name in enumerate(own)})
    standing = numbers_in_names(names)
    by_name = set(written) <= set(standing)
    values = standing if by_name else list(range(len(names)))
    if names != list(map(str, values)):
        how = "by the numbers in their names" if by_name else "in the model's order"
        pairs = [f"{value} is {name}" for value, name in zip(values, names, strict=True)]
        listed = some(pairs)
        say(f"the labels are numbers; they are taken as the model's classes {how}: {listed}")
    return values


def spelled_alike(names: list[str], labels: dict[str, Any]) -> list[Any]:
    """For each name what `labels` has for it, or for a word that differs only in capitals; otherwise the name."""
    lower = [name.lower() for name in names]
    others = {word.lower(): label for word, label in labels.items() if word not in names}
    clear = {name: others[name] for name in others.keys() & set(lower) if lower.count(name) == 1}
    return [labels.get(name, clear.get(name.lower(), name)) for name in names]


def numbers_in_names(names: list[str]) -> list[int]:
    """The number in each name, as in `4 stars`; [] unless each name has one, and all differ."""
    found = [re.findall(r"-?\d+", n) for n in names if not re.match("label_", n, re.IGNORECASE)]
    values = {int(numbers[0]) for numbers in found if len(numbers) == 1}
    return [int(numbers[0]) for numbers in found] if len(values) == len(names) else []


def nameless(names: list[str]) -> bool:
    """Whether a model's classes have the names that transformers gives to those without one."""
    return all(re.fullmatch(r"label_\d+", name, re.IGNORECASE) for name in names)


def in_models_order(task: Task, config: PretrainedConfig, new_head: bool = False) -> Task:
    """The task with its classes in the model's order, if the model knows all of them by name.

    A class that only the model has keeps its place in the head, unless a `new_head` is wanted.
    """
    if not task.labels:
        return task
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    folded = all(len({name.lower() for name in found}) == len(found) for found in (names, task.labels))
    fold = str.lower if folded else str  # capitals count if nothing else tells two classes apart
    keys = [fold(name) for name in names]
    place = {fold(label): index for index, label in enumerate(task.labels)}
    standing = numbers_in_names(names)
    integers = all(isinstance(value, int) for value in task.values)
    if not place.keys() <= set(keys) and standing and integers and set(task.values) <= set(standing):
        keys = list(map(str, standing))
    missing = [name for key, name in zip(keys, names, strict=True) if key not in place]
    if place.keys() <= set(keys) and len(set(keys)) == len(keys) and not (missing and new_head):
        if missing:
            listed = some(missing)
            say(f"the model also knows the class {listed}, of which the data has no row")
        spelled, values, words = task.words or task.labels, [], []
        for key, name in zip(keys, names, strict=True):
            values.append(task.values[place[key]] if key in place else name)
            words.append(spelled[place[key]] if key in place else name)
        two = task.metrics == METRICS["two classes"]
        metrics = METRICS["classes"] if missing and two else task.metrics
        return replace(task, values=values, words=words, labels=names, metrics=metrics)
    if not nameless(names):
        say(
            f"warning: the model's labels ({', '.join(names)}) are not the data's "
            f"({', '.join(task.labels)}); the data's are used"
        )
    if len(task.labels) < 2:
        only = f"the lists of labels have one class only, {task.labels[0]!r}"
        stop(f"{only}; for one class, give each row a word for yes or no, not a list")
    return task
