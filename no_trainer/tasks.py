"""Turns the flags into the splits of a data set and the task to learn from them."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value
from transformers import AutoConfig, PretrainedConfig

from no_trainer.checks import MEMORY, trains
from no_trainer.classes import find_classes, match_labels, nameless, warn_of_limit
from no_trainer.columns import check_columns, choose_label_column, choose_text_columns, count_empty, first_unreadable
from no_trainer.files import place_of, read_dataset, read_files
from no_trainer.glue import CLASSES, METRICS, NUMBER, ONE, ROW, SEVERAL, Task, is_test
from no_trainer.labels import (
    cast,
    check_labels,
    check_values,
    inner,
    is_list,
    keep_answers,
    name_labels,
    numbers,
    type_labels,
)
from no_trainer.launch import say
from no_trainer.messages import many, stop
from no_trainer.models import from_pretrained

VALIDATION = ("dev", "valid", "val")  # other names of this split


def load_data(args: argparse.Namespace, fold: int = 4, folds: int = 10) -> tuple[dict[str, Dataset], Task]:
    """The splits by name (train; validation or MNLI's two; test splits), and the task to learn.

    Their columns are Task.text_columns, as text, and `label`, which test splits may lack. Without
    validation data, fold number `fold` of `folds` of the training data is held out for it.
    """
    memory, where = remembered(args), partial(name_row, args)
    splits = read_splits(args, memory)
    label = choose_label_column(args, splits, memory)
    text_columns = choose_text_columns(args, next(iter(splits.values())), memory, label)
    keep = partial(keep_columns, text_columns=text_columns, label=label, args=args, where=where)
    splits = {n: keep(data, n) for n, data in splits.items()}
    labelled = {n: check_labels(data, n, where) for n, data in splits.items() if not is_test(n)}
    if labelled and not args.task_name:
        kinds = {str(data.features["label"]) for data in labelled.values()}
        if args.do_regression or len(kinds) > 1:
            labelled = {name: name_labels(data) for name, data in labelled.items()}
        if not isinstance(next(iter(labelled.values())).features["label"], ClassLabel):
            labelled = type_labels(labelled, where, args.do_regression)
    like_a_row = label != "label" and any(len(column.split()) > 3 for column in text_columns)
    for name, data in labelled.items() if like_a_row else ():
        if not is_list(data.features["label"]) and label in map(str, data.unique("label")):
            say(f"warning: the column {label!r} of the {name} data holds {label!r}; does its file have a header?")
    task = find_task(labelled, text_columns, args, memory.get("max_length", 128), where)
    task = replace(task, label_column=label)
    if labelled.keys() == {"train"}:
        labelled = hold_out(labelled["train"], fold, folds)
    tests = {name: keep_answers(data, name, task) for name, data in splits.items() if is_test(name)}
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    limits["test"] = args.max_predict_samples
    splits = labelled | tests
    for name, data in splits.items():
        limit = limits["test" if is_test(name) else name.split("_")[0]]
        splits[name] = data.select(range(min(limit or len(data), len(data))))
    for name, data in labelled.items():
        warn_of_limit(data, splits[name], task, name)
    return splits, task


def by_purpose(data: dict[str, Dataset]) -> tuple[Dataset, dict[str, Dataset], dict[str, Dataset]]:
    """The training split, without rows if nothing is trained, then the validation and test splits."""
    train_data = data.get("train", next(iter(data.values())).select([]))
    test_data = {name: split for name, split in data.items() if is_test(name)}
    eval_data = {n: split for n, split in data.items() if n != "train" and n not in test_data}
    return train_data, eval_data, test_data


def read_splits(args: argparse.Namespace, memory: dict[str, Any]) -> dict[str, Dataset]:
    """The splits that the flags ask for, with their columns unchanged."""
    if args.train_file or args.validation_file or args.test_file:
        named = {name: getattr(args, f"{name}_file") for name in ("train", "validation", "test")}
        texts = args.text_column_names
        labels = [args.label_column_name or memory.get("label_column", "label"), "label"]
        columns = [*texts, *labels] if texts else []
        return {name: read_files(files, columns) for name, files in named.items() if files}
    source = args.dataset_name or "nyu-mll/glue"
    splits = read_dataset(source, args.dataset_config_name or args.task_name)
    if args.task_name == "mnli" and args.do_predict:
        splits["ax"] = read_dataset(source, "ax")["test"]
    if args.task_name == "ax":
        return {"ax": splits["test"]}
    other = next((name for name in VALIDATION if name in splits), None)
    if other and "validation" not in splits:
        splits["validation"] = splits.pop(other)
    wanted = ["train", "validation", "validation_matched", "validation_mismatched"]
    if unused := [name for name in splits if name not in wanted and not is_test(name)]:
        say(f"{source} has more than train, validation and test; not used: {', '.join(unused)}")
    wanted += filter(is_test, splits if args.do_predict else [])
    splits = {name: splits[name] for name in wanted if name in splits}
    if "train" not in splits and (trains(args) or not splits):
        stop(f"--dataset_name {source} has no split `train`; give its files with --train_file")
    if args.do_predict and not any(is_test(name) for name in splits):
        stop(f"--do_predict: {source} has no split `test`; leave --do_predict out, or give a --test_file")
    return splits


def name_row(args: argparse.Namespace, split: str, row: int) -> str:
    """Where a row of a split, counted from 0, is: its file and line if it has one."""
    files = getattr(args, f"{split}_file", None)
    which = f"row {row + 1} of the {split} data"
    return f"{place_of(files, row)} ({which})" if files else which


def remembered(args: argparse.Namespace) -> dict[str, Any]:
    """What the model's configuration says about its training data; {} for other models."""
    if trains(args) and not (Path(args.model_name_or_path) / "config.json").is_file():
        return {}
    return getattr(from_pretrained(AutoConfig, args), MEMORY, None) or {}


def keep_columns(
    data: Dataset,
    name: str,
    text_columns: list[str],
    label: str,
    args: argparse.Namespace,
    where: Callable[[str, int], str],
) -> Dataset:
    """The text columns of a split, as text, and its label column, renamed to `label`."""
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
        data = name_labels(data, column)
        if unreadable := first_unreadable(data, column):
            row, what = unreadable
            stop(f"{where(name, row)}: column {column} holds {what}, which is not text")
        if data.features[column] != Value("string"):
            data = cast(data, column, "string", name)
        if (empty := count_empty(data, column)) and not args.task_name:
            share = f"{empty:,} of {len(data):,} rows"
            say(f"warning: {share} of the {name} data have an empty {column}")
    return data


def find_task(
    splits: dict[str, Dataset],
    text_columns: list[str],
    args: argparse.Namespace,
    max_length: int,
    where: Callable[[str, int], str],
) -> Task:
    """The task: its classes come from the training data or, without any, from the model."""
    train, values, labels, kind = splits.get("train"), None, None, ONE
    if args.task_name == "ax":
        values, labels = [0, 1, 2], CLASSES["ax"]
    elif train is not None:
        values, labels = find_classes(train, told=args.do_regression)
        config = None if trains(args) or not labels else from_pretrained(AutoConfig, args)
        if config:
            check_head(config, args.do_regression)
        if config and nameless(list(config.id2label.values())):
            say(f"the classes of the model have no names; they are taken in this order: {', '.join(labels)}")
        feature = train.features["label"]
        kind = SEVERAL if is_list(feature) else ONE
        if config and config.problem_type in (ONE, SEVERAL) and config.problem_type != kind:
            stop(f"the labels are for {kind}, but the model was trained for {config.problem_type}; give another model")
        known = CLASSES.get(args.task_name, [])
        if known and values == list(range(len(known))) and inner(feature).dtype.startswith("int"):
            labels = labels if isinstance(feature, ClassLabel) else known
    else:
        config = from_pretrained(AutoConfig, args)
        check_head(config, args.do_regression)
        if config.num_labels > 1:  # a head with one output predicts a number
            labels = [str(config.id2label[index]) for index in range(config.num_labels)]
            values = match_labels(labels, splits.get("validation"))
            kind = SEVERAL if config.problem_type == SEVERAL else ONE
    for name, data in splits.items():
        check_values(data, name, values, kind == SEVERAL, where)
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


def check_head(config: PretrainedConfig, as_number: bool) -> None:
    """Stop if the head of a saved model predicts something else than one class, several, or one number."""
    many_outputs = config.num_labels > 1
    if many_outputs and config.problem_type == NUMBER:
        stop(f"the model predicts {config.num_labels} numbers for each row; this script takes models of one")
    if not many_outputs and config.problem_type == SEVERAL:
        stop("the model has one class, which a row may have or not; this script takes models of two or more")
    if many_outputs and as_number:
        stop(f"--do_regression: the model predicts {config.num_labels} classes, not numbers")


def hold_out(data: Dataset, fold: int, folds: int) -> dict[str, Dataset]:
    """`train` and `validation`: every `folds`th row in label order, so each class has its share.

    The --seed does not change the rows: runs with different seeds are scored on the same ones.
    """
    rows = np.random.default_rng(0).permutation(len(data))
    labels = data["label"][:]
    if is_list(data.features["label"]):
        labels = ["|".join(sorted(label)) for label in labels]
    labels = np.array(labels)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    names, counts = np.unique(labels, return_counts=True)
    alone = set(names[counts == 1]) if labels.dtype.kind != "f" else set()
    held = [row for row in rows[min(fold, len(rows) - 1) :: folds] if labels[row] not in alone]
    if len(alone) == len(names) >= folds:
        hint = "so these may be ids; --label_column_name names the column of the labels"
        stop(f"no label occurs twice (such as {names[0]}), {hint}")
    if not held or len(held) == len(data):
        stop(f"{many(len(data), 'row')} are too few to hold some out: give a --validation_file")
    share = f"{len(held)} rows of {len(data)}"
    say(f"no validation data is given: {share} are held out, stratified by label")
    rest = sorted(set(range(len(data))) - set(held))
    validation = data.select(sorted(held))
    if ROW not in data.column_names:
        validation = validation.add_column(ROW, np.array(sorted(held)))
    return {"train": data.select(rest), "validation": validation}
