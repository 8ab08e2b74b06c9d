"""From flags to the splits of a data set, and to what is to be learned from them."""

import argparse

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Value
from transformers import AutoConfig

from no_trainer.files import read, read_files
from no_trainer.glue import GLUE, METRICS, Task, is_test
from no_trainer.labels import (
    cast,
    check_labels,
    check_values,
    find_classes,
    match_labels,
    name_labels,
    numbers,
    type_labels,
)
from no_trainer.launch import say
from no_trainer.messages import stop, suggestion
from no_trainer.models import from_pretrained


def load_data(args: argparse.Namespace, fold: int = 4, folds: int = 10) -> tuple[dict[str, Dataset], Task]:
    """The splits by name (train; validation or MNLI's two; what to predict), and what is to be learned from them.

    Their columns are `label`, except in what is to be predicted, and those of Task.text_columns, as text. Where there
    is no validation data, it is fold number `fold` of `folds` that the training data is cut into.
    """
    splits = read_splits(args)
    known = next(iter(splits.values())).column_names
    text_columns = (
        GLUE.get(args.task_name) or args.text_column_names or find_text_columns(known, args.label_column_name)
    )
    splits = {name: keep_columns(data, name, text_columns, args) for name, data in splits.items()}
    labelled = {name: data for name, data in splits.items() if not is_test(name)}
    for name, data in labelled.items():
        check_labels(data, name)
    if labelled and not args.task_name:
        if len({str(data.features["label"]) for data in labelled.values()}) > 1:
            labelled = {name: name_labels(data) for name, data in labelled.items()}
        file = (args.train_file or args.validation_file or [""])[0].lower()
        labelled = type_labels(labelled, as_text=file.endswith((".csv", ".tsv")))
    task = find_task(labelled, text_columns, args)
    if labelled.keys() == {"train"}:
        labelled = hold_out(labelled["train"], args.seed, fold, folds)
    splits = labelled | {name: data for name, data in splits.items() if is_test(name)}
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    for name, data in splits.items():
        limit = limits["test" if is_test(name) else name.split("_")[0]]
        splits[name] = data.select(range(min(limit or len(data), len(data))))
    if "train" in splits and task.values and len(splits["train"].unique("label")) < 2:
        say("warning: the rows that --max_train_samples leaves are of one class: the file is sorted; mix its rows")
    return splits, task


def read_splits(args: argparse.Namespace) -> dict[str, Dataset]:
    """The splits that the flags ask for, as they were published or written."""
    if args.train_file or args.validation_file or args.test_file:
        named = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        columns = [*args.text_column_names, args.label_column_name] if args.text_column_names else []
        return {name: read_files(files, columns) for name, files in named.items() if files}
    source = args.dataset_name or "nyu-mll/glue"
    splits = dict(read(source, source, *([args.task_name] if args.task_name else [])))
    if args.task_name == "mnli" and args.do_predict:
        splits["ax"] = read(source, source, "ax", split="test")
    if args.task_name == "ax":
        return {"ax": splits["test"]}
    wanted = ["train", "validation", "validation_matched", "validation_mismatched"]
    splits = {name: data for name, data in splits.items() if name in wanted or (args.do_predict and is_test(name))}
    if "train" not in splits:
        stop(f"--dataset_name {source} has no split `train`; --train_file and --validation_file take its files")
    if args.do_predict and not any(is_test(name) for name in splits):
        stop(f"--do_predict: {source} has no split `test`")
    return splits


def find_text_columns(columns: list[str], label: str = "label") -> list[str]:
    """The columns to read where nobody has named them."""
    if {"sentence1", "sentence2"} <= {*columns} - {label}:
        return ["sentence1", "sentence2"]
    numbered = ("id", "idx", "index", "__index_level_0__", "unnamed: 0")  # the last two are pandas'
    others = [name for name in columns if name.lower() not in numbered and name != label]
    others = [name for name in others if not name.startswith(f"{label}_")]  # label_text would give the answer away
    if not others:
        stop(f"the data has no column of text beside {label!r}; --text_column_names names one")
    if len(others) > 2:
        say(f"warning: of the columns {', '.join(others)} the first two are read; --text_column_names names others")
    return others[:2]


def keep_columns(data: Dataset, name: str, text_columns: list[str], args: argparse.Namespace) -> Dataset:
    """The text columns of a split, as text, and its column of labels, as `label`."""
    wanted = text_columns if is_test(name) else [*text_columns, args.label_column_name]
    if missing := [column for column in wanted if column not in data.column_names]:
        flag = "label_column_name" if missing[0] == args.label_column_name else "text_column_names"
        other = f"{suggestion(missing[0], data.column_names)}; --{flag} chooses another" * (not args.task_name)
        columns = ", ".join(data.column_names)
        stop(f"the {name} data has no column {missing[0]!r}; its columns are {columns}{other}")
    if len(data) == 0:
        stop(f"the {name} data has no rows")
    data = data.select_columns(wanted)
    if args.label_column_name in wanted and args.label_column_name != "label":
        data = data.rename_column(args.label_column_name, "label")
    for column in text_columns:
        if data.features[column] != Value("string"):
            data = cast(data, column, "string", name)
        texts = data.with_format("arrow")[column][:]
        full = pc.sum(pc.greater(pc.utf8_length(texts), 0)).as_py() or 0
        if full < len(data) and not args.task_name:
            say(f"warning: {len(data) - full} of {len(data)} rows of the {name} data have an empty {column}")
    return data


def find_task(splits: dict[str, Dataset], text_columns: list[str], args: argparse.Namespace) -> Task:
    """The classes, or that there are none, from the training data; where there is none, from the model."""
    train, values, labels = splits.get("train"), None, None
    if args.task_name == "ax":
        values, labels = [0, 1, 2], ["entailment", "neutral", "contradiction"]
    elif train is not None:
        values, labels = find_classes(train)
    else:
        config = from_pretrained(AutoConfig, args)
        if config.num_labels > 1:  # with one it answers with a number
            labels = [str(config.id2label[index]) for index in range(config.num_labels)]
            values = match_labels(labels, splits.get("validation"))
    for name, data in splits.items():
        check_values(data, name, values)
    if values is None:
        mean = float(np.mean(numbers(train, "label"))) if train else 0.0
        return Task(METRICS[args.task_name or "regression"], text_columns, None, None, mean=mean)
    own = "two classes" if len(values) == 2 else "classes"
    metrics = METRICS.get(args.task_name or own, ["accuracy"])
    return Task(metrics, text_columns, values, labels, list(labels))


def hold_out(data: Dataset, seed: int, fold: int, folds: int) -> dict[str, Dataset]:
    """`train` and `validation`: every `folds`th row by label, so that each class, or size, has its share."""
    rows = np.random.default_rng(seed).permutation(len(data))
    labels = np.array(data["label"][:])
    rows = rows[np.argsort(labels[rows], kind="stable")]
    names, counts = np.unique(labels, return_counts=True)
    alone = set(names[counts == 1]) if labels.dtype.kind != "f" else set()
    held = [row for row in rows[min(fold, len(rows) - 1) :: folds] if labels[row] not in alone]
    if not held or len(held) == len(data):
        stop(f"{len(data)} rows are too few to hold some out for validation: give a --validation_file")
    say(f"no validation data is given: {len(held)} rows of {len(data)} are held out, stratified by label")
    rest = sorted(set(range(len(data))) - set(held))
    return {"train": data.select(rest), "validation": data.select(sorted(held))}
