"""From flags to the splits of a data set, and to what is to be learned from them."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value
from transformers import AutoConfig

from no_trainer.checks import MEMORY
from no_trainer.classes import find_classes, match_labels
from no_trainer.columns import count_empty, find_text_columns, first_unreadable
from no_trainer.files import place_of, read_dataset, read_files
from no_trainer.glue import CLASSES, GLUE, METRICS, NUMBER, ONE, SEVERAL, Task, is_test
from no_trainer.labels import cast, check_labels, check_values, inner, is_list, name_labels, numbers, type_labels
from no_trainer.launch import say
from no_trainer.messages import many, stop, suggestion
from no_trainer.models import from_pretrained

VALIDATION = ("dev", "valid", "val")  # other names of the split


def load_data(args: argparse.Namespace, fold: int = 4, folds: int = 10) -> tuple[dict[str, Dataset], Task]:
    """The splits by name (train; validation or MNLI's two; what to predict), and what is to be learned from them.

    Their columns are those of Task.text_columns, as text, and `label`, which what is to be predicted may lack. Where
    there is no validation data, it is fold number `fold` of `folds` that the training data is cut into.
    """
    memory, where = remembered(args), partial(name_row, args)
    splits = read_splits(args, memory)
    label = choose_label_column(args, splits, memory)
    text_columns = choose_text_columns(args, next(iter(splits.values())), memory, label)
    splits = {name: keep_columns(data, name, text_columns, label, args, where) for name, data in splits.items()}
    labelled = {name: check_labels(data, name, where) for name, data in splits.items() if not is_test(name)}
    if labelled and not args.task_name:
        if args.do_regression or len({str(data.features["label"]) for data in labelled.values()}) > 1:
            labelled = {name: name_labels(data) for name, data in labelled.items()}
        if not isinstance(next(iter(labelled.values())).features["label"], ClassLabel):
            labelled = type_labels(labelled, where, args.do_regression)
    task = find_task(labelled, text_columns, args, memory.get("max_length", 128), where)
    task = replace(task, label_column=label)
    if labelled.keys() == {"train"}:
        labelled = hold_out(labelled["train"], fold, folds)
    tests = {name: keep_answers(data, name, task) for name, data in splits.items() if is_test(name)}
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    splits = labelled | tests
    for name, data in splits.items():
        limit = limits["test" if is_test(name) else name.split("_")[0]]
        splits[name] = data.select(range(min(limit or len(data), len(data))))
    if "train" in splits and task.problem_type == ONE and len(splits["train"].unique("label")) < 2:
        say("warning: the rows that --max_train_samples leaves are of one class: the file is sorted; mix its rows")
    return splits, task


def by_purpose(data: dict[str, Dataset]) -> tuple[Dataset, dict[str, Dataset], dict[str, Dataset]]:
    """The split to train on, without rows if nothing is trained, those to evaluate on and those to predict."""
    train_data = data.get("train", next(iter(data.values())).select([]))
    eval_data = {name: split for name, split in data.items() if name != "train" and not is_test(name)}
    return train_data, eval_data, {name: split for name, split in data.items() if is_test(name)}


def read_splits(args: argparse.Namespace, memory: dict[str, Any]) -> dict[str, Dataset]:
    """The splits that the flags ask for, as they were published or written."""
    if args.train_file or args.validation_file or args.test_file:
        named = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        labels = [args.label_column_name or memory.get("label_column", "label"), "label"]
        columns = [*args.text_column_names, *labels] if args.text_column_names else []
        return {name: read_files(files, columns) for name, files in named.items() if files}
    source = args.dataset_name or "nyu-mll/glue"
    splits = read_dataset(source, args.dataset_config_name or args.task_name)
    if args.task_name == "mnli" and args.do_predict:
        splits["ax"] = read_dataset(source, "ax")["test"]
    if args.task_name == "ax":
        return {"ax": splits["test"]}
    other = next((name for name in VALIDATION if name in splits), None)
    if other and "validation" not in splits:
        splits["validation"] = splits[other]
    wanted = ["train", "validation", "validation_matched", "validation_mismatched"]
    splits = {name: data for name, data in splits.items() if name in wanted or (args.do_predict and is_test(name))}
    if "train" not in splits:
        stop(f"--dataset_name {source} has no split `train`; --train_file and --validation_file take its files")
    if args.do_predict and not any(is_test(name) for name in splits):
        stop(f"--do_predict: {source} has no split `test`")
    return splits


def name_row(args: argparse.Namespace, split: str, row: int) -> str:
    """Where a row of a split, counted from 0, stands."""
    files = getattr(args, f"{split}_file", None)
    which = f"row {row + 1} of the {split} data"
    return f"{place_of(files, row)} ({which})" if files else which


def trains(args: argparse.Namespace) -> bool:
    return bool(args.num_train_epochs or args.max_train_steps)


def remembered(args: argparse.Namespace) -> dict[str, Any]:
    """What the model knows of the data that this script has trained it on, if it has."""
    if trains(args) and not (Path(args.model_name_or_path) / "config.json").is_file():
        return {}
    return getattr(from_pretrained(AutoConfig, args), MEMORY, None) or {}


def choose_label_column(args: argparse.Namespace, splits: dict[str, Dataset], memory: dict[str, Any]) -> str:
    """The column with the labels, which all splits but those to be predicted must have: that of the flag, the one that
    the model was trained on, if it is there, or `label`."""
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
    """The columns to read: those of the task, of the flag, or that the model was trained on; else a guess."""
    if args.task_name:
        return GLUE["mnli" if args.task_name == "ax" else args.task_name]
    learned = memory.get("text_columns") or []
    missing = [column for column in learned if column not in data.column_names]
    if args.text_column_names or (learned and not missing):
        return args.text_column_names or learned
    if learned and not trains(args):
        stop(
            f"the model was trained on the column{'s' * (len(learned) > 1)} {', '.join(learned)}, but the data has no "
            f"{missing[0]!r}; its columns are {', '.join(data.column_names)}; --text_column_names says which to read "
            "instead"
        )
    return find_text_columns(data, label)


def check_columns(data: Dataset, name: str, wanted: list[str], label: str, args: argparse.Namespace) -> None:
    """Whether a split has these columns."""
    if missing := [column for column in wanted if column not in data.column_names]:
        flag = "label_column_name" if missing[0] == label else "text_column_names"
        other = f"{suggestion(missing[0], data.column_names)}; --{flag} chooses another" * (not args.task_name)
        columns = ", ".join(data.column_names)
        stop(f"the {name} data has no column {missing[0]!r}; its columns are {columns}{other}")


def keep_columns(
    data: Dataset,
    name: str,
    text_columns: list[str],
    label: str,
    args: argparse.Namespace,
    where: Callable[[str, int], str],
) -> Dataset:
    """The text columns of a split, as text, and its column of labels, as `label`."""
    wanted = list(text_columns)
    if not is_test(name) or (label in data.column_names and not args.task_name):
        wanted.append(label)
    check_columns(data, name, wanted, label, args)
    if len(data) == 0:
        stop(f"the {name} data has no rows")
    data = data.select_columns(wanted)
    if label in wanted and label != "label":
        data = data.rename_column(label, "label")
    for column in text_columns:
        if unreadable := first_unreadable(data, column):
            row, what = unreadable
            stop(f"{where(name, row)}: column {column} holds {what}, which is no text")
        if data.features[column] != Value("string"):
            data = cast(data, column, "string", name)
        if (empty := count_empty(data, column)) and not args.task_name:
            say(f"warning: {empty:,} of {len(data):,} rows of the {name} data have an empty {column}")
    return data


def find_task(
    splits: dict[str, Dataset],
    text_columns: list[str],
    args: argparse.Namespace,
    max_length: int,
    where: Callable[[str, int], str],
) -> Task:
    """The classes, or that there are none, from the training data; where there is none, from the model."""
    train, values, labels, kind = splits.get("train"), None, None, ONE
    if args.task_name == "ax":
        values, labels = [0, 1, 2], CLASSES["ax"]
    elif train is not None:
        values, labels = find_classes(train, told=args.do_regression)
        kind = SEVERAL if is_list(train.features["label"]) else ONE
        known = CLASSES.get(args.task_name, [])
        if known and values == list(range(len(known))) and inner(train.features["label"]).dtype.startswith("int"):
            labels = labels if isinstance(train.features["label"], ClassLabel) else known
    else:
        config = from_pretrained(AutoConfig, args)
        if config.num_labels > 1:  # with one it answers with a number
            labels = [str(config.id2label[index]) for index in range(config.num_labels)]
            values = match_labels(labels, splits.get("validation"))
            kind = SEVERAL if config.problem_type == SEVERAL else ONE
    for name, data in splits.items():
        check_values(data, name, values, where)
    kind = NUMBER if values is None else kind
    own = {NUMBER: "regression", SEVERAL: "several classes"}.get(kind)
    own = own or ("two classes" if len(values) == 2 else "classes")
    return Task(
        metrics=METRICS.get(args.task_name or own, ["accuracy"]),
        text_columns=text_columns,
        values=values,
        labels=labels,
        words=labels and list(labels),
        several=kind == SEVERAL,
        mean=float(np.mean(numbers(train, "label"))) if values is None and train else 0.0,
        max_length=args.max_length or max_length,
    )


def hold_out(data: Dataset, fold: int, folds: int) -> dict[str, Dataset]:
    """`train` and `validation`: every `folds`th row by label, so that each class, or size, has its share.

    They are the same rows whatever the --seed, so that runs with several seeds are scored on the same ones.
    """
    rows = np.random.default_rng(0).permutation(len(data))
    labels = data["label"][:]
    labels = np.array(["|".join(sorted(label)) for label in labels] if is_list(data.features["label"]) else labels)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    names, counts = np.unique(labels, return_counts=True)
    alone = set(names[counts == 1]) if labels.dtype.kind != "f" else set()
    held = [row for row in rows[min(fold, len(rows) - 1) :: folds] if labels[row] not in alone]
    if not held or len(held) == len(data):
        stop(f"{many(len(data), 'row')} are too few to hold some out for validation: give a --validation_file")
    say(f"no validation data is given: {len(held)} rows of {len(data)} are held out, stratified by label")
    rest = sorted(set(range(len(data))) - set(held))
    return {"train": data.select(rest), "validation": data.select(sorted(held))}


def keep_answers(data: Dataset, name: str, task: Task) -> Dataset:
    """What is to be predicted, with its labels if all of them are ones that the model could give."""
    if "label" not in data.column_names:
        return data
    labels = name_labels(data)["label"][:] if -1 not in data["label"][:] else [None]
    known = {str(name): value for name, value in zip(task.labels or [], task.values or [], strict=True)}
    known |= {str(word): value for word, value in zip(task.words or [], task.values or [], strict=True)}
    known |= {str(value): value for value in task.values or []}
    try:
        if task.problem_type == NUMBER:
            answers = [float(label) for label in labels]
        elif task.problem_type == SEVERAL:
            answers = [[known[str(word)] for word in label] for label in labels]
        else:
            answers = [known[str(label).strip() if isinstance(label, str) else str(label)] for label in labels]
    except (TypeError, ValueError, KeyError):
        if any(label not in (None, "", -1) for label in labels):
            say(f"the labels of the {name} data are not all known to the model: it is predicted, but not scored")
        return data.remove_columns("label")
    return data.remove_columns("label").add_column("label", answers)
